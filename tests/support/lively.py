"""A consortium in which much has happened, for whoever looks at it: rounds with losses and routed tokens, a site that
failed once, votes in several states, a sponsor, a dispute. Its sites only pretend to train."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.claims import DisputeNote
from commons.names import Digest, ProposalId
from commons.updates import lay_out
from commons.views import ProposalView
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote, routed_text
from tests.contract.test_budget import Bank
from tests.support.consortium import NAME, SITES, FakeSite, charter, over, signer

START_LOSS, LAST_LOSS = 5.2, 1.9
SLOW = {"type": "config.patch", "window_s": 86_400, "delay_s": 3_600}


@dataclass
class Worker(FakeSite):
    """Tells losses that fall and tokens that go mostly to its own experts; takes `pace_s` for a round, more or less."""

    pace_s: float = 0.0
    fails_in: int = 0
    """The round in which its update is no number."""

    def upload(self, epoch: int, order: AssignmentNote, **changes: Any) -> int:
        draw = hashlib.sha256(f"{self.name}/{order.round}".encode()).digest()
        begun_ms = time.time_ns() // 1_000_000
        self._work(order, self.pace_s * (0.6 + draw[0] / 256))
        said = {
            "loss": self._loss(order, 0.0) + draw[1] / 2000,
            "held_out_loss": self._loss(order, 0.06) + draw[2] / 4000,
            "routed": self._routed(order, draw),
            "started_ms": max(begun_ms + round(80 * self.pace_s), self.ended_ms),
            "ended_ms": max(time.time_ns() // 1_000_000 - round(60 * self.pace_s), self.ended_ms),
        }
        if order.round == self.fails_in:
            said["lay_out"] = lambda deltas: lay_out(
                (name, "fp32", delta.shape, np.full(delta.shape, np.nan, "<f4").tobytes())
                for name, delta in deltas.items()
            )
        return super().upload(epoch, order, **{**said, **changes})

    def _work(self, order: AssignmentNote, takes_s: float) -> None:
        steps = self.of.learning.inner_steps
        for step in range(1, steps + 1) if takes_s else ():
            beat = wire.Beat(
                run=order.run, round=order.round, state="training", step=step, steps=steps,
                loss=self._loss(order, 0.0), tokens_per_s=9_000 + 40 * step, bytes_up=order.round * 40_332,
                bytes_down=order.round * 52_112,
            )  # fmt: skip
            self.link.Heartbeat(beat, timeout=10)
            time.sleep(takes_s / steps)

    def _loss(self, order: AssignmentNote, more: float) -> float:
        hardness = 1 + (hashlib.sha256(self.name.encode()).digest()[0] - 128) / 1000
        return hardness * (LAST_LOSS + (START_LOSS - LAST_LOSS) * 0.72**order.round) + more

    def _routed(self, order: AssignmentNote, draw: bytes) -> str:
        charter = self.charter(order)
        own = charter.site(self.name)
        assert own is not None
        others = max(1, len(charter.experts) - len(own.experts))
        experts = {
            e: (240 // len(own.experts) if e in own.experts else 80 // others) + draw[n % 30] // (4 * others)
            for n, e in enumerate(charter.experts)
        }
        return routed_text(experts)

    def evaluate(self, order: AssignmentNote, loss: float = 0.0) -> int:
        return super().evaluate(order, loss or self._loss(order, 0.05))


def lively_charter(**changes: Any) -> Charter:
    """Three members whose sites have two experts each; alder pays for cedar's."""
    sites = tuple(
        s.model_dump()
        | {"experts": (f"{s.name}-0", f"{s.name}-1"), "payer": "alder" if s.name == "cedar" else s.name}
        for s in charter().sites
    )
    card = {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 21_500},)}
    defaults = {
        "sites": sites, "rate_card": card, "learning__rounds": 9, "learning__inner_steps": 8,
        "voting": {"window_s": 86_400, "rules": (SLOW,), "officers": ("cedar",)},
    }  # fmt: skip
    return charter(**{**defaults, **changes})


class Lively(Bank):
    def __init__(
        self, folder: Path, of: Charter | None = None, *, pace_s: float = 0.0, **options: Any
    ) -> None:
        super().__init__(folder, of or lively_charter(), **options)
        self._pace_s = pace_s

    def work(self, names: Sequence[str] = SITES, *, fails: str = "birch", fails_in: int = 3) -> None:
        for name in names:
            failing = fails_in if name == fails else 0
            worker = Worker(self.seats[name], self.of, pace_s=self._pace_s, fails_in=failing)
            self.sites.append(worker.start())

    def vote_for(self, view: ProposalView, voter: str, choice: str = "for") -> None:
        ballot = Ballot(
            NAME, ProposalId(view.id), Digest(view.rules), Digest(view.electorate_digest), voter, choice,  # type: ignore[arg-type]
            secrets.token_hex(16), "2026-11-23T18:40:12Z",
        )  # fmt: skip
        self.submit(signer(voter).sign(ballot.compose()))

    def propose_as(self, who: str, title: str, feature: str, **parameters: Any) -> ProposalView:
        base = charter_file.digest(self.coordinator.desk.consortium.charter)
        wish = Proposal(NAME, who, title, feature, parameters, base, 1, secrets.token_hex(16))
        self.submit(signer(who).sign(wish.compose()))
        reply = self.office.chamber.Read(wire.ReadRequest(view="proposal", key=wish.id))
        return ProposalView.model_validate_json(reply.json)

    def dispute(self, why: str) -> None:
        note = DisputeNote(
            consortium=NAME, partner="birch", transfer="settle/run-1/1/birch", amount_micro=5000,
            reason="hardware_fault", why=why,
        )  # fmt: skip
        self.submit(signer("birch").sign(note.text))

    def live_through(self, why: str = "Two devices had failed & were charged all the same.") -> None:
        """A run from its first round to its end, with votes before, beside and after."""
        self.enact("grant", name="spring", member="birch", amount=2_000_000)
        self.work()
        self.start_run()
        self.office.wait(over, 120)
        self.dispute(why)
        active = self.propose_as(
            "alder", "Half the bytes for experts", "grant", name="summer", member="cedar", amount=10**6
        )
        self.vote_for(active, "alder")
        self.propose_as("cedar", "Longer rounds, fewer of them", "inner-steps", steps=16)
        self.propose_as("birch", "What comes next?", "roadmap", candidates=["fp8", "lean", "int4"])


@contextmanager
def lively(folder: Path, of: Charter | None = None, *, pace_s: float = 0.0) -> Iterator[Lively]:
    stage = Lively(folder, of, pace_s=pace_s)
    try:
        yield stage
    finally:
        stage.close()
