"""The records that a run's course is written in: RUN, ROUND, REJECTION, VERDICT, WORTH, CLOSE, REMADE
and FINISH, field by field.

`orchestrator.progress` folds them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.records import Kind, Record, fact
from commons.verdict import Word
from orchestrator.progress import RunState

MESSAGE_CHARS_MAX = 1000


def run_fact(
    now_ms: int, *, run: RunId, rounds: int, state: Digest, charter_version: int, expert_map: Digest
) -> Record:
    return fact(
        Kind.RUN,
        now_ms,
        run=run,
        rounds=rounds,
        state=state,
        charter_version=charter_version,
        expert_map=expert_map,
    )


def round_fact(
    now_ms: int,
    *,
    run: RunId,
    number: RoundNumber,
    attempt: int,
    base: Digest,
    charter_version: int,
    charter: Digest,
    expert_map: Digest,
    quorum: int,
    lease_until_ms: int,
    holds: Mapping[SiteId, Micro],
) -> Record:
    """A round, or a further attempt at the open one. Assignments follow from it; left-out sites are REJECTIONs."""
    return fact(
        Kind.ROUND,
        now_ms,
        run=run,
        round=number,
        attempt=attempt,
        base=base,
        charter_version=charter_version,
        charter=charter,
        expert_map=expert_map,
        quorum=quorum,
        lease_until_ms=lease_until_ms,
        holds=dict(holds),
    )


def rejection_fact(
    now_ms: int, *, run: RunId, number: RoundNumber, site: SiteId, code: str, message: str, update: str = ""
) -> Record:
    """An update rejected, a site at work on a closed round let go, or why one without an assignment was left out."""
    return fact(
        Kind.REJECTION,
        now_ms,
        run=run,
        round=number,
        site=site,
        code=code,
        message=message[:MESSAGE_CHARS_MAX],
        update=update,
    )


def close_fact(
    now_ms: int,
    *,
    run: RunId,
    number: RoundNumber,
    base: Digest,
    state: Digest,
    momentum: Digest | None,
    contributors: Iterable[SiteId],
    missing: Iterable[SiteId],
    bytes_up: int,
    bytes_down: int,
    late: Mapping[SiteId, RoundNumber] | None = None,
    carried: Collection[SiteId] = (),
    shared: str = "",
) -> Record:
    """The round's commit point: `state` is saved and follows from base, the contributors' updates and `late` ones.

    `carried`: those of the missing that stay at work on it. Both stand in the record only where there are some.
    `shared`: under secure aggregation, what became of trunk and router: `masked`, their sum was opened, or `unmoved`.
    """
    more = {"late": dict(late)} if late else {}
    sum_of = {"shared": shared} if shared else {}
    stay = {"carried": sorted(carried)} if carried else {}
    return fact(
        Kind.CLOSE,
        now_ms,
        run=run,
        round=number,
        base=base,
        state=state,
        momentum=momentum or "",
        contributors=sorted(contributors),
        missing=sorted(missing),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        **more,
        **stay,
        **sum_of,
    )


def remade_fact(
    now_ms: int,
    *,
    run: RunState,
    charter_version: int,
    charter: Digest,
    expert_map: Digest,
    state: Digest,
    momentum: Digest | None,
) -> Record:
    """Before round `round` is opened the run's state became `state`: the same weights, for the experts of that charter.

    It follows from `base`, the charters from version `since` on, and nothing else (`commons.experts.remaking`).
    """
    return fact(
        Kind.REMADE,
        now_ms,
        run=run.run,
        round=run.closed + 1,
        since=run.map_version,
        charter_version=charter_version,
        charter=charter,
        expert_map=expert_map,
        base=run.state,
        state=state,
        momentum_base=run.momentum or "",
        momentum=momentum or "",
    )


def verdict_fact(
    now_ms: int,
    *,
    run: RunId,
    number: RoundNumber,
    base: Digest,
    state: Digest,
    word: Word,
    change_ppm: int | None,
    limit_ppm: int | None,
    without: Mapping[str, str] | None = None,
) -> Record:
    """What all measurements of `base` and `state` that stand before it say of the round's new `state`.

    `change_ppm`: None where nobody measured both; `limit_ppm`: where the charter asks for no more than the measure.
    `without`: ``site/round`` of an update -> the state without it, where that was looked at; only then in the record.
    Followed by the CLOSE, or by the REJECTION of the update that is left out.
    """
    more = {"without": dict(without)} if without else {}
    return fact(
        Kind.VERDICT,
        now_ms,
        run=run,
        round=number,
        base=base,
        state=state,
        verdict=word,
        change_ppm=change_ppm,
        limit_ppm=limit_ppm,
        **more,
    )


def worth_fact(
    now_ms: int,
    *,
    run: RunId,
    number: RoundNumber,
    state: Digest,
    updates: Mapping[str, tuple[Digest, int, int]],
    experts: Mapping[str, tuple[Digest, int, int]],
    dragging: Collection[str] = (),
) -> Record:
    """What the probe loss of the round's new `state` rises by, in ppm, without one update (``site/round``) or one expert.

    Before it the state without, whose measurements stand before this record; behind it the same of the part of the probe
    that it helps most. What nobody measured is not named. `dragging`: updates that hold the others up, where the charter asks.
    """
    more = {"dragging": sorted(dragging)} if dragging else {}
    return fact(
        Kind.WORTH,
        now_ms,
        run=run,
        round=number,
        state=state,
        updates={name: list(found) for name, found in updates.items()},
        experts={name: list(found) for name, found in experts.items()},
        **more,
    )


def finish_fact(now_ms: int, *, run: RunState, phase: str, reason: str) -> Record:
    return fact(
        Kind.FINISH,
        now_ms,
        run=run.run,
        phase=phase,
        reason=reason[:MESSAGE_CHARS_MAX],
        round=run.closed,
        state=run.state,
    )
