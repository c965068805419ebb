"""What a run's sites measured of its states on the probe, and how the rounds before changed it: a view of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field

from commons.names import Digest, SiteId
from commons.verdict import RECENT
from commons.work import ProbeNote


@dataclass
class Measured:
    _notes: dict[Digest, dict[SiteId, tuple[int, ProbeNote]]] = field(default_factory=dict)
    """State -> site -> journal index and note, the last by a site for each state."""
    changes: tuple[int, ...] = ()
    """Of rounds whose state was taken, in ppm, oldest first; the most recent ones."""

    def take(self, index: int, note: ProbeNote) -> None:
        self._notes.setdefault(Digest(note.state), {})[SiteId(note.site)] = (index, note)

    def note(self, state: Digest, probe: str, site: SiteId) -> tuple[int, ProbeNote] | None:
        """The site's measurement of that state on that probe, and where it stands."""
        found = self._notes.get(state, {}).get(site)
        return found if found and found[1].probe == probe else None

    def losses(self, state: Digest, probe: str) -> dict[str, tuple[float, ...]]:
        """Site -> losses of that state on the parts of that probe."""
        found = self._notes.get(state, {})
        return {str(site): note.losses for site, (_, note) in sorted(found.items()) if note.probe == probe}

    def typical(self, state: Digest) -> float | None:
        """The lower median of what sites measured; None where nobody did."""
        found = sorted(note.loss for _, note in self._notes.get(state, {}).values())
        return found[(len(found) - 1) // 2] if found else None

    def judged(self, word: str, change_ppm: int | None) -> None:
        if word in ("good", "measured") and change_ppm is not None:
            self.changes = (*self.changes, change_ppm)[-RECENT:]

    def keep(self, state: Digest) -> None:
        """A round is closed with that state: what was measured of others is asked no more."""
        self._notes = {state: self._notes[state]} if state in self._notes else {}
