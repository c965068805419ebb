"""Who must have seen the journal: the charter's rule, what the coordinator gathers, what a site keeps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commons import charter_file, quorum
from commons.chain import Trust, VerifiedCharter, Wanted, verify_chain
from commons.charter import Charter
from commons.clock import SystemClock
from commons.cosignature import WITNESSES_MAX, Cosignatory, Cosigner, cosigned
from commons.errors import Code, ConfigError, HansaError, Refusal, StoreError
from commons.log import Checkpoint
from commons.names import SiteId
from commons.notes import Signer, Verifier
from commons.records import Kind, canonical_json, fact
from governance.bell import Bell
from governance.consortium import Consortium
from governance.journal import Journal
from governance.proof import chain_bundle
from hansa.charters import site_entry, template
from orchestrator.witnesses import LATE_MS, PATIENCE_S, PAUSE_S, Gathering, Witnesses
from tests.support.chamber import LOG, Log, charter, delegation, founding_notes, signer
from tests.unit.test_verify import Consortium as Coordinator
from workers.site import ASK_AGAIN_S, UNWITNESSED_S, _Site
from workers.status import Status
from workers.witness import EVIDENCE_MAX, SiteWitness

BERLIN, TURIN = Cosigner(signer("acme/berlin")), Cosigner(signer("beta/turin"))
OUTSIDER = Cosigner(signer("w.example/one"))
NOW_S = 1_700_000_000


# The charter


def outsider(
    name: str = "one", vkey: str = OUTSIDER.vkey, url: str = "https://w.example/x"
) -> dict[str, str]:
    return {"name": name, "vkey": vkey, "url": url}


def test_a_charter_from_before_witnesses_keeps_its_text() -> None:
    assert b"witnesses" not in charter_file.canonical(charter())
    assert charter().witnesses.quorum == 0
    asked = charter(witnesses={"quorum": 2, "outsiders": (outsider(),)})
    assert charter_file.from_canonical(charter_file.canonical(asked)) == asked


def test_a_charter_with_witnesses_is_written_and_read_back(tmp_path: Path) -> None:
    asked = charter(
        witnesses={"quorum": 2, "outsiders": (outsider(), outsider("two", vkey_of("w.example/two")))}
    )
    charter_file.write(asked, tmp_path / "charter.toml")
    assert charter_file.load(tmp_path / "charter.toml") == asked
    assert "# asked at URL/add-checkpoint" in (tmp_path / "charter.toml").read_text()


def vkey_of(name: str) -> str:
    return Cosigner(signer(name)).vkey


@pytest.mark.parametrize(
    ("witnesses", "problem"),
    [
        ({"quorum": 3}, "witnesses.quorum: witnesses.quorum is 3 but there are 2 sites and outsiders"),
        ({"quorum": 16}, "witnesses.quorum: input should be less than or equal to 15"),
        ({"quorum": -1}, "witnesses.quorum: input should be greater than or equal to 0"),
        ({"outsiders": [outsider(url="ftp://x")]}, "witnesses.outsiders[one].url: expected a string like"),
        ({"outsiders": [outsider(), outsider(vkey=vkey_of("w2"))]}, "outsider 'one' is named twice"),
        ({"outsiders": [outsider(vkey="nonsense")]}, "witnesses.outsiders[one].vkey: not a witness key"),
        ({"outsiders": [outsider(vkey=signer("w").vkey)]}, "type 0x04"),
        ({"outsiders": [outsider(vkey=vkey_of("acme"))]}, "this is also the key of member acme"),
        ({"outsiders": [outsider(vkey=vkey_of("acme/berlin"))]}, "this key goes by the name of site berlin"),
        ({"outsiders": [outsider(), outsider("two")]}, "this is also the key of outsider one"),
    ],
)
def test_a_charter_with_wrong_witnesses_is_refused_at_their_line(
    tmp_path: Path, witnesses: dict[str, Any], problem: str
) -> None:
    file = tmp_path / "charter.toml"
    charter_file.write(charter(), file)
    lines = ["[witnesses]"] + [f"quorum = {witnesses['quorum']}" for _ in ["x"] if "quorum" in witnesses]
    for entry in witnesses.get("outsiders", ()):
        lines += ["[[witnesses.outsiders]]", *(f'{key} = "{value}"' for key, value in entry.items())]
    file.write_text(file.read_text() + "\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as error:
        charter_file.load(file)
    (said,) = error.value.problems
    assert problem in said


@pytest.mark.parametrize(("sites", "wanted"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (40, WITNESSES_MAX)])
def test_a_new_charter_asks_for_a_majority_of_sites_but_no_more_than_a_round_needs(
    sites: int, wanted: int
) -> None:
    names = [f"m{n}" for n in range(sites)]
    document = template(
        consortium="demo",
        log_key=LOG.vkey,
        members=[{"name": n, "key": signer(n).vkey, "budget_micro": 1} for n in names],
        sites=[site_entry(n, payer=n, domain="d", statement="s") for n in names],
        learning={"rounds": 1, "inner_steps": 1},
    )
    drawn = Charter.model_validate_json(canonical_json(document))
    assert drawn.witnesses.quorum == wanted <= drawn.rounds.quorum


def test_many_who_lack_are_named_shortly() -> None:
    keys: dict[str, Verifier] = {"berlin": signer("acme/berlin").verifier}
    of = charter(
        witnesses={"quorum": 1, "outsiders": tuple(outsider(f"o{n}", vkey_of(f"o{n}")) for n in range(9))}
    )
    said = quorum.lacking(of, keys, {"acme/berlin"})
    assert said.startswith("beta/turin (not enrolled), o0 at https://") and said.endswith(" and 2 more")


# What the coordinator gathers


def log_of(size: int) -> Log:
    return Log([fact(Kind.TRANSFER, 1, n=n) for n in range(size)])


def checkpoint(size: int) -> bytes:
    return log_of(size).checkpoint()


def test_one_candidate_at_a_time_is_chosen_and_gives_way_when_published_or_after_a_while() -> None:
    gathering = Gathering(published=0)
    assert gathering.choose(5, checkpoint(5), 10.0) is None
    assert gathering.current is not None and gathering.current.size == 5
    assert gathering.choose(5, checkpoint(5), 11.0) is None
    assert gathering.choose(7, checkpoint(7), 11.0) == pytest.approx(PATIENCE_S - 1)
    assert gathering.current.size == 5
    gathering.published = 5
    assert gathering.choose(7, checkpoint(7), 10.0) == pytest.approx(PAUSE_S)
    assert gathering.choose(7, checkpoint(7), 11.0) is None
    assert gathering.current.size == 7
    assert gathering.choose(9, checkpoint(9), 11.0 + PATIENCE_S) is None
    assert gathering.current.size == 9


def test_what_is_published_already_is_no_candidate() -> None:
    gathering = Gathering(published=5)
    assert gathering.choose(5, checkpoint(5), 0.0) is None
    assert gathering.current is None


def test_the_same_witness_counts_once_and_a_note_holds_as_many_as_it_may() -> None:
    gathering = Gathering(published=0)
    gathering.choose(3, checkpoint(3), 0.0)
    current = gathering.current
    assert current is not None
    for n in range(20):
        witness = Cosigner(signer(f"w{n}"))
        for time_s in (NOW_S, NOW_S + 1):
            assert gathering.add(witness.cosignatory, 3, witness.cosign(current.text, time_s)) is current
    assert current.seen_by == 20
    known = [Cosigner(signer(f"w{n}")).cosignatory for n in range(20)]
    _, seen = cosigned(current.cosigned(), LOG.verifier, known)
    assert len(seen) == WITNESSES_MAX and set(seen.values()) == {NOW_S}
    twin = Cosigner(Signer("w0-too", b"\x09" * 32)), Cosigner(Signer("w0-again", b"\x09" * 32))
    for witness in twin:
        gathering.add(witness.cosignatory, 3, witness.cosign(current.text, NOW_S))
    assert current.seen_by == 21


def test_a_late_line_finds_its_candidate_and_a_very_late_one_none() -> None:
    gathering = Gathering(published=0)
    for size in range(1, 41):
        gathering.choose(size, checkpoint(size), size * PATIENCE_S)
    text = log_of(39).head.text
    assert gathering.add(BERLIN.cosignatory, 39, BERLIN.cosign(text, NOW_S)) is not gathering.current
    assert gathering.add(BERLIN.cosignatory, 2, "anything") is None
    refusal = gathering.add(BERLIN.cosignatory, 40, BERLIN.cosign(text, NOW_S))
    assert isinstance(refusal, Refusal) and refusal.code is Code.SIGNATURE_INVALID


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms


class Desk:
    """A consortium of two sites that asks for two witnesses, and its gathering of cosignatures."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.bell, self.stopping = Clock(), Bell(), threading.Event()
        self.journal = Journal.open(folder, signer=LOG, clock=self.clock)
        self.consortium = Consortium(self.journal, self.clock)
        of = charter(witnesses={"quorum": 2})
        members = self.consortium.members
        self.consortium.commit(lambda ms: members.decide_found(of, founding_notes(of), LOG.vkey, ms))
        for partner, site in (("acme", "berlin"), ("beta", "turin")):
            note = delegation(partner, site)
            self.consortium.commit(lambda ms, note=note: members.decide_enrol_site(note, ms))
        self.consortium.follow(self.bell)
        self.seconds = 0.0
        self.witnesses = self.again()

    def again(self) -> Witnesses:
        return Witnesses(self.consortium, self.bell, self.stopping, now_s=lambda: self.seconds)

    def grow(self) -> None:
        self.consortium.commit(
            lambda ms: [fact(Kind.REFUSED, ms, id=str(self.journal.size), code="x", message="m")]
        )
        self.seconds += PATIENCE_S

    def cosign(self, *sites: str) -> None:
        current, _ = self.witnesses.candidate()
        assert current is not None
        for site in sites:
            witness = BERLIN if site == "berlin" else TURIN
            line = witness.cosign(current.text, NOW_S)
            assert self.witnesses.cosign(SiteId(site), current.size, line) is None


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.journal.close()


