"""Which charters cannot learn as they say: what strategy, rounds and weights of updates demand of each other and of privacy."""

from __future__ import annotations

from collections.abc import Iterator

from commons.experts.slices import Kind
from commons.learning import Learning, Outer
from commons.privacy.terms import Mode, Privacy

_NOT_COUNTED = {
    "robust": "how many tokens it routed to an expert is a site's own word, which no rule can check",
    "secagg": "the counts that sites send would tell of each what its masked update hides",
    "dp": "the counts that sites send are of the text, without noise",
}
_NOT_RADIAL = {
    "robust": "its rules say themselves what each update counts",
    "secagg": "nobody sees how long a single update is",
    "dp": "it would make the mean as long as the noise that it averages out",
}


def conflicts(learning: Learning, privacy: Privacy, *, late_rounds: int) -> list[str]:
    """Why a charter with this privacy and such late updates cannot be kept; each in one sentence."""
    return [
        *_rounds(learning, late_rounds),
        *_strategy(learning, privacy, late_rounds),
        *_weights(learning, privacy.mode),
    ]


def _rounds(learning: Learning, late_rounds: int) -> Iterator[str]:
    shortest = min(learning.steps_in(1), learning.inner_steps)
    if learning.fragments > 1 and late_rounds:
        yield (
            f"learning.fragments is {learning.fragments} but rounds.late_rounds is {late_rounds}: a late update holds "
            "another fragment than the round that takes it, so there is nobody to average it with"
        )
    if learning.owned_every > 1 and late_rounds:
        yield (
            f"learning.owned_every is {learning.owned_every} but rounds.late_rounds is {late_rounds}: a late update may hold "
            "experts that the round which takes it does not exchange"
        )
    if learning.owned_every > 1 and learning.fragments > 1:
        yield (
            f"learning.owned_every is {learning.owned_every} but learning.fragments is {learning.fragments}: of a fragment's "
            "experts some would never have a turn"
        )
    if learning.overlap_steps >= shortest:
        yield (
            f"learning.overlap_steps is {learning.overlap_steps} but a round has {shortest} inner_steps: at "
            "least one comes after the exchange is taken in"
        )
    if learning.overlap_steps and learning.routing == "joint":
        yield (
            f"learning.overlap_steps is {learning.overlap_steps} but learning.routing is 'joint': a site that is started "
            "again would need the guests of the round before, which it no longer keeps"
        )


def _strategy(learning: Learning, privacy: Privacy, late_rounds: int) -> Iterator[str]:
    here, mode = f"learning.strategy is {learning.strategy!r}", privacy.mode
    shared_alone = mode == "dp" and privacy.dp.slices == "shared"
    match learning.strategy:
        case "sovereign":
            if learning.routing != "lean":
                yield (
                    f"{here} but learning.routing is {learning.routing!r}: experts that learned beside the others' could "
                    "not do without them, so routing must be 'lean'"
                )
            if (codec := learning.codecs.of(Kind.ROUTER)) != "fp32":
                yield (
                    f"{here} but router rows are sent as {codec!r} (learning.codecs.router), which encodes rows of several "
                    "owners together: they take 'fp32' here"
                )
            if mode in ("robust", "secagg"):
                yield f"{here} but privacy.mode is {mode!r}: no slice is combined from several sites"
            if shared_alone:
                yield f"{here} but privacy.dp.slices is 'shared': experts are all that leaves a site, so it must be 'all'"
        case "diloco":
            if learning.routing != "joint":
                yield (
                    f"{here} but learning.routing is {learning.routing!r}: every site holds and trains every expert, so "
                    "routing must be 'joint'"
                )
            if shared_alone:
                yield f"{here} but privacy.dp.slices is 'shared': experts are shared too, so it must be 'all'"
        case "branch_mix":
            if mode in ("secagg", "dp"):
                yield f"{here} but privacy.mode is {mode!r}, which would be spent on rounds in which nothing is sent"
            if learning.expert_outer != Outer():
                yield f"{here} but learning.expert_outer changes what owners send: there is one exchange, and nothing to damp"
            if late_rounds:
                yield f"{here} but rounds.late_rounds is {late_rounds}: no round comes after the one that is exchanged in"
        case "expert_diloco":
            pass


def _weights(learning: Learning, mode: Mode) -> Iterator[str]:
    if learning.counts and (mode != "none" or learning.strategy == "sovereign"):
        field = "balance_rate" if learning.balance_rate else "expert_weights"
        where, why = f"privacy.mode is {mode!r}", _NOT_COUNTED.get(mode)
        if why is None:
            where, why = (
                f"learning.strategy is {learning.strategy!r}",
                "a site would leave its mark on the others' biases and rows",
            )
        yield f"learning.{field} is {getattr(learning, field)!r} but {where}: {why}"
    if learning.merge == "radial" and mode in _NOT_RADIAL:
        yield f"learning.merge is 'radial' but privacy.mode is {mode!r}: {_NOT_RADIAL[mode]}"
