"""Every call of a whole run sent again, at once and long after, in any order: the journal does not change by a byte.

`CHANGES` says of each call that may write a record what of its answer must stay; a call of the wire that is in neither
`CHANGES` nor `READS` fails a test here, and so does a change that the story does not make.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.certificates import tls_keypair
from commons.charter import Charter
from commons.claims import ConvertNote, CountersignNote, DisputeNote, RulingNote
from commons.cosignature import Cosigner
from commons.errors import Code
from commons.identity import Seat
from commons.names import Digest
from commons.notes import parse
from commons.records import Kind
from commons.signed import text_digest
from commons.statement import StatementNote
from commons.statement_proof import StatementView
from commons.views import ProposalView
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from tests.support import consortium as support
from tests.support.consortium import NAME, SITES, FakeSite, Office, charter, enrol, found, signer
from tests.support.tape import TIMES, Change, Tape

RECEIPT = ("index", "leaf")
CHANGES = {
    "Enrolment/Enrol": Change(wire.EnrolReply, ("authority", "charter", "founding")),
    "SiteLink/Heartbeat": Change(wire.BeatReply),
    "SiteLink/Upload": Change(wire.UploadReply, ("index",)),
    "SiteLink/Evaluate": Change(wire.Receipt, RECEIPT),
    "SiteLink/TopUp": Change(wire.TopUpReply),
    "SiteLink/Cosign": Change(wire.CosignReply),
    "Chamber/Submit": Change(wire.Receipt, RECEIPT),
    "Operator/StartRun": Change(wire.StartRunReply, ("run",), frozenset({Code.RUN_EXISTS})),
    "Operator/StopRun": Change(wire.StopRunReply),
    "Operator/MakeRelease": Change(wire.ReleaseReply, ("digest",), frozenset({Code.REQUEST_INVALID})),
    "Operator/ReverseCharge": Change(wire.Receipt, RECEIPT),
}
READS = {
    "SiteLink/Work",  # says who is here, which is no record
    "SiteLink/Mask",  # what is said is kept beside the spool (test_masked_rounds says words twice)
    "SiteLink/UploadOffset",
    "SiteLink/Fetch",
    "SiteLink/Witness",
    "Chamber/Read",
    "Chamber/Watch",
    "Chamber/Chain",
}
REFUSED = {
    Code.USAGE_IMPLAUSIBLE,
    Code.REQUEST_INVALID,
    Code.REVERSAL_EXCEEDS_ORIGINAL,
    Code.EXCEEDS_HOLD,
}
"""The story's own refusals: a site that lies, another loss than before, more than was charged, more than a round can
cost."""
OF = charter(
    learning__rounds=3,
    witnesses={"quorum": 2},
    accounting={"charge_rejected_percent": 50},
    rate_card={
        "currency": "EUR",
        "rates": ({"device": "cpu", "micro_per_gflop": 3000, "micro_per_device_second": 10},),
    },
    grants=({"name": "pledge", "member": "birch", "unit": "device_ms:cpu", "amount": 50_000},),
)


@dataclass
class Still:
    """A clock that goes when it is told to: two runs of one story are then dated alike."""

    ms: int

    def now_ms(self) -> int:
        return self.ms


@dataclass
class Story:
    """A small run with everything in it that a caller can do, step by step. `rest` is called where nothing else moves."""

    folder: Path
    tape: Tape
    keys: Iterator[bytes]
    clock: Still
    rest: Callable[[Story], None] = lambda story: None
    of: Charter = OF
    sites: list[FakeSite] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.home = found(self.folder, self.of)
        self.coordinator = self._coordinator("127.0.0.1:0")

    def _coordinator(self, address: str, door: str | None = None) -> Coordinator:
        made = Coordinator(self.home, address, mlflow=NO_MLFLOW, enrolment=door, clock=self.clock)
        made.start()
        return made

    def restart(self) -> None:
        address, door = self.coordinator.address, self.coordinator.enrolment_address
        self.coordinator.stop()
        self.coordinator = self._coordinator(address, door)

    @property
    def leaves(self) -> list[bytes]:
        return [r.leaf for r in self.coordinator.desk.consortium.journal.records()]

    @property
    def kinds(self) -> list[Kind]:
        return [r.kind for r in self.coordinator.desk.consortium.journal.records()]

    def tell(self) -> list[bytes]:
        """All of it; the journal's leaves at the end."""
        self._join()
        self._vote()
        self.office.start_run(self.folder / "seed")
        self._train(1)
        self._refuse(2)
        self._train(2, but=("cedar",))
        self._train(3, wrong=("birch",))
        for site in self.sites:
            order = self._order(site, lambda order: order.work == "evaluate")
            site.evaluate(order)
            with pytest.raises(grpc.RpcError):
                site.evaluate(order, loss=9.0)
        _eventually(lambda: Kind.FINISH in self.kinds, "the end of the run")
        for name in ("out", "copy"):
            request = wire.ReleaseRequest(run="run-1", folder=str(self.folder / name))
            self.office.operator.MakeRelease(request)
        self._quarrel()
        self._close_books()
        self.office.start_run(self.folder / "seed", "run-2")
        self._order(self.sites[0], lambda order: order.run == "run-2")
        self.office.operator.StopRun(wire.StopRunRequest(run="run-2", reason="enough"))
        for nameless in (lambda: self.office.start_run(self.folder / "seed", ""), self._stop_nothing):
            with pytest.raises(grpc.RpcError):
                nameless()
        self._witness()
        self.rest(self)
        return self.leaves

    def close(self) -> None:
        for site in self.sites:
            site.close()
        self.coordinator.stop()

    def _stop_nothing(self) -> None:
        self.office.operator.StopRun(wire.StopRunRequest(reason="which?"))

    def _join(self) -> None:
        for name in SITES:
            enrol(self.coordinator, "member", name, self.folder / f"member-{name}")
        seats = [enrol(self.coordinator, "site", name, self.folder / f"site-{name}") for name in SITES]
        self.sites = [FakeSite(seat, self.of, silent=True).start() for seat in seats]
        _eventually(lambda: self.coordinator.desk.live.present() == set(SITES), "the sites' streams")
        self.office = Office(Seat.load(self.home / "operator"))
        self.rest(self)

    def _say(self, member: str, text: str) -> str:
        """A member's note; its digest."""
        note = signer(member).sign(text)
        self.office.chamber.Submit(wire.NoteRequest(note=note))
        return text_digest(parse(note))

    def _vote(self) -> None:
        wish = Proposal(
            NAME, "alder", "More steps", "inner-steps", {"steps": 5}, charter_file.digest(self.of), 2, "00" * 16
        )  # fmt: skip
        self._say("alder", wish.compose())
        reply = self.office.chamber.Read(wire.ReadRequest(view="proposal"))
        shown = ProposalView.model_validate_json(reply.json)
        ballots = (
            ("alder", "against", "11"),
            ("alder", "for", "22"),
            ("birch", "for", "33"),
            ("cedar", "for", "44"),
        )
        for voter, choice, nonce in ballots:
            ballot = Ballot(
                NAME, wish.id, Digest(shown.rules), Digest(shown.electorate_digest), voter, choice, nonce * 16,
                "2026-11-23T18:40:12Z",
            )  # fmt: skip
            self._say(voter, ballot.compose())
        self.rest(self)

    def _train(self, number: int, *, but: tuple[str, ...] = (), wrong: tuple[str, ...] = ()) -> None:
        orders = [self._order(site, lambda order: order.round == number) for site in self.sites]
        if number > 1:
            self._top_up(self.sites[0], orders[0])
        self.rest(self)
        steps = 4 if number == 1 else 5
        tokens = steps * self.of.learning.batch_size * self.of.learning.sequence_length
        at_ms = self.clock.ms + 10 * number
        work = {"started_ms": at_ms, "ended_ms": at_ms + 7, "steps": steps, "tokens": tokens}
        epoch = self.coordinator.desk.consortium.journal.epoch
        for site, order in zip(self.sites, orders, strict=True):
            if site.name in wrong:
                with pytest.raises(grpc.RpcError):
                    site.send(epoch, *site.pack(order, **work, gflop=10**9))
            elif site.name not in but:
                assert site.send(epoch, *site.pack(order, **work)) > 0
        _eventually(lambda: self.kinds.count(Kind.CLOSE) == number, f"the close of round {number}")

    def _top_up(self, site: FakeSite, order: AssignmentNote) -> None:
        ask = {"run": order.run, "round": order.round, "lease": order.lease}
        site.link.TopUp(wire.TopUpRequest(**ask, number=1, amount_micro=100), timeout=10)
        with pytest.raises(grpc.RpcError):
            site.link.TopUp(wire.TopUpRequest(**ask, number=2, amount_micro=10**9), timeout=10)

    def _refuse(self, number: int) -> None:
        cedar = self.sites[SITES.index("cedar")]
        cedar.beat("refused", self._order(cedar, lambda order: order.round == number), "policy forbids it")
        _eventually(lambda: self.kinds.count(Kind.REJECTION) == 1, "the rejection")

    def _quarrel(self) -> None:
        """Disputes with both ends, a pledge turned into money, charges taken back, and one that is not."""
        for number, outcome in ((1, "withdrawn"), (2, "conceded")):
            charge = {"transfer": f"settle/run-1/{number}/alder", "amount_micro": 100 + number}
            claim = DisputeNote(
                consortium=NAME,
                partner="alder",
                **charge,
                reason="metering_error",
                why="The meter was wrong.",
            )
            dispute = self._say("alder", claim.text)
            ruling = RulingNote(consortium=NAME, partner="alder", dispute=dispute, outcome=outcome)
            self._say("alder", ruling.text)
        turned = ConvertNote(
            consortium=NAME, partner="birch", device="cpu", amount_ms=12_345, nonce="55" * 16
        )
        self._say("birch", turned.text)
        wish = {"settle": "settle/run-1/1/birch", "reason": "duplicate"}
        self.office.operator.ReverseCharge(wire.ReverseChargeRequest(token="some", amount_micro=40, **wish))
        self.office.operator.ReverseCharge(wire.ReverseChargeRequest(token="rest", **wish))
        with pytest.raises(grpc.RpcError):
            self.office.operator.ReverseCharge(wire.ReverseChargeRequest(token="more", **wish))
        self.rest(self)

    def _close_books(self) -> None:
        """The month ends, and a member agrees with its statement."""
        self.clock.ms += 40 * 86_400_000
        self.coordinator.desk.bell.ring()
        _eventually(lambda: Kind.PERIOD in self.kinds, "the end of the period")
        reply = self.office.chamber.Read(wire.ReadRequest(view="statement", key="alder/last"))
        shown = parse(StatementView.model_validate_json(reply.json).statement.encode())
        said = StatementNote.from_note(shown)
        agreed = CountersignNote(
            consortium=NAME, partner="alder", period=said.period, statement=text_digest(shown)
        )
        self._say("alder", agreed.text)
        self.rest(self)

    def _witness(self) -> None:
        """Two sites cosign the newest checkpoint."""
        journal = self.coordinator.desk.consortium.journal
        for site in self.sites[:2]:
            offers = site.link.Witness(wire.WitnessRequest(size=0))
            offer = next(o for o in offers if parse(o.checkpoint).text == parse(journal.checkpoint()).text)
            offers.cancel()
            line = Cosigner(site.signer).cosign(parse(offer.checkpoint).text, self.clock.ms // 1000)
            site.link.Cosign(wire.CosignRequest(size=journal.size, line=line), timeout=10)
        assert parse(journal.published()).text == parse(journal.checkpoint()).text

    def _order(self, site: FakeSite, wanted: Callable[[AssignmentNote], bool]) -> AssignmentNote:
        _eventually(lambda: bool(site.orders) and wanted(site.orders[-1]), f"the order of site {site.name}")
        return site.orders[-1]


def _eventually(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.005)


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Story]]:
    """Tells of the same keys and the same time, however often."""
    keys, began_ms, told = [tls_keypair() for _ in range(2 * len(SITES))], time.time_ns() // 1_000_000, []
    real = {name: getattr(channel, name) for name in ("connect", "connect_for_enrolment")}

    def begin(times: int = 1, **more: Any) -> Story:
        tape = Tape(CHANGES, times)
        made = Story(tmp_path / str(len(told)), tape, iter(keys), Still(began_ms), **more)
        told.append(made)
        for name, connect in real.items():
            monkeypatch.setattr(channel, name, lambda *about, connect=connect: tape.on(connect(*about)))
        monkeypatch.setattr(support, "tls_keypair", lambda: next(made.keys))
        return made

    yield begin
    for made in told:
        made.close()


