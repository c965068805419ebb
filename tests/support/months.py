"""A consortium that keeps books for months: a real journal and ledger, a clock that is set, and statements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from commons import charter_file, notes
from commons.certificates import Subject
from commons.charter import Charter
from commons.claims import ConvertNote, CountersignNote, DisputeNote, RulingNote
from commons.errors import Refusal
from commons.log import Checkpoint, proof_text
from commons.records import Kind, Record
from commons.statement import Line, StatementNote
from commons.statement_proof import Bundle, LinesView, ProofView, StatementView
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import (
    Charge,
    HoldRequest,
    decide_claim,
    decide_expire,
    decide_grants,
    decide_hold,
    decide_reverse,
    decide_rulings,
    decide_settle,
)
from governance.ratecard import Price, price, rate_card_digest
from governance.statements.closing import decide_close
from governance.statements.issuing import Statements
from tests.support.books import signed, usage_note
from tests.support.chamber import LOG, charter, founding_notes, signer

DAY_MS = 86_400_000
OPERATOR = Subject("operator")
Decide = Callable[[int], Sequence[Record] | Refusal]


def ms(text: str) -> int:
    """Of a UTC date, with or without a time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp() * 1000)


def law(version: int = 1, **changes: Any) -> Charter:
    """Another's site is credited 70 % of what it earns, a rejected update costs half; work and time have a price."""
    rate = {"device": "cpu", "micro_per_gflop": 3, "micro_per_pflop": 11, "micro_per_device_second": 7}
    return charter(
        version=version,
        **{
            "accounting": {"contribution_owner_percent": 70, "charge_rejected_percent": 50},
            "rate_card": {"currency": "EUR", "rates": (rate,)},
            **changes,
        },
    )


class Months:
    """Every doing is one commit, as the coordinator makes it. It is the time of the last `at`."""

    def __init__(self, folder: Path, founding: Charter | None = None, day: str = "2026-10-05") -> None:
        self.ms = ms(day)
        self.folder = folder
        self._open()
        self.consortium.commit(
            lambda now: self.consortium.members.decide_found(
                founding or law(), founding_notes(founding or law()), LOG.vkey, now
            )
        )
        self._grant()

    def _open(self) -> None:
        self.journal = Journal.open(self.folder, signer=LOG, clock=self)
        self.consortium = Consortium(self.journal, self)
        self.ledger = self.consortium.ledger
        self.statements = Statements(self.consortium, LOG)

    def reopen(self) -> None:
        """The coordinator starts again on the same journal."""
        self.journal.close()
        self._open()

    def now_ms(self) -> int:
        return self.ms

    def at(self, day: str) -> Months:
        self.ms = ms(day)
        return self

    def take(self, decide: Decide) -> list[int]:
        done = self.consortium.commit(decide)
        assert not isinstance(done, Refusal), done
        return done

    def enact(self, of: Charter) -> None:
        """`of` is in force: what it grants and what it rules is booked."""
        self.take(lambda now: [Record(Kind.CHARTER, now, charter_file.canonical(of))])
        self._grant()
        self.take(lambda now: decide_rulings(self.ledger, of, now))

    def hold(self, number: int, site: str = "berlin", amount_micro: int = 1_000, top: int = 0) -> str:
        """A hold, or a top-up of it, for two days; the id of the base hold."""
        base = f"hold/r/{number}/{site}"
        request = HoldRequest(
            id=f"{base}/top{top}" if top else base,
            payer=self._site(site).payer,
            site=site,
            run="r",
            round=number,
            amount_micro=amount_micro,
            expires_ms=self.ms + 2 * DAY_MS,
            rate_card=rate_card_digest(self.consortium.charter.rate_card),
            tops=base if top else "",
        )
        self.take(lambda now: decide_hold(self.ledger, [request], now))
        return base

    def settle(self, hold: str, gflop: int, device_ms: int = 1_500, *, accepted: bool = True) -> int:
        """Charge what the work costs by the hold's card; a rejected update half of it. How much it was, in micro."""
        found = self.ledger.hold(hold)
        assert found is not None
        full = price(
            self.ledger.cards[found.request.rate_card], "cpu", "fp32", gflop=gflop, device_ms=device_ms
        )
        assert isinstance(full, Price)
        percent = 100 if accepted else 50
        charge = Charge(
            amount_micro=full.amount_micro * percent // 100,
            usage=notes.digest(hold.encode()),
            rounded_pico=full.rounded_pico if accepted else 0,
            device="cpu",
            precision="fp32",
            gflop=gflop,
            device_ms=device_ms,
            tokens=640,
            energy_j=12 if accepted else None,
            percent=percent,
            accepted=accepted,
        )
        self.take(lambda now: decide_settle(self.ledger, hold, charge, now))
        return charge.amount_micro

    def deliver(self, number: int, site: str) -> None:
        """The site's usage is in the journal: its hold no longer expires."""
        self.take(lambda now: [Record(Kind.USAGE, now, usage_note(number, site))])

    def work(self, number: int, site: str = "berlin", gflop: int = 100) -> int:
        return self.settle(self.hold(number, site), gflop)

    def expire(self) -> None:
        self.take(lambda now: decide_expire(self.ledger, now))

    def reverse(self, name: str, settle: str, amount_micro: int) -> None:
        self.take(
            lambda now: decide_reverse(
                self.ledger, f"reversal/{name}", settle, amount_micro, "metering_error", now
            )
        )

    def claim(self, words: DisputeNote | RulingNote | ConvertNote) -> None:
        note = signed(words)
        self.take(lambda now: decide_claim(self.ledger, note, self.consortium.charter, now))

    def close(self) -> list[int]:
        return self.take(lambda now: decide_close(self.ledger, now))

    def countersign(self, note: StatementNote, by: str | None = None, **changes: Any) -> list[int] | Refusal:
        """Of `note.partner`, signed by `by` (itself)."""
        fields = {
            "consortium": note.consortium,
            "partner": note.partner,
            "period": note.period,
            "statement": note.digest,
        }
        words = CountersignNote(**{**fields, **changes})
        said = notes.parse(signer(by or words.partner).sign(words.text))
        return self.consortium.commit(lambda now: self.statements.decide_countersign(said, now))

    def view(self, partner: str, period: str) -> StatementView:
        found = self.statements.read(Subject("member", partner), f"{partner}/{period}")
        assert isinstance(found, StatementView), found
        return found

    def note(self, partner: str, period: str) -> StatementNote:
        return StatementNote.from_note(notes.parse(self.view(partner, period).statement.encode()))

    def bundle(self, partner: str, period: str) -> Bundle:
        view = self.view(partner, period)
        note = StatementNote.from_note(notes.parse(view.statement.encode()))
        asked = f"{partner}/{note.period}/{note.journal_size}"
        proof = self.statements.read_proof(OPERATOR, asked)
        assert isinstance(proof, ProofView), proof
        return Bundle(
            **dict(view),
            format="hansa-statement-bundle/v1",
            lines=self.pages(f"{asked}/lines"),
            earlier=self.pages(f"{asked}/earlier"),
            proof=proof.proof,
        )

    def pages(self, key: str) -> tuple[Line, ...]:
        found: list[Line] = []
        start: int | None = 0
        while start is not None:
            page = self.statements.read_lines(OPERATOR, f"{key}/{start}")
            assert isinstance(page, LinesView), page
            found += page.lines
            start = page.following
        return tuple(found)

    def tlog_proof(self, index: int, size: int | None = None) -> str:
        """Any record of the journal, proven as the statements prove theirs."""
        size = size or self.journal.size
        head = Checkpoint("demo", size, self.journal.root_at(size)).sign(LOG)
        return proof_text(index, self.journal.inclusion(index, size), head, self.journal.record(index).leaf)

    def _grant(self) -> None:
        self.take(lambda now: decide_grants(self.ledger, self.consortium.charter, now))

    def _site(self, name: str) -> Any:
        return next(site for site in self.consortium.charter.sites if site.name == name)


