"""Sites witness the journal on real gRPC over loopback, and train on nothing that too few of them have seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.chain import VerifiedCharter
from commons.cosignature import Cosignatory, Cosigner, cosigned
from commons.errors import Code, Refusal, Refused
from commons.identity import Seat
from commons.log import Checkpoint
from commons.names import Digest
from commons.notes import parse
from commons.records import Kind, Record, fact
from commons.views import JournalView
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import SiteLinkStub
from governance import service
from orchestrator import outsiders
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from tests.support.consortium import (
    NAME,
    SITES,
    Office,
    charter,
    enrol,
    found,
    moved,
    running,
    signer,
    started,
)
from tests.support.site_process import one_site, write_site
from tests.support.witnesses import Watcher, eventually, outsider
from workers import site_file
from workers.site import verify_site

LOG = signer(NAME).verifier
ALL = [Cosignatory.of(signer(f"{s}/{s}").verifier) for s in SITES]


def refused_transfer(now_ms: int, text: str) -> Record:
    """A record that changes nothing else."""
    return fact(Kind.REFUSED, now_ms, id=text, code="exceeds_budget", message="for a test")


class Stage:
    """A running coordinator with seats for all sites; they come and go as a test tells them."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.home = found(folder, charter(**changes))
        self.coordinator = started(self.home)
        self.seats = {s: enrol(self.coordinator, "site", s, folder / s / "seat") for s in SITES}
        self.watchers: list[Watcher] = []

    @property
    def journal(self) -> Any:
        return self.coordinator.desk.consortium.journal

    def watcher(self, site: str, seat: Seat | None = None, **options: Any) -> Watcher:
        self.watchers.append(Watcher(seat or self.seats[site], self.folder / site / "state", **options))
        return self.watchers[-1]

    def grow(self, text: str = "x") -> int:
        """One record more; the journal's size."""
        consortium = self.coordinator.desk.consortium
        consortium.commit(lambda now_ms: [refused_transfer(now_ms, text)])
        return int(consortium.size)

    def published(self) -> tuple[Checkpoint, set[str]]:
        """The published checkpoint in the journal and who cosigned it."""
        note = self.journal.published()
        if not note:
            return Checkpoint(NAME, 0, b""), set()
        checkpoint, seen = cosigned(note, LOG, ALL)
        return checkpoint, set(seen)

    def covered(self) -> bool:
        return bool(self.published()[0].size == self.journal.size)

    def restart(self) -> None:
        address, door = self.coordinator.address, self.coordinator.enrolment_address
        self.coordinator.stop()
        self.coordinator = Coordinator(self.home, address, mlflow=NO_MLFLOW, enrolment=door)
        self.coordinator.start()

    def view(self) -> JournalView:
        office = Office(Seat.load(self.home / "operator"))
        reply = office.chamber.Read(wire.ReadRequest(view="journal"), timeout=10)
        office.close()
        return JournalView.model_validate_json(reply.json)

    def close(self) -> None:
        for watcher in self.watchers:
            watcher.close()
        self.coordinator.stop()


@pytest.fixture
def stage_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []
    monkeypatch.setattr(service, "WITNESSES_WAIT_S", 0.3)
    monkeypatch.setattr(outsiders, "PAUSE_S", 0.05)

    def make(**changes: Any) -> Stage:
        stages.append(Stage(tmp_path, **changes))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def refusal_of(call: Callable[[], object]) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    refusal = channel.as_refusal(caught.value)
    assert refusal is not None, caught.value
    return refusal


def test_what_enough_sites_have_seen_is_published_and_believed(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 2})
    alder, birch = stage.watcher("alder"), stage.watcher("birch")
    for n in range(3):
        stage.grow(str(n))
        eventually(stage.covered)
    checkpoint, seen = stage.published()
    assert (checkpoint.root, seen) == (stage.journal.root(), {"alder/alder", "birch/birch"})
    for site in (alder, birch):
        verified = site.verify()
        assert isinstance(verified, VerifiedCharter), verified
        assert "7 witnesses: cosigned by" in verified.steps[-1]
        assert site.witness.size == checkpoint.size
    view = stage.view()
    assert (view.published.encode().startswith(checkpoint.text.encode()), view.unwitnessed_since_ms) == (
        True,
        None,
    )


def test_the_published_checkpoint_outlives_the_coordinator(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 2})
    alder = stage.watcher("alder")
    birch = stage.watcher("birch")
    eventually(stage.covered)
    for site in (alder, birch):
        site.close()
    stage.restart()
    again = stage.watcher("alder", cosigns=False)
    assert isinstance(again.verify(), VerifiedCharter)


