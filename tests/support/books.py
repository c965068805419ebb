"""A ledger in memory with the records it was folded from, and the words of the members who speak to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from commons import charter_file
from commons.charter import Charter
from commons.claims import ConvertNote, DisputeNote, RulingNote
from commons.errors import Refusal
from commons.names import Digest
from commons.notes import Note, parse
from commons.records import Kind, Record, fact
from commons.work import UsageNote
from governance.ledger import (
    Budget,
    Charge,
    HoldRequest,
    Ledger,
    decide_claim,
    decide_grants,
    decide_hold,
    decide_settle,
)
from governance.ratecard import rate_card_digest
from tests.support.chamber import charter, signer

NOW = 1_000
HOLD = "hold/r/1/berlin"
SETTLE = "settle/r/1/berlin"
CARD = rate_card_digest(charter().rate_card)
OWNERS = {"berlin": "acme", "turin": "beta"}


def request(round_number: int = 1, site: str = "berlin", payer: str = "acme", **changes: Any) -> HoldRequest:
    """A hold of 600,000 micro until 5,000 ms, at the card of the charter in `tests.support.chamber`."""
    fields: dict[str, Any] = {
        "id": f"hold/r/{round_number}/{site}",
        "payer": payer,
        "site": site,
        "run": "r",
        "round": round_number,
        "amount_micro": 600_000,
        "expires_ms": 5_000,
        "rate_card": CARD,
    }
    return HoldRequest(**{**fields, **changes})


def topup(number: int = 1, base: HoldRequest | None = None, **changes: Any) -> HoldRequest:
    """100,000 micro more for `base`."""
    base = base or request()
    fields = {"id": f"{base.id}/top{number}", "tops": base.id, "amount_micro": 100_000}
    return replace(base, **{**fields, **changes})


def charge(amount_micro: int, **changes: Any) -> Charge:
    return Charge(**{"amount_micro": amount_micro, "usage": "sha256:" + "a" * 64, **changes})


def usage_note(round_number: int = 1, site: str = "berlin") -> bytes:
    words = UsageNote(
        consortium="demo", run="r", round=round_number, site=site, lease="lease", device="cpu",
        device_ids=f"cpu/{site}", precision="fp32", started_ms=1, ended_ms=2, device_ms=1, steps=1, tokens=1,
        gflop=1, energy_j=None, update="sha256:" + "b" * 64,
    )  # fmt: skip
    return signer(f"{OWNERS.get(site, 'acme')}/{site}").sign(words.text)


def signed(words: DisputeNote | RulingNote | ConvertNote, by: str = "") -> Note:
    return parse(signer(by or words.partner).sign(words.text))


def dispute(
    transfer: str = SETTLE, amount_micro: int = 1, partner: str = "acme", **changes: Any
) -> DisputeNote:
    fields: dict[str, Any] = {
        "consortium": "demo",
        "partner": partner,
        "transfer": transfer,
        "amount_micro": amount_micro,
        "reason": "metering_error",
        "why": "The device was idle.",
    }
    return DisputeNote(**{**fields, **changes})


def ruling(about: Digest | str, outcome: Any, partner: str = "acme") -> RulingNote:
    return RulingNote(consortium="demo", partner=partner, dispute=about, outcome=outcome)


def conversion(amount_ms: int, partner: str = "acme", device: str = "cpu", nonce: str = "1") -> ConvertNote:
    return ConvertNote(consortium="demo", partner=partner, device=device, amount_ms=amount_ms, nonce=nonce)


def closings(ledger: Ledger, now_ms: int) -> list[Record]:
    """What closes the periods that are over, with some root: the tree over the balances is the statements'."""
    return [
        fact(
            Kind.PERIOD, now_ms, period=p.name, begin_ms=p.begin_ms, end_ms=p.end_ms, records=size,
            balances="00" * 32, accounts=len(lines),
        )
        for p, size, lines in ledger.due_periods(now_ms)
    ]  # fmt: skip


class Books:
    """A consortium's ledger and its history; `take` does what the coordinator's one door does, without a store."""

    def __init__(self, founding: Charter | None = None, at_ms: int = 0) -> None:
        self.ledger = Ledger()
        self.records: list[Record] = []
        self.enact(founding or charter(), at_ms)

    def enact(self, of: Charter, at_ms: int = NOW) -> list[Record]:
        """`of` is in force from now on, and what it grants is booked."""
        self.charter = of
        self.take([Record(Kind.CHARTER, at_ms, charter_file.canonical(of))])
        return self.take(decide_grants(self.ledger, of, at_ms))

    def take(self, decided: Sequence[Record] | Refusal) -> list[Record]:
        assert not isinstance(decided, Refusal), decided
        for record in decided:
            self.ledger.apply(len(self.records), record)
            self.records.append(record)
        return list(decided)

    def hold(self, *requests: HoldRequest, now_ms: int = NOW) -> list[Record]:
        return self.take(decide_hold(self.ledger, requests or [request()], now_ms))

    def settle(
        self, hold: str = HOLD, amount_micro: int = 5, now_ms: int = NOW, **changes: Any
    ) -> list[Record]:
        return self.take(decide_settle(self.ledger, hold, charge(amount_micro, **changes), now_ms))

    def try_claim(
        self, words: DisputeNote | RulingNote | ConvertNote, now_ms: int = NOW, by: str = ""
    ) -> list[Record] | Refusal:
        return decide_claim(self.ledger, signed(words, by), self.charter, now_ms)

    def claim(self, words: DisputeNote | RulingNote | ConvertNote, now_ms: int = NOW) -> list[Record]:
        return self.take(self.try_claim(words, now_ms))

    def budget(self, partner: str = "acme") -> Budget:
        return next(b for b in self.ledger.budgets() if b.partner == partner)

    def state(self, partner: str = "acme") -> tuple[int, int, int, int]:
        """(held, spent, available, contributed)"""
        found = self.budget(partner)
        return found.held_micro, found.spent_micro, found.available_micro, found.contributed_micro

    def replayed(self) -> Ledger:
        again = Ledger()
        for index, record in enumerate(self.records):
            again.apply(index, record)
        return again
