"""What the coordinator's threads share: the consortium, the views of runs and sites, the stores."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from commons.charter import Charter
from commons.errors import Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.names import RunId, SiteId
from commons.notes import Signer
from commons.states import StateStore
from governance.bell import Bell
from governance.consortium import Consortium
from orchestrator.late import too_late
from orchestrator.live import Live
from orchestrator.masking import Masking
from orchestrator.probing import Probing
from orchestrator.progress import RoundState, Runs, RunState
from orchestrator.spool import Spool


@dataclass(frozen=True)
class Desk:
    """`runs` may only be read while holding `consortium.lock`, as every view."""

    consortium: Consortium
    runs: Runs
    live: Live
    store: StateStore
    spool: Spool
    signer: Signer
    """The log key: signs assignments and releases."""
    bell: Bell
    """Rings for every record, and when a site comes, goes or refuses."""
    tokenizer: Path | None = None
    """The charter's tokenizer.json, where it names one: sites fetch it, releases carry it."""
    masking: Masking = field(default_factory=Masking)
    probing: Probing = field(default_factory=Probing)
    stopping: threading.Event = field(default_factory=threading.Event)
    _maps: dict[int, ExpertMap] = field(default_factory=dict, repr=False)

    def expert_map(self, version: int) -> ExpertMap:
        """The expert map of that charter version, computed once. Call it while holding the lock."""
        if version not in self._maps:
            self._maps[version] = ExpertMap.from_charter(self.consortium.members.charters[version])
        return self._maps[version]

    def exchange(self, found: RoundState) -> Exchange:
        """What that round moves. Call it while holding the lock."""
        version = found.charter_version
        learning = self.consortium.members.charters[version].learning
        return Exchange(self.expert_map(version), learning, found.number)

    def charter_of_next(self, run: RunState) -> Charter:
        """Of the round that is open, or opens next as things are. Call it while holding the lock."""
        opened, charters = run.open_round, self.consortium.members.charters
        return charters[opened.charter_version] if opened else self.consortium.charter

    def too_late(self, run: RunState, site: SiteId, into: int, now_ms: int) -> Refusal | None:
        """Why the update that `site` is carried for can count in round `into` no more. Call it while holding the lock."""
        own = self.consortium.members.charters[run.history[run.carried[site] - 1].charter_version]
        return too_late(run, site, into, own, self.charter_of_next(run), now_ms)

    def open_round(self, run: RunId) -> tuple[RunState, RoundState] | None:
        """The run's open round; None when there is none or the run is over."""
        found = self.runs.by_id[run]
        opened = found.open_round
        return (found, opened) if opened and not found.finished else None
