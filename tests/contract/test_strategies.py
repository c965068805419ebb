"""From strategy to strategy by votes, within one run: over real gRPC, to the end, and through a coordinator's death."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.codec import encode
from commons.errors import Code
from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Kind
from commons.learning import Since
from commons.names import Digest, ProposalId, SiteId
from commons.notes import parse
from commons.records import Kind as Records
from commons.updates import lay_out
from commons.views import ProposalView
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import UpdateNote
from governance.fsck import judge
from orchestrator.intake import payload_bytes
from tests.contract.test_budget import Bank
from tests.contract.test_services import eventually, refused
from tests.support.consortium import NAME, SITES, charter, over, signer
from tests.support.real_sites import STEP, RealStage

MAP = ExpertMap.from_charter(charter())
ALL = {s.name for s in MAP.slices}
TRUNK = {s.name for s in MAP.shared() if s.kind is not Kind.ROUTER}
BIAS = next(s.name for s in MAP.slices if s.kind is Kind.ROUTER and len(s.shape) == 1)
EXPERTS = {s.name for s in MAP.slices if s.kind is Kind.EXPERT}
VOTES: dict[int, tuple[tuple[str, dict[str, Any]], ...]] = {
    1: (("strategy", {"strategy": "diloco"}), ("inner-steps", {"steps": 3})),
    2: (("strategy", {"strategy": "sovereign", "routing": "lean"}),),
    3: (("strategy", {"strategy": "branch_mix", "routing": "joint"}),),
    4: (("balancing", {"rate": 0.25}),),
}
"""Round -> what is voted on while it is open; law from the next on. One more round follows."""
MOVED = {1: ALL, 2: ALL, 3: ALL - TRUNK, 4: set[str](), 5: ALL}


class Voting:
    """Members who vote for the round's proposals as soon as its first site begins to train."""

    def __init__(self) -> None:
        self.stage: RealStage | None = None
        self._turn, self._done = threading.Lock(), set[int]()

    def __call__(self, number: int) -> None:
        with self._turn:
            if number in self._done or self.stage is None:
                return
            self._done.add(number)
            for feature, parameters in VOTES.get(number, ()):
                self._enact(self.stage, feature, parameters, number + 1)

    def _enact(self, stage: RealStage, feature: str, parameters: dict[str, Any], at: int) -> None:
        in_force = stage.coordinator.desk.consortium.charter
        wish = Proposal(
            NAME, "alder", feature, feature, parameters, charter_file.digest(in_force), at, "00" * 16
        )
        self._submit(stage, signer("alder").sign(wish.compose()))
        reply = stage.office.chamber.Read(wire.ReadRequest(view="proposal", key=wish.id))
        view = ProposalView.model_validate_json(reply.json)
        for voter in SITES:
            ballot = Ballot(
                NAME, ProposalId(view.id), Digest(view.rules), Digest(view.electorate_digest), voter, "for", "11" * 16,
                "2026-11-23T18:40:12Z",
            )  # fmt: skip
            self._submit(stage, signer(voter).sign(ballot.compose()))

    def _submit(self, stage: RealStage, note: bytes) -> None:
        stage.office.chamber.Submit(wire.NoteRequest(note=note), timeout=10)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[RealStage]:
    voting = Voting()
    voting.stage = made = RealStage(
        tmp_path,
        charter(learning__rounds=5, rounds={"quorum": 3, "grace_s": 1, "lease_s": 60}),
        before=voting,
    )
    yield made
    made.close()


