"""The expert map: which tensor is trunk, which is expert e, and who owns e.

Sharding, combining, charging, opt-out and release all speak in its terms. It is computed from the charter by
arithmetic (no torch, no weights), so that coordinator and sites reach the same map and compare its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from commons.charter import Charter, Model
from commons.experts.families import FAMILIES
from commons.experts.own import with_own
from commons.experts.readers import first_experts, reader_slices
from commons.experts.settings import SettingError
from commons.experts.slices import Kind, Slice
from commons.experts.tokenizer import VOCABULARY
from commons.names import Digest, ExpertId, SiteId
from commons.toml_file import Problem

__all__ = ["ExpertMap", "Kind", "Parameters", "Slice"]


@dataclass(frozen=True)
class Parameters:
    """Parameter counts."""

    trunk: int
    """Trunk and router: what every site sends each round."""
    expert: int
    """One expert over all its layers."""
    total: int
    active: int
    """Multiplied per token: trunk, router, one site's own layers and `experts_per_token` experts, without the embedding
    look-up and readers."""
    own: int = 0
    """One site's own layers. The seed's, in whose place it has them, are counted nowhere."""


@dataclass(frozen=True)
class ExpertMap:
    family: str
    experts: tuple[ExpertId, ...]
    """Charter order: the position is the index in the released model."""
    owners: Mapping[ExpertId, SiteId | None]
    """None: in escrow. It is part of the model, and nobody may change it."""
    slices: tuple[Slice, ...]
    """In name order."""
    experts_per_token: int

    @classmethod
    def from_charter(cls, charter: Charter) -> ExpertMap:
        """Raises SettingError naming a key of `[model.config]` that cannot be."""
        _check_vocabulary(charter.model)
        owners = {ExpertId(e): SiteId(s) if s else None for e, s in charter.owners.items()}
        return cls.from_owners(charter.model, owners)

    @classmethod
    def from_owners(cls, model: Model, owners: Mapping[ExpertId, SiteId | None]) -> ExpertMap:
        """The map of `model` with these experts, in the mapping's order, whatever its vocabulary. Raises SettingError."""
        experts, family = tuple(owners), FAMILIES[model.family]
        config, keys = family.hf_config(model.config, len(experts)), family.settings(model.config)
        hidden, vocabulary = keys.whole("hidden_size"), keys.whole("vocab_size")
        readers = reader_slices(owners, width=model.reader, hidden=hidden, vocabulary=vocabulary)
        if why := own_problem(model):
            raise SettingError("own_from", why)
        plain = family.slices(model.config, experts)
        slices = with_own(plain, owners, model.own_from)
        return cls(
            family=model.family,
            experts=experts,
            owners=dict(owners),
            slices=tuple(sorted((*slices, *readers), key=lambda s: s.name)),
            experts_per_token=int(str(config["num_experts_per_tok"])),
        )

    def shared(self) -> tuple[Slice, ...]:
        """Trunk and router, in name order: what every site sends."""
        return tuple(s for s in self.slices if s.shared)

    def owned_by(self, site: SiteId) -> tuple[Slice, ...]:
        """The slices of the site's own experts, layers and reader, in name order; empty for a site that owns no expert."""
        return tuple(s for s in self.slices if s.expert is not None and self.owners[s.expert] == site)

    def uplink(self, site: SiteId) -> tuple[Slice, ...]:
        """Everything the site may change and send, in name order."""
        return tuple(s for s in self.slices if s.shared or (s.expert and self.owners[s.expert] == site))

    def experts_of(self, site: SiteId) -> tuple[ExpertId, ...]:
        return tuple(e for e in self.experts if self.owners[e] == site)

    @property
    def readers(self) -> dict[SiteId, ExpertId]:
        """The sites that have a reader, each with the expert it goes with; empty where the model has none."""
        held = {s.expert for s in self.slices if s.kind is Kind.READER}
        return {site: expert for site, expert in first_experts(self.owners).items() if expert in held}

    @cached_property
    def late(self) -> frozenset[str]:
        """Names of the trunk's slices in whose place every site has its own; empty where there are no own layers."""
        return frozenset(s.name for s in self.slices if s.kind is Kind.SEED)

    @cached_property
    def routed_layers(self) -> tuple[int, ...]:
        """Layers that have a router, in their order."""
        return tuple(
            sorted({layer for s in self.slices if s.kind is Kind.ROUTER and (layer := s.layer) is not None})
        )

    def index(self, expert: ExpertId) -> int:
        """The expert's index in the released model."""
        return self.experts.index(expert)

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 over family, experts with owners, and every slice's name, kind and shape, one JSON line each."""
        lines: list[object] = [["hansa expert map v1", self.family, self.experts_per_token]]
        lines += [["expert", e, self.owners[e]] for e in self.experts]
        lines += [["slice", s.name, s.kind.value, list(s.shape), s.expert] for s in self.slices]
        text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=True) + "\n" for line in lines)
        return Digest("sha256:" + hashlib.sha256(text.encode()).hexdigest())

    def parameters(self) -> Parameters:
        trunk = _count(self.shared())
        expert = _count(s for s in self.slices if s.kind is Kind.EXPERT and s.expert == self.experts[0])
        readers = _count(s for s in self.slices if s.kind is Kind.READER)
        own = _count(s for s in self.slices if s.kind is Kind.SEED)
        every = _count(s for s in self.slices if s.kind is Kind.OWN)
        names = {s.name for s in self.slices}
        look_up = 0
        if "lm_head.weight" in names:
            look_up = next(s.size for s in self.slices if s.name == "model.embed_tokens.weight")
        return Parameters(
            trunk=trunk,
            expert=expert,
            total=trunk + expert * len(self.experts) + readers + every,
            active=trunk - look_up + own + expert * self.experts_per_token,
            own=own,
        )

    def training_gflop(self, tokens: int, *, frozen_trunk: bool = False) -> int:
        """Useful model FLOPs of training on `tokens`, in whole GFLOP rounded up.

        2 per active parameter and token forward, twice that backward: once for the gradient that is passed on, once for the
        weight's own, which a frozen trunk does without. Guests count as if they were trained; attention scores are left out.
        """
        counts = self.parameters()
        each = 6 * counts.active
        if frozen_trunk:
            router = _count(s for s in self.slices if s.kind is Kind.ROUTER)
            each -= 2 * (counts.active - counts.own - counts.expert * self.experts_per_token - router)
        return -(-each * tokens // 10**9)


def model_problems(charter: Charter) -> Iterator[Problem]:
    """What keeps a charter's model from being trained as the charter says."""
    try:
        if why := own_problem(charter.model):
            yield Problem(("model", "own_from"), why)
            return
        ExpertMap.from_charter(charter)
    except SettingError as wrong:
        yield Problem(("model", "config", wrong.key), wrong.what)
        return
    if charter.learning.balance_rate and not FAMILIES[charter.model.family].mixture.biased:
        yield Problem(
            ("learning", "balance_rate"), f"{charter.model.family} has no selection biases to balance with"
        )
    keys = FAMILIES[charter.model.family].settings(charter.model.config)
    context, length = keys.whole("max_position_embeddings"), charter.learning.sequence_length
    if length > context:
        yield Problem(
            ("learning", "sequence_length"),
            f"{length} tokens do not fit the model's context of {context} (max_position_embeddings)",
        )


def own_problem(model: Model) -> str | None:
    """Why sites cannot have layers of their own from there on. Raises SettingError for a config that cannot be."""
    if model.own_from is None:
        return None
    keys = FAMILIES[model.family].settings(model.config)
    layers = keys.whole("num_hidden_layers")
    return None if model.own_from < layers else f"is {model.own_from}, but the last layer is {layers - 1}"


def _check_vocabulary(model: Model) -> None:
    given, tokenizer = model.config.get("vocab_size", VOCABULARY), model.tokenizer
    if not tokenizer.file and given != VOCABULARY:
        raise SettingError("vocab_size", f"must be {VOCABULARY}, not {given!r}: tokens are bytes")
    if isinstance(given, int) and given < tokenizer.tokens:
        raise SettingError(
            "vocab_size",
            f"is {given} but the charter's tokenizer has {tokenizer.tokens} tokens; it must be that or more",
        )


def _count(slices: Iterable[Slice]) -> int:
    return sum(s.size for s in slices)