def test_a_site_says_who_is_missing_until_enough_are_there(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 2})
    alder = stage.watcher("alder")
    eventually(lambda: alder.witness.size == stage.journal.size)
    refusal = alder.verify()
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.details) == (Code.PROOF_INVALID, {"step": 7, "lacks": 1})
    assert "step 7 witnesses: 1 of the 2 witnesses" in refusal.message
    assert "(alder/alder); missing are birch/birch, cedar/cedar;" in refusal.message
    assert stage.view().unwitnessed_since_ms is not None
    stage.watcher("birch")
    eventually(stage.covered)
    assert isinstance(alder.verify(), VerifiedCharter)


def test_without_a_quorum_nothing_is_offered_and_nothing_waits(stage_of: Any) -> None:
    stage = stage_of()
    alder = stage.watcher("alder")
    stage.grow()
    verified = alder.verify()
    assert isinstance(verified, VerifiedCharter)
    assert verified.steps[-1] == "7 witnesses: the charter asks for none"
    assert (alder.witness.size, stage.journal.published()) == (0, b"")
    assert (stage.view().published, stage.view().unwitnessed_since_ms) == ("", None)


def test_a_vote_for_a_quorum_holds_from_its_execution_on(stage_of: Any) -> None:
    stage = stage_of()
    alder = stage.watcher("alder")
    assert isinstance(alder.verify(), VerifiedCharter)
    consortium, of = stage.coordinator.desk.consortium, charter()
    wish = Proposal(
        NAME, "alder", "Two shall have seen it", "witnesses", {"quorum": 2}, charter_file.digest(of), 2, "00" * 16
    )  # fmt: skip

    def submit(note: bytes) -> None:
        consortium.commit(lambda ms: consortium.proposals.decide_submit(note, consortium.charter, ms))

    submit(signer("alder").sign(wish.compose()))
    shown = consortium.proposals.views()[-1]
    for voter in SITES:
        ballot = Ballot(
            NAME, wish.id, Digest(shown.rules), Digest(shown.electorate_digest), voter, "for", "11" * 16,
            "2026-11-23T18:40:12Z",
        )  # fmt: skip
        submit(signer(voter).sign(ballot.compose()))
    consortium.commit(consortium.proposals.decide_close)
    assert isinstance(alder.verify(), VerifiedCharter)
    consortium.commit(lambda ms: consortium.proposals.decide_execute(consortium.charter, 2, ms))
    assert consortium.charter.witnesses.quorum == 2
    refusal = alder.verify()
    assert isinstance(refusal, Refusal) and refusal.details["lacks"] == 1
    stage.watcher("birch")
    eventually(stage.covered)
    verified = alder.verify()
    assert isinstance(verified, VerifiedCharter)
    assert (verified.version, verified.steps[-1][:24]) == (2, "7 witnesses: cosigned by")


def test_a_site_that_was_killed_and_a_coordinator_that_was_go_on_where_they_were(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 3})
    for name in SITES:
        stage.watcher(name)
    eventually(stage.covered)
    stage.watchers[0].close()
    size = stage.grow()
    assert stage.published()[0].size < size
    stage.restart()
    stage.watcher("alder")
    eventually(stage.covered)
    assert stage.published()[1] == {c.name for c in ALL}


def forked(stage: Stage) -> Coordinator:
    """A second coordinator with the same keys on a copy of the home as it is now; the first one goes on."""
    address = stage.coordinator.address
    stage.coordinator.stop()
    other = stage.folder / "fork"
    shutil.copytree(stage.home, other)
    stage.coordinator = Coordinator(stage.home, address, mlflow=NO_MLFLOW, enrolment="127.0.0.1:0")
    stage.coordinator.start()
    coordinator = Coordinator(other, "127.0.0.1:0", mlflow=NO_MLFLOW)
    coordinator.start()
    return coordinator


@pytest.mark.parametrize("further", [0, 3])
def test_a_coordinator_of_two_histories_gets_no_second_cosignature(stage_of: Any, further: int) -> None:
    stage = stage_of(witnesses={"quorum": 2})
    other = forked(stage)
    try:
        alder, birch = stage.watcher("alder"), stage.watcher("birch")
        stage.grow("what two sites are shown")
        eventually(stage.covered)
        assert isinstance(alder.verify(), VerifiedCharter)
        for site in (alder, birch):
            site.close()
        for n in range(1 + further):
            commit(other, f"what they are shown next {n}")
        names = ("alder", "birch")
        shown = [stage.watcher(name, moved(stage.seats[name], other.address)) for name in names]
        eventually(lambda: all(site.witness.fork for site in shown))
        assert other.desk.consortium.journal.published() == b""
        for site in shown:
            refusal = site.verify()
            assert isinstance(refusal, Refusal), "trained on a second history"
            assert refusal.code in (Code.LOG_FORKED, Code.PROOF_INVALID)
        assert_evidence(stage.folder / "alder" / "state", other.desk.consortium.size)
    finally:
        other.stop()


