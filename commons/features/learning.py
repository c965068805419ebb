"""Features that change how the model is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.families import FAMILIES
from commons.features.feature import Feature, Patch, replaced
from commons.learning import Closing, Codec, InnerOptimizer, Strategy
from commons.section import Section


class UplinkCodec(Section):
    trunk: Codec
    expert: Codec
    vector: Codec | None = None
    """Norms and biases of the trunk; not named: as they are encoded now."""
    router: Codec | None = None
    """Gate rows and selection biases; not named: as they are encoded now."""


class DownlinkCodec(Section):
    down: Codec


class ClosingCodec(Section):
    closing: Closing | None


class InnerSteps(Section):
    steps: Annotated[int, Field(ge=1, le=100_000)]


class Fragments(Section):
    """Only what is named changes."""

    fragments: Annotated[int, Field(ge=1, le=64)] = 1
    overlap_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    owned_every: Annotated[int, Field(ge=1, le=100_000)] = 1


class LearningRate(Section):
    learning_rate: Annotated[float, Field(gt=0, le=1)]


class InnerStep(Section):
    optimizer: InnerOptimizer
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.0
    """Peak rate; not named: as it is now."""


class Precision(Section):
    precision: Literal["fp32", "bf16"]


class Routing(Section):
    routing: Literal["joint", "lean"]


class ChosenStrategy(Section):
    strategy: Strategy
    routing: Literal["joint", "lean"] = "joint"
    """Not named: as it is now."""


class Merge(Section):
    merge: Literal["mean", "radial"]


class Balancing(Section):
    rate: Annotated[float, Field(ge=0, le=1)]


class ExpertWeights(Section):
    by: Literal["alike", "routed"]


class OuterStep(Section):
    learning_rate: Annotated[float, Field(gt=0, le=2)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool


class ReaderWidth(Section):
    width: Annotated[int, Field(ge=1, le=4096)]


class OwnLayers(Section):
    begin: Annotated[int, Field(ge=0, le=4096)]
    """The first decoder layer whose trunk every site has for itself."""


class PublicShare(Section):
    share: Annotated[float, Field(ge=0, le=1)]


def _set(**values: Any) -> Patch:
    """Replacements below /learning; a double underscore goes one level down."""
    return [replaced("/learning/" + name.replace("__", "/"), value) for name, value in values.items()]


def _uplink(_: Charter, codecs: UplinkCodec) -> Patch:
    """Only the kinds that were named; null makes a kind follow the trunk again."""
    named = (kind for kind in UplinkCodec.model_fields if kind in codecs.model_fields_set)
    return _set(**{f"codecs__{kind}": getattr(codecs, kind) for kind in named})


def _fragments(_: Charter, wish: Fragments) -> Patch:
    return _set(
        **{name: getattr(wish, name) for name in Fragments.model_fields if name in wish.model_fields_set}
    )


def _inner_step(_: Charter, step: InnerStep) -> Patch:
    rate = {"learning_rate": step.learning_rate} if "learning_rate" in step.model_fields_set else {}
    return _set(inner_optimizer=step.optimizer, **rate)


def _strategy(_: Charter, chosen: ChosenStrategy) -> Patch:
    return _set(**{name: getattr(chosen, name) for name in chosen.model_fields_set})


def _balancing(charter: Charter, wanted: Balancing) -> Patch | Refusal:
    if wanted.rate and not FAMILIES[charter.model.family].mixture.biased:
        message = f"the routers of {charter.model.family} have no selection biases to balance with"
        return Refusal(Code.FEATURE_PARAMETERS_INVALID, message)
    return _set(balance_rate=wanted.rate)


def _readers(charter: Charter, wanted: ReaderWidth) -> Patch | Refusal:
    if charter.model.reader:
        message = (
            f"sites have readers of width {charter.model.reader}, and of another width they would begin anew"
        )
        return Refusal(Code.FEATURE_PARAMETERS_INVALID, message)
    return [replaced("/model/reader", wanted.width)]


def _own_layers(charter: Charter, wanted: OwnLayers) -> Patch | Refusal:
    if charter.model.own_from is not None:
        message = f"sites have layers of their own from {charter.model.own_from} on, and what they have made of them stays theirs"
        return Refusal(Code.FEATURE_PARAMETERS_INVALID, message)
    return [replaced("/model/own_from", wanted.begin)]


LEARNING = (
    Feature(
        "uplink-codec",
        "Encode what sites send: trunk and experts, norms and router too where they differ from the trunk",
        UplinkCodec,
        tuple(f"/learning/codecs/{kind}" for kind in UplinkCodec.model_fields),
        _uplink,
    ),
    Feature(
        "downlink-codec",
        "Send down the encoded step from a round's base to its new state; fp32: the new slices themselves",
        DownlinkCodec,
        ("/learning/codecs/down",),
        lambda _, p: _set(codecs__down=p.down),
    ),
    Feature(
        "closing-codec",
        "Encode a run's last round finer, since nothing after it makes up for what a codec drops; null: as the others",
        ClosingCodec,
        ("/learning/codecs/closing",),
        lambda _, p: _set(codecs__closing=p.closing),
    ),
    Feature(
        "inner-steps",
        "Train this many inner steps between two exchanges",
        InnerSteps,
        ("/learning/inner_steps",),
        lambda _, p: _set(inner_steps=p.steps),
    ),
    Feature(
        "fragments",
        "Exchange one of so many parts of the model a round, or what sites own in every so many rounds alone (owned_every), and "
        "go on training while that is under way (overlap_steps)",
        Fragments,
        ("/learning/fragments", "/learning/overlap_steps", "/learning/owned_every"),
        _fragments,
        needs="lean routing for overlap_steps, no late updates, and one of fragments and owned_every alone",
    ),
    Feature(
        "learning-rate",
        "Peak learning rate of the inner steps",
        LearningRate,
        ("/learning/learning_rate",),
        lambda _, p: _set(learning_rate=p.learning_rate),
    ),
    Feature(
        "inner-optimizer",
        "Move matrices of trunk and experts by Muon, or all by AdamW (adamw), and the peak rate that suits it",
        InnerStep,
        ("/learning/inner_optimizer", "/learning/learning_rate"),
        _inner_step,
    ),
    Feature(
        "precision",
        "Matrix products of the inner steps: fp32, or bf16 on the GPUs that have it",
        Precision,
        ("/learning/precision",),
        lambda _, p: _set(precision=p.precision),
        needs="a rate at bf16 for every device that is used",
    ),
    Feature(
        "routing",
        "Train beside frozen guest experts (joint) or with own experts only (lean)",
        Routing,
        ("/learning/routing",),
        lambda _, p: _set(routing=p.routing),
        needs="no readers in the model, where it is to be joint",
    ),
    Feature(
        "strategy",
        "What sites train and exchange: trunk and own experts (expert_diloco), own experts alone (sovereign), everything (diloco), "
        "or nothing before the last round (branch_mix)",
        ChosenStrategy,
        ("/learning/strategy", "/learning/routing"),
        _strategy,
        needs="what `commons.strategies` says of routing, privacy and codecs",
    ),
    Feature(
        "merge",
        "Combine what all sites send by its mean, or matrices by mean direction and mean length (radial)",
        Merge,
        ("/learning/merge",),
        lambda _, p: _set(merge=p.merge),
        needs="an aggregation in which single updates are seen: neither robust, secagg nor dp",
    ),
    Feature(
        "outer-step",
        "Outer step on the averaged trunk delta",
        OuterStep,
        ("/learning/outer",),
        lambda _, p: _set(
            outer__learning_rate=p.learning_rate, outer__momentum=p.momentum, outer__nesterov=p.nesterov
        ),
    ),
    Feature(
        "expert-outer-step",
        "Outer step on what an owner's update makes of its experts; rate 1 without momentum: as it has them",
        OuterStep,
        ("/learning/expert_outer",),
        lambda _, p: _set(
            expert_outer__learning_rate=p.learning_rate,
            expert_outer__momentum=p.momentum,
            expert_outer__nesterov=p.nesterov,
        ),
    ),
    Feature(
        "expert-weights",
        "Count sites alike in what belongs to an expert, or by the tokens they routed to it (routed)",
        ExpertWeights,
        ("/learning/expert_weights",),
        lambda _, p: _set(expert_weights=p.by),
        needs="an aggregation in which counts may be told: neither robust, secagg nor dp",
    ),
    Feature(
        "balancing",
        "Move selection biases by this much a round towards an even load over the consortium; 0: leave them",
        Balancing,
        ("/learning/balance_rate",),
        _balancing,
        needs="a family whose routers have selection biases",
    ),
    Feature(
        "public-share",
        "Share of each batch drawn from the consortium's public text",
        PublicShare,
        ("/learning/public_share",),
        lambda _, p: _set(public_share=p.share),
    ),
    Feature(
        "readers",
        "Let every site train a reader of this width, by which lean shards find the experts for a text",
        ReaderWidth,
        ("/model/reader",),
        _readers,
    ),
    Feature(
        "own-layers",
        "Let every site train the trunk from this decoder layer on for itself, beginning as it is, and never average it again",
        OwnLayers,
        ("/model/own_from",),
        _own_layers,
        needs="readers",
    ),
)
