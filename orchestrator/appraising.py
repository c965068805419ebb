"""What single updates and experts are worth on the probe: the states without them, and what the sites' measurements say.

An update is left out when the round is combined. An expert is left out by weights of zero: it is routed to as before and says
nothing, in whatever family, and its states share one blob of zeros. With lean routing a site sees no experts but its own,
so only updates are appraised.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from commons.charter import Charter
from commons.codec import FRAME
from commons.experts.map import ExpertMap
from commons.names import Digest, ExpertId, RoundNumber, RunId, SiteId
from commons.records import Record
from commons.states import StateStore
from commons.verdict import change, change_of_part, dragging
from orchestrator.combine.walking import blocks
from orchestrator.facts import worth_fact
from orchestrator.progress import RoundState, RunState

Key = tuple[SiteId, RoundNumber]
"""Of an update: its site, and the round it is of."""
_ZEROS = np.zeros(FRAME, np.float32)


@dataclass(frozen=True)
class Appraisal:
    """The states without each update and each expert."""

    updates: tuple[tuple[Key, Digest], ...]
    experts: tuple[tuple[ExpertId, Digest], ...]

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(key for key, _ in self.updates)

    @property
    def states(self) -> tuple[Digest, ...]:
        return tuple(state for _, state in (*self.updates, *self.experts))

    def fact(self, now_ms: int, run: RunState, found: RoundState, charter: Charter, state: Digest) -> Record:
        """What the measurements of `state` and of these states so far come to."""
        named = [f"{site}/{number}" for site, number in self.keys]
        parts = [charter.part_of(site) for site, _ in self.keys]
        lefts = [left for _, left in self.updates]
        updates = _risen(run, charter, state, list(zip(named, parts, lefts, strict=True)))
        owners = {ExpertId(e): s.name for s in charter.sites for e in s.experts}
        worth = {key: updates[n][1] for key, n in zip(self.keys, named, strict=True) if n in updates}
        own = {key: updates[n][2] for key, n in zip(self.keys, named, strict=True) if n in updates}
        drags = dragging(worth, own, charter.rollback, run.appraised) if charter.rollback.on else []
        return worth_fact(
            now_ms,
            run=RunId(run.run),
            number=found.number,
            state=state,
            updates=updates,
            experts=_risen(
                run, charter, state, [(e, charter.part_of(owners[e]), left) for e, left in self.experts]
            ),
            dragging=[f"{site}/{number}" for site, number in drags],
        )


def due(charter: Charter, number: int) -> bool:
    """Whether round `number` is one in which updates and experts are appraised."""
    return charter.contribution.every > 0 and number % charter.contribution.every == 0


def updates_of(run: RunState, found: RoundState) -> list[Key]:
    """All that the round is combined of; none where it is of one alone."""
    late = [(site, number) for site, number in sorted(run.late.items())]
    all_of_it = [*((site, found.number) for site in sorted(found.admitted)), *late]
    return all_of_it if len(all_of_it) > 1 else []


def silent(store: StateStore, state: Digest, expert_map: ExpertMap, expert: ExpertId) -> Digest:
    """Save `state` with that expert's weights at zero. Raises StoreError."""
    blobs = store.manifest(state)
    with store.writer() as made:
        for part in expert_map.slices:
            if part.expert != expert:
                made.keep(part.name, replace(blobs[part.name], step=None))
                continue
            new = made.slice(part.name, part.shape)
            for _, count in blocks(part.size):
                new.write(_ZEROS[:count])
            new.close()
        return made.finish()


def _risen(
    run: RunState, charter: Charter, state: Digest, without: Iterable[tuple[str, int | None, Digest]]
) -> dict[str, tuple[Digest, int, int]]:
    probe, found = charter.probe.text, dict[str, tuple[Digest, int, int]]()
    whole = run.measured.losses(state, probe)
    for name, part, left in without:
        losses = run.measured.losses(left, probe)
        worth, own = change(whole, losses), change_of_part(whole, losses, part)
        if worth is not None and own is not None:
            found[name] = left, worth, own
    return found