def test_two_sites_shown_two_histories_at_once_believe_neither(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 2})
    other = forked(stage)
    try:
        stage.grow("what alder is shown")
        commit(other, "what birch is shown")
        alder = stage.watcher("alder")
        birch = stage.watcher("birch", moved(stage.seats["birch"], other.address))
        eventually(lambda: alder.witness.size == birch.witness.size == stage.journal.size)
        for site, missing in ((alder, "birch/birch"), (birch, "alder/alder")):
            refusal = site.verify()
            assert isinstance(refusal, Refusal), "trained on a history of its own"
            assert refusal.details == {"step": 7, "lacks": 1} and missing in refusal.message
        assert stage.journal.published() == other.desk.consortium.journal.published() == b""
    finally:
        other.stop()


def commit(coordinator: Coordinator, text: str) -> None:
    coordinator.desk.consortium.commit(lambda now_ms: [refused_transfer(now_ms, text)])


def assert_evidence(home: Path, size: int) -> None:
    """Two checkpoints that the log key signed and that no one log can have."""
    (file,) = home.glob("fork-*.note")
    first, second = file.read_bytes().split(f"\n{NAME}\n".encode())
    notes = [first, f"{NAME}\n".encode() + second]
    heads = [Checkpoint.open(note, LOG) for note in notes]
    assert file.name == f"fork-{size}.note" and heads[1].size == size
    assert heads[0].root != heads[1].root


def test_a_site_that_was_shown_a_fork_remembers_it(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 2})
    other = forked(stage)
    other.stop()
    home = stage.folder / "alder" / "state"
    alder = stage.watcher("alder")
    home.mkdir(exist_ok=True)
    assert alder.witness.fork == ""
    (home / "fork-12.note").write_text("evidence")
    alder.close()
    again = stage.watcher("alder")
    assert f"{home / 'fork-12.note'} holds both checkpoints" in again.witness.fork


def test_a_journal_that_lost_records_finds_no_witness(stage_of: Any, caplog: Any) -> None:
    stage = stage_of(witnesses={"quorum": 1})
    older = forked(stage)
    try:
        alder = stage.watcher("alder")
        stage.grow()
        eventually(stage.covered)
        alder.close()
        stage.watcher("alder", moved(stage.seats["alder"], older.address))
        eventually(lambda: "it is an older copy" in caplog.text)
        assert older.desk.consortium.journal.published() == b""
    finally:
        older.stop()


def offer_to(stub: SiteLinkStub, size: int = 0) -> wire.WitnessOffer:
    call = stub.Witness(wire.WitnessRequest(size=size), timeout=10)
    offer = next(iter(call))
    call.cancel()
    return offer


@pytest.mark.parametrize(
    ("key", "change", "code"),
    [
        ("birch/birch", lambda line: line, Code.SIGNATURE_INVALID),
        ("alder", lambda line: line, Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: line.replace("alder/alder", "birch/birch"), Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: line + line, Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: line.rstrip("\n"), Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: line.replace("\n", "\r\n"), Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: "x\n\n" + line, Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: "", Code.SIGNATURE_INVALID),
        ("alder/alder", lambda line: line * 20, Code.NOTE_MALFORMED),
    ],
)
def test_a_site_speaks_for_itself_alone_and_only_of_what_it_was_offered(
    stage_of: Any, key: str, change: Callable[[str], str], code: Code
) -> None:
    stage = stage_of(witnesses={"quorum": 1})
    with channel.connect(stage.seats["alder"]) as opened:
        stub = SiteLinkStub(opened)
        note = parse(offer_to(stub).checkpoint)
        size = Checkpoint.read(note).size
        line = Cosigner(signer(key)).cosign(note.text, 1_700_000_000)
        request = wire.CosignRequest(size=size, line=change(line))
        assert refusal_of(lambda: stub.Cosign(request, timeout=10)).code is code
        assert stage.journal.published() == b""
        other = Cosigner(signer("alder/alder")).cosign(f"{NAME}\n{size}\n{'A' * 43}=\n", 1_700_000_000)
        wrong = wire.CosignRequest(size=size, line=other)
        assert refusal_of(lambda: stub.Cosign(wrong, timeout=10)).code is Code.SIGNATURE_INVALID


def test_a_cosignature_sent_twice_or_too_late_changes_nothing(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 1})
    with channel.connect(stage.seats["alder"]) as opened:
        stub = SiteLinkStub(opened)
        note = parse(offer_to(stub).checkpoint)
        size = Checkpoint.read(note).size
        for time_s in (1_700_000_000, 1_700_000_000, 1_800_000_000):
            line = Cosigner(signer("alder/alder")).cosign(note.text, time_s)
            stub.Cosign(wire.CosignRequest(size=size, line=line), timeout=10)
        stub.Cosign(wire.CosignRequest(size=size + 5, line=line), timeout=10)
        stub.Cosign(wire.CosignRequest(size=2**63, line=line), timeout=10)
        _, seen = cosigned(stage.journal.published(), LOG, ALL)
        assert seen == {"alder/alder": 1_700_000_000}


