"""Statements over real gRPC: periods closed by the clerk, bills fetched and checked, agreed to, never changed again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from commons.claims import CountersignNote
from commons.errors import Code, HansaError
from commons.records import Kind
from commons.statement_proof import Bundle, LinesView, StatementView
from commons.wire.v1 import consortium_pb2 as wire
from governance.statements import issuing
from governance.statements.bill import FORMATS, fetch_bundle
from hansa.billing import examine_file
from hansa.chamber import Chamber
from hansa.cli import app
from tests.contract.test_budget import CARD, ROUND, Bank, dispute, invoke, signed
from tests.contract.test_services import eventually, refused
from tests.support.consortium import NAME, Office, charter, over, signer

DAY_MS = 24 * 60 * 60 * 1000


class Calendar:
    """The clock of the wall, and the days a test tears off."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


class Books(Bank):
    """A consortium after one paid run, whose calendar a test turns."""

    def __init__(self, folder: Path) -> None:
        self.calendar = Calendar()
        super().__init__(folder, charter(rate_card=CARD, learning__rounds=1), clock=self.calendar)
        self.gather()
        self.start_run()
        self.play(1)
        for site in self.sites:
            eventually(lambda site=site: site.orders[-1].work == "evaluate")  # type: ignore[misc]
            site.evaluate(site.orders[-1])
        self.office.wait(over)
        self.period = self.named("alder", "current").note.period

    def turn(self) -> None:
        """A month later; somebody stirs, as they do in a month."""
        self.calendar.ahead_ms += 31 * DAY_MS
        self.coordinator.desk.bell.ring()

    def named(self, partner: str, period: str) -> Bundle:
        with Chamber.at(Path(self.seat(partner))) as chamber:
            return fetch_bundle(chamber, chamber.seat.log_verifier, partner, period)

    def statement_of(self, partner: str) -> str:
        return self.named(partner, "current").statement

    def file(self, partner: str, period: str) -> Path:
        """Of the statement, as the command writes it."""
        path = self.folder / f"{partner}-{period}.json"
        seat = ("--seat", self.seat(partner))
        invoke(
            "budget", "statement", partner, "--period", period, "--format", "json", "--out", str(path), *seat
        )
        return path


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    made = Books(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    """One whose first period is closed, for tests that leave no trace."""
    made = Books(tmp_path_factory.mktemp("closed"))
    made.turn()
    eventually(lambda: Kind.PERIOD in made.kinds())
    yield made
    made.close()


def attempt(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def countersignature(bundle: Bundle, by: str = "", **changes: Any) -> bytes:
    note = bundle.note
    fields = {"consortium": NAME, "partner": note.partner, "period": note.period, "statement": note.digest}
    return signer(by or note.partner).sign(CountersignNote(**{**fields, **changes}).text)


def test_an_open_period_has_a_statement_that_holds_and_says_it_is_not_sealed(books: Books) -> None:
    note = books.named("alder", "current").note
    assert (note.charged_micro, note.contributed_micro, note.closing_micro) == (
        ROUND,
        ROUND,
        1_000_000 - ROUND,
    )
    wrong = attempt("budget", "statement", "alder", "--period", "last", "--seat", books.seat("alder"))
    assert (wrong.exit_code, "no books for 'an earlier period'" in wrong.output) == (3, True)
    assert (note.granted_micro, note.closed, note.currency) == (1_000_000, "no", "EUR")
    log = signer(NAME).vkey
    told = invoke("budget", "verify", str(books.file("alder", books.period)), "--key", log)
    assert "is open: signed as of record" in told and "holds: alder" in told
    assert len([line for line in told.splitlines() if ". ok: " in line]) == 9


def test_the_clerk_closes_a_period_that_is_over_and_once(books: Books) -> None:
    books.turn()
    eventually(lambda: Kind.PERIOD in books.kinds())
    note = books.named("alder", "last").note
    assert (note.period, note.closed) == (books.period, "yes")
    books.coordinator.desk.bell.ring()
    books.restart()
    assert books.named("birch", books.period).note.closed == "yes"
    assert books.kinds().count(Kind.PERIOD) == 1


def test_a_closed_statement_is_the_same_to_the_byte_whatever_happens_after_it(books: Books) -> None:
    books.turn()
    before = books.file("alder", "last").read_bytes()
    books.reverse("late", "settle/run-1/1/alder", 1000, "metering_error")
    books.submit(signed(dispute(amount_micro=500)))
    books.restart()
    assert books.file("alder", books.period).read_bytes() == before
    bundle = books.named("alder", "current")
    assert (bundle.note.refunded_micro, bundle.note.contribution_reversed_micro) == (1000, 1000)
    assert bundle.note.opening_micro == 1_000_000 - ROUND
    assert bundle.note.closing_micro == 1_000_000 - ROUND + 1000
    told = json.loads(invoke("budget", "verify", str(books.file("alder", "current")), "--json",
                             "--seat", books.seat("alder")))  # fmt: skip
    assert told["verified"] and told["earlier"] == 2, (
        "the charter with the rates, the charge of the month before"
    )


def test_a_partner_countersigns_its_closed_statement_once(books: Books) -> None:
    books.turn()
    file, seat = str(books.file("alder", "last")), ("--seat", books.seat("alder"))
    first = json.loads(invoke("budget", "countersign", file, *seat, "--json"))
    assert json.loads(invoke("budget", "countersign", file, *seat, "--json")) == first
    assert books.kinds()[first["index"]] is Kind.COUNTERSIGN
    books.restart()
    again = json.loads(invoke("budget", "countersign", file, *seat, "--json"))
    assert again["index"] == first["index"], "by a new process too"
    assert books.kinds().count(Kind.COUNTERSIGN) == 1
    shown = json.loads(invoke("budget", "statement", "alder", "--period", "last", *seat, "--json"))
    assert (shown["countersigned"], shown["statement"]) == (True, first["statement"])
    told = invoke("budget", "verify", str(books.file("alder", "last")), *seat)
    assert f"countersigned by alder in record {first['index']}" in told


@pytest.mark.parametrize(
    ("by", "changes", "code"),
    [
        ("birch", {}, Code.SIGNATURE_INVALID),
        ("elm", {"partner": "elm"}, Code.NOT_AUTHORISED),
        ("birch", {"partner": "birch"}, Code.STATEMENT_MISMATCH),
        ("", {"statement": "sha256:" + "0" * 64}, Code.STATEMENT_MISMATCH),
        ("", {"consortium": "other"}, Code.REQUEST_INVALID),
        ("", {"period": "1999-01"}, Code.REQUEST_INVALID),
        ("", {"period": "current"}, Code.REQUEST_INVALID),
    ],
)
def test_a_countersignature_that_may_not_stand_is_refused_without_a_trace(
    closed: Books, by: str, changes: dict[str, Any], code: Code
) -> None:
    bundle = closed.named("alder", "last")
    size = closed.coordinator.desk.consortium.size
    assert refused(lambda: closed.submit(countersignature(bundle, by, **changes))) == code
    assert closed.coordinator.desk.consortium.size == size


def test_an_open_period_is_not_countersigned_by_the_coordinator_nor_by_the_command(books: Books) -> None:
    open_one = books.named("alder", "current")
    assert refused(lambda: books.submit(countersignature(open_one))) == Code.REQUEST_INVALID
    file, seat = str(books.file("alder", "current")), ("--seat", books.seat("alder"))
    wrong = attempt("budget", "countersign", file, *seat)
    assert (wrong.exit_code, "goes on" in wrong.output) == (1, True)
    books.turn()
    other = attempt("budget", "countersign", str(books.file("birch", "last")), *seat)
    assert (other.exit_code, "alder cannot countersign it" in other.output) == (1, True)


def test_a_partner_reads_its_own_statement_and_the_operator_any(books: Books) -> None:
    wrong = attempt("budget", "statement", "birch", "--seat", books.seat("alder"))
    assert (wrong.exit_code, "not_authorised" in wrong.output) == (3, True)
    operator = str(books.home / "operator")
    shown = json.loads(
        invoke("budget", "statement", "birch", "--seat", operator, "--format", "json", "--json")
    )
    assert (shown["partner"], shown["charged_micro"]) == ("birch", ROUND)
    site = Office(books.seats["cedar"])
    for view, rest in (("statement", ""), ("statement-lines", "/9/lines/0"), ("statement-proof", "/9")):
        own = wire.ReadRequest(view=view, key=f"cedar/{books.period}{rest}")
        assert site.chamber.Read(own, timeout=10).json
        foreign = wire.ReadRequest(view=view, key=f"alder/{books.period}{rest}")
        assert refused(lambda foreign=foreign: site.chamber.Read(foreign, timeout=10)) == Code.NOT_AUTHORISED  # type: ignore[misc]
    site.close()


@pytest.mark.parametrize(
    ("view", "key", "code"),
    [
        ("statement", "", Code.ACCOUNT_NOT_FOUND),
        ("statement", "elm/current", Code.ACCOUNT_NOT_FOUND),
        ("statement", "alder", Code.REQUEST_INVALID),
        ("statement", "alder/1999-01", Code.REQUEST_INVALID),
        ("statement", "alder/current/7", Code.REQUEST_INVALID),
        ("statement-lines", "alder/current", Code.REQUEST_INVALID),
        ("statement-lines", "alder/current/0/lines/0", Code.REQUEST_INVALID),
        ("statement-lines", "alder/current/1000/lines/0", Code.REQUEST_INVALID),
        ("statement-lines", "alder/current/9/others/0", Code.REQUEST_INVALID),
        ("statement-lines", "alder/current/9/lines/-1", Code.REQUEST_INVALID),
        ("statement-lines", "alder/current/9/lines/" + "9" * 5000, Code.REQUEST_INVALID),
        ("statement-lines", "alder/current/" + "9" * 5000 + "/lines/0", Code.REQUEST_INVALID),
        ("statement-proof", "alder/current/9/lines/0", Code.REQUEST_INVALID),
        ("statement-proof", "alder/current/²", Code.REQUEST_INVALID),
    ],
)
def test_a_key_that_names_no_statement_is_refused(closed: Books, view: str, key: str, code: Code) -> None:
    asked = wire.ReadRequest(view=view, key=key)
    assert refused(lambda: closed.office.chamber.Read(asked, timeout=10)) == code


def test_a_statement_is_read_and_not_watched(closed: Books) -> None:
    asked = wire.ReadRequest(view="statement", key="alder/current")
    assert refused(lambda: next(closed.office.chamber.Watch(asked, timeout=10))) == Code.REQUEST_INVALID


def test_lines_come_in_pages_and_are_the_same_lines(closed: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = closed.named("alder", closed.period)
    monkeypatch.setattr(issuing, "PAGE_LINES_MAX", 2)
    assert closed.named("alder", closed.period) == whole
    monkeypatch.setattr(issuing, "PAGE_CHARS_MAX", 1)
    assert closed.named("alder", closed.period) == whole
    assert len(whole.lines) > 3


def test_a_coordinator_that_sends_other_lines_than_it_signed_is_not_believed(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Chamber.read

    def lying(chamber: Chamber, kind: Any, key: str = "") -> Any:
        view = real(chamber, kind, key)
        return view.model_copy(update=change) if kind is lied_about else view

    birch = books.statement_of("birch")
    monkeypatch.setattr(Chamber, "read", lying)
    endless = {"lines": (), "following": 0}
    missing = {"lines": (), "following": None}
    for lied_about, change, why in (  # noqa: B007 - `lying` reads them
        (LinesView, endless, "sends others"),
        (LinesView, missing, "does not hold"),
        (StatementView, {"statement": "nothing"}, "no statement"),
        (StatementView, {"statement": birch}, "the coordinator sent birch"),
    ):
        with pytest.raises(HansaError, match=why):
            books.named("alder", "current")


@pytest.mark.parametrize("at", [0, 40, 400, 1200, -2, -300])
def test_a_changed_byte_is_found_by_the_command(closed: Books, at: int) -> None:
    file = closed.file("alder", "last")
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    wrong = attempt("budget", "verify", str(file), "--key", signer(NAME).vkey)
    assert (wrong.exit_code, "hold" in wrong.output) == (1, True), wrong.output
    assert attempt("budget", "countersign", str(file), "--seat", closed.seat("alder")).exit_code == 1
    assert Kind.COUNTERSIGN not in closed.kinds()


def test_what_does_not_hold_is_named_by_its_number(books: Books) -> None:
    file = books.file("alder", books.period)
    bundle = Bundle.read(file.read_bytes())
    file.write_bytes(bundle.model_copy(update={"lines": bundle.lines[1:]}).data)
    wrong = attempt("budget", "verify", str(file), "--key", signer(NAME).vkey)
    assert wrong.exit_code == 1
    assert "2. does not hold: the lines are the ones that were signed" in wrong.output
    other = attempt("budget", "verify", str(file), "--key", signer("alder").vkey, "--json")
    assert (other.exit_code, json.loads(other.output)["verified"]) == (1, False)
    assert attempt("budget", "verify", str(file)).exit_code == 1, "it names no key"


def test_a_statement_is_written_in_every_format(books: Books) -> None:
    books.turn()
    books.reverse("late", "settle/run-1/1/alder", 1000, "metering_error")
    for period in ("last", "current"):
        for name in FORMATS:
            text = invoke("budget", "statement", "alder", "--period", period, "--format", name,
                          "--seat", books.seat("alder"))  # fmt: skip
            assert "alder" in text, name
            if name == "note":
                said = "Countersigned by alder: no." if period == "last" else "Not to be countersigned yet"
                assert said in text
    shown = books.folder / "shown.json"
    shown.write_text(
        invoke("budget", "statement", "alder", "--format", "json", "--seat", books.seat("alder"))
    )
    assert not examine_file(shown, key="", seat=Path(books.seat("birch"))).problem, "as printed, too"