def test_every_call_of_the_wire_is_either_sent_again_here_or_changes_nothing() -> None:
    services = wire.DESCRIPTOR.services_by_name.values()
    calls = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert calls == CHANGES.keys() | READS, "a new call is in neither table, or one is in a table and gone"
    assert not CHANGES.keys() & READS


def test_a_story_is_told_twice_in_the_same_bytes_and_makes_every_change(story: Any) -> None:
    told = story()
    assert told.tell() == story().tell()
    assert {sent.method for sent, _ in told.tape.sent} == CHANGES.keys(), (
        "a change that the story does not make"
    )
    assert told.kinds.count(Kind.RELEASE) == 1, "the same release in two folders is one record"
    assert {answer for _, answer in told.tape.sent if isinstance(answer, Code)} == REFUSED


def test_every_call_sent_three_times_at_once_is_one_call(story: Any) -> None:
    assert story(TIMES).tell() == story().tell()


@pytest.mark.parametrize("seed", range(4))
def test_everything_sent_three_times_again_in_any_order_changes_nothing(story: Any, seed: int) -> None:
    """At every rest of the run, at its end, and after the coordinator came back."""

    def again(told: Story) -> None:
        journal = told.coordinator.desk.consortium.journal
        leaves, published = told.leaves, journal.published()
        told.tape.replay(seed)
        assert (told.leaves, journal.published()) == (leaves, published)

    told = story(rest=again)
    leaves = told.tell()
    told.restart()
    again(told)
    assert told.leaves == leaves == story().tell()
    assert told.coordinator.desk.consortium.journal.verify() == []