def test_a_witness_is_offered_from_the_size_it_has_and_no_further_than_the_journal_goes(
    stage_of: Any,
) -> None:
    stage = stage_of(witnesses={"quorum": 1})
    with channel.connect(stage.seats["alder"]) as opened:
        stub = SiteLinkStub(opened)
        size = stage.journal.size
        first = offer_to(stub)
        assert (first.old, list(first.consistency)) == (0, [])
        again = offer_to(stub, size)
        assert (again.old, list(again.consistency), again.checkpoint) == (size, [], first.checkpoint)
        part = offer_to(stub, size - 2)
        assert (part.old, len(part.consistency) > 0) == (size - 2, True)
        assert refusal_of(lambda: offer_to(stub, size + 1)).code is Code.LOG_FORKED


def test_a_newer_stream_of_a_witness_ends_the_older_one(stage_of: Any) -> None:
    stage = stage_of(witnesses={"quorum": 1})
    with channel.connect(stage.seats["alder"]) as opened:
        stub = SiteLinkStub(opened)
        older = stub.Witness(wire.WitnessRequest(), timeout=10)
        next(iter(older))
        newer = stub.Witness(wire.WitnessRequest(), timeout=10)
        next(iter(newer))
        assert list(older) == []
        newer.cancel()


def test_an_outsider_over_http_makes_up_a_quorum(stage_of: Any, tmp_path: Path) -> None:
    with outsider("witness.example/one", LOG, tmp_path / "one") as (vkey, url, witness):
        entry = {"name": "one", "vkey": vkey, "url": url}
        stage = stage_of(witnesses={"quorum": 2, "outsiders": (entry,)})
        alder = stage.watcher("alder")
        for n in range(3):
            stage.grow(str(n))
            eventually(stage.covered)
        assert witness.size(NAME) == stage.journal.size
        verified = alder.verify()
        assert isinstance(verified, VerifiedCharter)
        assert "witness.example/one" in verified.steps[-1]
        stage.restart()  # the new process has to be told by the outsider what it cosigned last
        stage.grow("after")
        eventually(stage.covered)
        assert witness.size(NAME) == stage.journal.size


def test_an_outsider_that_is_away_holds_up_nobody_who_does_not_need_it(
    stage_of: Any, tmp_path: Path, caplog: Any
) -> None:
    vkey = Cosigner(signer("witness.example/one")).vkey
    entry = {"name": "one", "vkey": vkey, "url": "http://127.0.0.1:9/"}
    stage = stage_of(witnesses={"quorum": 1, "outsiders": (entry,)})
    alder = stage.watcher("alder")
    stage.grow()
    eventually(stage.covered)
    assert isinstance(alder.verify(), VerifiedCharter)
    eventually(lambda: "outsider one at http://127.0.0.1:9/ cannot be reached" in caplog.text)


def test_an_outsider_that_has_seen_more_or_signs_with_another_key_is_told_of(
    stage_of: Any, tmp_path: Path, caplog: Any
) -> None:
    far = Checkpoint(NAME, 10_000, b"\x07" * 32).sign(signer(NAME))
    with (
        outsider("witness.example/one", LOG, tmp_path / "one") as (vkey, url, witness),
        outsider("witness.example/two", LOG, tmp_path / "two") as (_, other, _two),
    ):
        assert isinstance(witness.add(0, [], far, 1_700_000_000), str)
        missing = Cosigner(signer("witness.example/three")).vkey
        entries = (
            {"name": "one", "vkey": vkey, "url": url},
            {"name": "two", "vkey": missing, "url": other},
        )
        stage = stage_of(witnesses={"quorum": 1, "outsiders": entries})
        eventually(lambda: "has cosigned 10000 records, this journal shows it" in caplog.text)
        eventually(lambda: "answered without a cosignature of witness.example/three" in caplog.text)
        assert stage.journal.published() == b""


def test_an_operator_who_checks_the_consortium_witnesses_it_until_it_forked(tmp_path: Path) -> None:
    with running(found(tmp_path, one_site())) as coordinator:
        file = site_file.load(write_site(tmp_path / "site", coordinator, ray="local"))
        for _ in range(2):
            assert (
                verify_site(file).steps[6] == "7 witnesses: cosigned by alder/alder, the charter asks for 1"
            )
        (file.home / "fork-9.note").write_text("evidence")
        with pytest.raises(Refused) as caught:
            verify_site(file)
        assert caught.value.refusal.code is Code.LOG_FORKED