def test_a_checkpoint_is_published_when_the_quorum_has_cosigned_it_and_not_before(desk: Desk) -> None:
    desk.cosign("berlin")
    size = desk.journal.size
    assert (desk.witnesses.published(1), desk.journal.published()) == (None, b"")
    partial = desk.witnesses.newest(size)
    assert partial is not None
    assert set(cosigned(partial, LOG.verifier, [BERLIN.cosignatory])[1]) == {"acme/berlin"}
    strokes = desk.bell.strokes
    desk.cosign("turin")
    assert desk.bell.strokes > strokes
    assert desk.witnesses.published(size) == desk.journal.published() != b""
    assert desk.witnesses.published(size + 1) is None
    assert desk.again().published(size) == desk.journal.published()


def test_the_age_of_what_nobody_witnessed_is_that_of_its_oldest_record(desk: Desk) -> None:
    founded_ms = desk.clock.ms
    assert desk.witnesses.unwitnessed_since_ms() == founded_ms
    desk.cosign("berlin", "turin")
    assert desk.witnesses.unwitnessed_since_ms() is None
    for _ in range(2):
        desk.clock.ms += 1_000
        desk.grow()
    assert desk.witnesses.unwitnessed_since_ms() == founded_ms + 1_000
    desk.cosign("berlin", "turin")
    assert desk.witnesses.unwitnessed_since_ms() is None