def test_a_run_goes_through_all_strategies_and_every_round_moves_what_its_strategy_says(
    stage: RealStage,
) -> None:
    stage.office.start_run(stage.folder / "seed")
    view = stage.office.wait(over, 60)
    assert (view.phase, view.round) == ("finished", 5), view.reason
    assert [site.trainer.rounds for site in stage.sites] == [[1, 2, 3, 4, 5]] * 3
    assert judge(stage.records) == ()
    charters = stage.coordinator.desk.consortium.members.charters
    assert charters[3].learning.since == Since(run="run-1", round=2, step=4)

    closes = [r.facts for r in stage.records if r.kind is Records.CLOSE]
    notes = [UpdateNote.from_note(parse(r.body)) for r in stage.records if r.kind is Records.UPDATE]
    store = stage.coordinator.desk.store
    for number, closed in enumerate(closes, start=1):
        version = view.history[number - 1].charter_version
        of = charters[version]
        moves = Exchange(MAP, of.learning, number)
        assert of.learning.steps_in(number) == (4 if number == 1 else 3)
        for note in (n for n in notes if n.round == number):
            assert note.payload_bytes == payload_bytes(moves.uplink(SiteId(note.site)), of, number)
            assert note.steps == of.learning.steps_in(number)
        if number == len(closes):  # older states are gone
            base, state = store.load(closed["base"]), store.load(closed["state"])
            assert {n for n in ALL if not np.array_equal(base[n], state[n])} == MOVED[number]
            for name in MOVED[number]:
                # The first two of three experts had all the tokens.
                nudge = np.array([-0.25, -0.25, 0.25], np.float32) if name == BIAS else np.float32(0)
                np.testing.assert_allclose(state[name], base[name] + np.float32(STEP) + nudge, atol=1e-5)
    sizes = {number: sum(n.payload_bytes for n in notes if n.round == number) for number in range(1, 6)}
    assert sizes[4] == 0 < sizes[3] < sizes[1] == sizes[5] < sizes[2]


@pytest.fixture
def bank_of(tmp_path: Path) -> Iterator[Callable[..., Bank]]:
    banks: list[Bank] = []

    def make(of: Charter) -> Bank:
        banks.append(Bank(tmp_path, of))
        return banks[-1]

    yield make
    for bank in banks:
        bank.close()


def test_a_coordinator_that_dies_in_a_round_of_copies_goes_on_with_it(bank_of: Callable[..., Bank]) -> None:
    bank = bank_of(charter(learning__strategy="diloco", rounds={"quorum": 3, "grace_s": 20, "lease_s": 60}))
    bank.gather()
    bank.start_run()
    bank.begun(1)
    for site in bank.sites[:2]:
        eventually(lambda site=site: bool(site.orders))  # type: ignore[misc]
        site.upload(bank.coordinator.desk.consortium.journal.epoch, site.orders[-1])
    bank.restart()
    bank.sites.clear()
    bank.gather()
    last = bank.sites[2]
    eventually(lambda: bool(last.orders))
    last.upload(bank.coordinator.desk.consortium.journal.epoch, last.orders[-1])
    eventually(lambda: bank.office.run().history[0].closed_ms is not None)
    closed = bank.office.run().history[0]
    assert set(closed.contributors) == set(SITES)
    store = bank.coordinator.desk.store
    base, state = store.load(Digest(closed.base)), store.load(Digest(closed.state))
    assert all(not np.array_equal(base[name], state[name]) for name in EXPERTS)


def test_a_slice_that_the_strategy_leaves_alone_is_refused_and_recorded(bank_of: Callable[..., Bank]) -> None:
    bank = bank_of(charter(learning__strategy="sovereign", learning__routing="lean"))
    bank.gather()
    bank.start_run()
    bank.begun(1)
    alder = bank.sites[0]
    eventually(lambda: bool(alder.orders))

    def with_norm(deltas: dict[str, np.ndarray]) -> Any:
        shape = next(s.shape for s in MAP.slices if s.name == "model.norm.weight")
        more = deltas | {"model.norm.weight": np.zeros(shape, np.float32)}
        return lay_out((n, "fp32", d.shape, encode("fp32", d)) for n, d in more.items())

    epoch = bank.coordinator.desk.consortium.journal.epoch
    assert (
        refused(lambda: alder.upload(epoch, alder.orders[-1], lay_out=with_norm)) is Code.EXPERT_MAP_MISMATCH
    )
    eventually(lambda: "alder" in bank.office.run().history[0].rejected)