def told(folder: Path) -> Months:
    """October, November, a silent December, and January in which the members choose quarters.

    acme works for itself at berlin; coop pays for beta's turin.
    """
    grants = (
        {"name": "short", "member": "acme", "amount": 5_000, "expires_ms": ms("2026-11-20")},
        {"name": "pledge", "member": "acme", "unit": "device_ms:cpu", "amount": 100_000},
    )
    books = Months(folder, law(grants=grants))
    _october(books)
    dispute = _november(books, grants)
    _january(books, grants, dispute)
    return books


def _october(books: Months) -> None:
    books.at("2026-10-06")
    books.work(1)
    books.work(1, "turin")
    books.settle(books.hold(2, "turin"), 50, accepted=False)
    topped = books.hold(2, amount_micro=100)
    books.hold(2, amount_micro=150, top=1)
    books.hold(2, amount_micro=1_000, top=2)
    books.settle(topped, 80)
    books.at("2026-10-07").reverse("same-month", "settle/r/1/berlin", 40)
    books.claim(ConvertNote(consortium="demo", partner="acme", device="cpu", amount_ms=1_001, nonce="1"))
    books.claim(_dispute("settle/r/1/turin", "coop", 100))
    books.at("2026-10-31T12:00:00").hold(3)
    books.hold(3, "turin")
    books.deliver(3, "turin")


def _november(books: Months, grants: Sequence[Any]) -> DisputeNote:
    books.at("2026-11-01T00:00:00").close()
    books.settle("hold/r/3/turin", 70)
    books.at("2026-11-03").expire()
    rate = {"device": "cpu", "micro_per_gflop": 5, "micro_per_device_second": 7}
    upheld = {"dispute": _dispute("settle/r/1/turin", "coop", 100).digest, "upheld_micro": 60}
    books.at("2026-11-10").enact(
        law(
            2,
            rate_card={"currency": "EUR", "rates": (rate,)},
            rulings=(upheld,),
            grants=(*grants, {"name": "more", "member": "coop", "amount": 999}),
        )
    )
    books.work(4)
    books.work(4, "turin")
    books.at("2026-11-20").expire()
    books.at("2026-11-25").reverse("late", "settle/r/1/berlin", 30)
    again = _dispute("settle/r/4/berlin", "acme", 10)
    books.claim(again)
    return again


def _january(books: Months, grants: Sequence[Any], dispute: DisputeNote) -> None:
    books.at("2027-01-05").close()
    ruling = RulingNote(consortium="demo", partner="acme", dispute=dispute.digest, outcome="withdrawn")
    books.claim(ruling)
    books.work(5)
    rules = {"contribution_owner_percent": 70, "charge_rejected_percent": 50, "period": "quarter"}
    books.at("2027-01-20").enact(law(3, accounting=rules, grants=grants))
    books.at("2027-02-10").close()
    books.work(6, "turin")
    books.at("2027-04-01").close()
    books.work(7)


def _dispute(settle: str, partner: str, amount_micro: int) -> DisputeNote:
    return DisputeNote(
        consortium="demo",
        partner=partner,
        transfer=settle,
        amount_micro=amount_micro,
        reason="metering_error",
        why="The device was idle.",
    )