def test_after_a_minute_it_is_told_who_is_missing(desk: Desk) -> None:
    first = desk.journal.size
    desk.cosign("berlin", "turin")
    desk.grow()
    desk.cosign("turin")
    desk.clock.ms += LATE_MS
    assert desk.witnesses.trouble() == ""
    desk.clock.ms += 1
    trouble = desk.witnesses.trouble()
    assert f"records from {first} on" in trouble and "1 of 2 cosigned" in trouble
    assert "missing are acme/berlin;" in trouble
    desk.cosign("berlin")
    assert desk.witnesses.trouble() == ""


def test_the_log_tells_of_it_once_and_of_its_end(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.clock.ms += LATE_MS + 1
    looks: list[str] = []

    def wait(strokes: int, timeout_s: float | None = None) -> int:
        looks.append(caplog.text)
        if len(looks) == 3:
            desk.cosign("berlin", "turin")
        if len(looks) == 4:
            desk.stopping.set()
        return strokes

    monkeypatch.setattr(desk.bell, "wait_beyond", wait)
    with caplog.at_level(logging.INFO, "hansa.coordinator"):
        desk.witnesses.watch()
    assert caplog.text.count("have waited for witnesses") == 1
    assert caplog.text.count("the journal is witnessed again") == 1
    assert "witnessed again" not in looks[2]


def test_what_a_full_disk_kept_from_being_published_is_published_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.cosign("berlin")
    real = desk.journal.publish

    def full(size: int, note: bytes) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(desk.journal, "publish", full)
    with pytest.raises(StoreError):
        desk.cosign("turin")
    assert desk.witnesses.published(1) is None
    monkeypatch.setattr(desk.journal, "publish", real)
    desk.witnesses._publish_again()
    assert desk.witnesses.published(desk.journal.size) == desk.journal.published() != b""


def test_a_late_cosignature_joins_the_published_checkpoint_that_is_shown(desk: Desk) -> None:
    desk.cosign("berlin", "turin")
    size = desk.journal.size
    assert desk.witnesses.take(OUTSIDER.cosignatory, size, OUTSIDER.cosign(log_text(desk), NOW_S)) is None
    shown = desk.witnesses.published(size)
    assert shown is not None
    _, seen = cosigned(shown, LOG.verifier, [BERLIN.cosignatory, TURIN.cosignatory, OUTSIDER.cosignatory])
    assert set(seen) == {"acme/berlin", "beta/turin", "w.example/one"}
    assert OUTSIDER.name.encode() not in desk.journal.published()


def test_the_published_checkpoint_is_shown_for_as_long_as_it_covers_the_evidence(desk: Desk) -> None:
    trust, size = Trust.of(desk.consortium.charter), desk.journal.size

    def shown(have: int = 0) -> tuple[bytes, VerifiedCharter | Refusal]:
        bundle = chain_bundle(desk.consortium, Wanted(have), desk.witnesses)
        assert not isinstance(bundle, Refusal)
        note, entries, consistency = bundle
        return note, verify_chain(entries, note, consistency, trust=trust)

    assert shown()[0] == desk.journal.checkpoint()
    desk.cosign("berlin", "turin")
    desk.grow()
    note, verified = shown()
    assert note == desk.journal.published() and isinstance(verified, VerifiedCharter)
    assert shown(have=size + 1)[0] == desk.journal.checkpoint()
    new = Signer("acme/berlin", b"\x07" * 32)
    members = desk.consortium.members
    desk.consortium.commit(lambda ms: members.decide_enrol_site(delegation("acme", "berlin", key=new), ms))
    note, verified = shown()
    assert note == desk.journal.checkpoint() and isinstance(verified, Refusal)
    desk.cosign("turin")
    note, verified = shown()
    assert note != desk.journal.checkpoint() and isinstance(verified, Refusal)
    assert verified.details["lacks"] == 1
    line = Cosigner(new).cosign(log_text(desk), NOW_S)
    assert desk.witnesses.cosign(SiteId("berlin"), desk.journal.size, line) is None
    note, verified = shown()
    assert note == desk.journal.published() and isinstance(verified, VerifiedCharter)


def log_text(desk: Desk) -> str:
    return Checkpoint("demo", desk.journal.size, desk.journal.root()).text


def test_waiting_for_witnesses_ends_with_the_quorum_or_with_the_time(desk: Desk) -> None:
    witnesses = Witnesses(desk.consortium, desk.bell, desk.stopping)
    witnesses.wait_published(1, 0.01)
    desk.witnesses = witnesses
    done = threading.Event()
    waiting = threading.Thread(target=lambda: (witnesses.wait_published(1, 60), done.set()))
    waiting.start()
    desk.cosign("berlin", "turin")
    assert done.wait(10)
    waiting.join()


# What a site keeps


def site_witness(home: Path) -> SiteWitness:
    return SiteWitness(signer("acme/berlin"), LOG.verifier, home, SystemClock())


def grown(log: Log, more: int) -> Log:
    return Log([*log.all, *(fact(Kind.TRANSFER, 2, n=n) for n in range(more))])


def test_a_site_cosigns_what_grows_and_remembers_it(tmp_path: Path) -> None:
    one, two = log_of(3), grown(log_of(3), 4)
    answer = site_witness(tmp_path).cosign(0, [], one.checkpoint())
    assert answer is not None and answer[0] == 3
    again = site_witness(tmp_path)
    assert again.size == 3
    answer = again.cosign(3, two.consistency(3, 7), two.checkpoint())
    assert answer is not None
    berlin = Cosignatory.of(signer("acme/berlin").verifier)
    note = two.checkpoint() + answer[1].encode()
    assert set(cosigned(note, LOG.verifier, [berlin])[1]) == {"acme/berlin"}


@pytest.mark.parametrize("size", [3, 5])
def test_a_fork_is_not_cosigned_and_both_histories_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    one = log_of(3)
    other = Log([fact(Kind.TRANSFER, 1, n=n + 100) for n in range(size)])
    witness = site_witness(tmp_path)
    witness.cosign(0, [], one.checkpoint())
    for _ in range(3):
        assert witness.cosign(3, other.consistency(3, size), other.checkpoint()) is None
    file = tmp_path / f"fork-{size}.note"
    assert file.read_bytes() == one.checkpoint() + b"\n" + other.checkpoint()
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert str(file) in witness.fork and witness.size == 3
    assert site_witness(tmp_path).fork == witness.fork
    file.unlink()
    assert site_witness(tmp_path).fork == ""


def test_forks_without_end_do_not_fill_the_disk(tmp_path: Path) -> None:
    witness = site_witness(tmp_path)
    witness.cosign(0, [], log_of(3).checkpoint())
    for n in range(EVIDENCE_MAX + 5):
        other = Log([fact(Kind.TRANSFER, 1, n=n + 100) for n in range(10 + n)])
        assert witness.cosign(3, other.consistency(3, 10 + n), other.checkpoint()) is None
    assert len(list(tmp_path.glob("fork-*.note"))) == EVIDENCE_MAX


@pytest.mark.parametrize(
    ("old", "note"),
    [
        (2, checkpoint(5)),
        (0, Signer("demo", b"\x01" * 32).sign(log_of(5).head.text)),
        (0, signer("other").sign("other\n5\n" + "A" * 43 + "=\n")),
        (0, b"nonsense"),
        (9, checkpoint(5)),
    ],
)
def test_what_is_no_fork_leaves_no_evidence(tmp_path: Path, old: int, note: bytes) -> None:
    witness = site_witness(tmp_path)
    assert witness.cosign(old, [], note) is None
    assert (witness.fork, witness.size) == ("", 0)
    assert not list(tmp_path.glob("fork-*"))


class Orders:
    """A site's loop with nothing behind it but a coordinator that proves what it can."""

    def __init__(self, folder: Path, *, fork: str = "") -> None:
        self.status, self.coordinator = Status(), Coordinator(folder, witnesses={"quorum": 1})
        link = SimpleNamespace(chain=self.coordinator.chain, trouble="")
        unused: Any = None
        self.site = _Site(
            link, self.status, unused, self.coordinator.site(), unused, unused, SimpleNamespace(fork=fork),
            threading.Event(),
        )  # type: ignore[arg-type]  # fmt: skip

    def handle(self) -> float | None:
        directive: Any = SimpleNamespace(order=self.coordinator.order(), reason="")
        return self.site._handle(directive, 5.0)


def test_a_site_waits_for_witnesses_without_refusing(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    assert orders.handle() == UNWITNESSED_S
    now = orders.status.now
    assert now.state == "verifying" and "missing are acme/berlin" in now.why


def test_a_site_that_holds_evidence_of_a_fork_refuses_every_order(tmp_path: Path) -> None:
    orders = Orders(tmp_path, fork="two histories")
    assert orders.handle() == ASK_AGAIN_S
    assert (orders.status.now.state, orders.status.now.why) == (
        "refused",
        f"two histories [{Code.LOG_FORKED}]",
    )
    orders.status.enter("idle")
    orders.site._idle_if_alone()
    assert orders.status.now.state == "refused"


def test_a_journal_of_records_that_cannot_be_read_is_a_trouble_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: int) -> Any:
        desk.stopping.set()
        raise HansaError("record 0 was changed on disk")

    monkeypatch.setattr(desk.journal, "record", broken)
    monkeypatch.setattr(desk.bell, "wait_beyond", lambda *_: 0)
    desk.witnesses.watch()
    assert "record 0 was changed on disk" in caplog.text
