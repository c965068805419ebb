"""A consortium that has something to show: a run that is over, votes that are over, votes that are open, a release.

Coordinator, sites and dashboards are real; only the training is pretended.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commons import charter_file
from commons.ballots import Ballot, Choice, Proposal
from commons.identity import save_signer
from commons.names import Digest, ProposalId
from commons.views import ProposalView
from commons.wire.v1 import consortium_pb2 as wire
from hansa.joining import join_as_member
from tests.support.consortium import NAME, SITES, charter, over, signer
from tests.support.real_sites import RealStage

ROOT = Path(__file__).parents[2]
READY_S = 60.0
OPEN_TITLE = "Half the steps <script>document.title = 'owned'</script>"
"""Of the open proposal: whoever proposes writes what they like."""


class Dashboard:
    """`hansa dashboard` as a process of its own."""

    def __init__(self, seat: Path, log: Path, *words: str) -> None:
        command = [sys.executable, "-m", "hansa", "dashboard", "--seat", str(seat), "--json", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
            )
        self._links: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._ready: str | None = None

    def link(self) -> str:
        """A link that signs in, once. Asked again before that one is used: waits for it."""
        try:
            return self._links.get(timeout=READY_S)
        except queue.Empty:
            raise AssertionError(f"the dashboard gave no link:\n{self._log.read_text()[-4000:]}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._links.put(json.loads(line)["url"])


class Shown:
    """The consortium, with one dashboard for each seat that a test asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._executed = False
        of = charter(
            learning__rounds=3, voting={"window_s": 86_400}, rounds={"quorum": 3, "grace_s": 1, "lease_s": 60}
        )
        self._turn = threading.Lock()
        self._stage: RealStage | None = None
        self._stage = self.stage = RealStage(folder / "consortium", of, before=self._vote_once)
        self._dashboards: dict[str, Dashboard] = {}
        self.stage.office.start_run(self.stage.folder / "seed")
        view = self.stage.office.wait(over, 60)
        assert view.phase == "finished", view.reason
        request = wire.ReleaseRequest(run="", folder=str(folder / "release"))
        self.stage.office.operator.MakeRelease(request, timeout=60)
        self.open = self.propose("inner-steps", OPEN_TITLE, steps=2)
        self.vote(self.open, "against", "birch")
        self.roadmap = self.propose("roadmap", "What next?", candidates=["fp8", "lean", "int4"])

    def seat(self, name: str) -> Path:
        """A member's, with its key for signing; or the `operator`'s."""
        if name == "operator":
            return self.stage.home / "operator"
        folder = self.folder / f"seat-{name}"
        if not folder.exists():
            save_signer(self.key(name), signer(name))
            join_as_member(self.stage.home / "invites" / f"member-{name}.invite", self.key(name), folder)
        return folder

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def dashboard(self, name: str = "alder") -> Dashboard:
        """Of that seat; the same one each time."""
        if name not in self._dashboards:
            self._dashboards[name] = Dashboard(self.seat(name), self.folder / f"dashboard-{name}.log")
        return self._dashboards[name]

    def propose(
        self, feature: str, title: str, *, at: int = 1, by: str = "alder", **parameters: Any
    ) -> ProposalView:
        in_force = charter_file.digest(self.stage.coordinator.desk.consortium.charter)
        wish = Proposal(NAME, by, title, feature, parameters, in_force, at, os.urandom(16).hex())
        self.submit(signer(by).sign(wish.compose()))
        return self.proposal(wish.id)

    def vote(self, view: ProposalView, choice: Choice, *voters: str) -> None:
        for voter in voters:
            ballot = Ballot(
                NAME, ProposalId(view.id), Digest(view.rules), Digest(view.electorate_digest), voter, choice,
                os.urandom(16).hex(), "2026-11-23T18:40:12Z",
            )  # fmt: skip
            self.submit(signer(voter).sign(ballot.compose()))

    def proposal(self, key: str) -> ProposalView:
        reply = self.stage.office.chamber.Read(wire.ReadRequest(view="proposal", key=key), timeout=10)
        return ProposalView.model_validate_json(reply.json)

    def submit(self, note: bytes) -> int:
        return int(self.stage.office.chamber.Submit(wire.NoteRequest(note=note), timeout=10).index)

    def close(self) -> None:
        for dashboard in self._dashboards.values():
            dashboard.close()
        self.stage.close()

    def _vote_once(self, number: int) -> None:
        """In the first round: what is in force from the second on, and what is voted down."""
        with self._turn:
            if self._stage is None or self._executed:
                return
            self._executed = True
            self.vote(self.propose("inner-steps", "Fewer steps", at=2, steps=3), "for", *SITES)
            self.vote(self.propose("inner-steps", "Many steps", at=2, steps=40), "against", *SITES)


@contextmanager
def consortium(folder: Path) -> Iterator[Shown]:
    shown = Shown(folder)
    try:
        yield shown
    finally:
        shown.close()
