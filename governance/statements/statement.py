"""A statement as a person and an exporter want it: usages, refunds, disputes, clearing, rates.

Values only; `reading` makes them from a statement's lines. Amounts are micro of the currency. Knows no format: `focus`
and `entries` write what stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from commons.accounting import Rate, RateCard
from commons.charter import Charter
from commons.names import Digest
from commons.pricing import exact_pico, rates_of, whole_micro
from commons.statement import StatementNote
from governance.ratecard import rate_card_digest


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one site's work in one round cost: the settle of its hold, and of the hold's top-ups."""

    record: int
    """Journal index of the first settle."""
    id: str
    held_ms: int
    """When the hold was made: the round opened."""
    at_ms: int
    run: str
    round: int
    site: str
    owner: str
    payer: str
    rate_card: Digest
    charged_micro: int
    device: str
    """Empty in journals from before measures stood on the settle; then the quantities are 0."""
    precision: str
    gflop: int
    device_ms: int
    tokens: int
    energy_j: int | None
    percent: int
    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Refund:
    """Some of a charge given back."""

    record: int
    id: str
    at_ms: int
    settle: str
    charged_ms: int
    run: str
    round: int
    site: str
    owner: str
    payer: str
    reason: str
    amount_micro: int
    correction: bool
    """The charge is of an earlier period, whose statement no longer changes."""


@dataclass(frozen=True, kw_only=True)
class Disputed:
    id: Digest
    settle: str
    amount_micro: int
    opened_ms: int
    ended_ms: int | None = None
    upheld_micro: int = 0
    """Given back, when it has ended."""


@dataclass(frozen=True, kw_only=True)
class Granted:
    """Budget (or pledged device time) that came in, expired or went: a grant, a conversion, breakage, a pledge paid."""

    record: int
    id: str
    at_ms: int
    unit: str
    amount: int
    about: str
    """Conversion: the time given for it; breakage: the grant that expired; pledge: the other member."""


@dataclass(frozen=True, kw_only=True)
class OpenHold:
    id: str
    amount_micro: int
    since_ms: int


@dataclass(frozen=True)
class Card:
    digest: Digest
    since_ms: int
    card: RateCard


@dataclass(frozen=True)
class Clearing:
    """What the partner and another one owe each other for work on each other's sites."""

    other: str
    owed_micro: int
    """By the other to the partner."""
    owes_micro: int

    @property
    def net_micro(self) -> int:
        """Above 0: the other owes it."""
        return self.owed_micro - self.owes_micro


@dataclass(frozen=True)
class Total:
    """Usages of one run, site, device and precision."""

    run: str
    site: str
    experts: tuple[str, ...]
    device: str
    precision: str
    accepted: bool
    rounds: int
    gflop: int
    device_ms: int
    tokens: int
    energy_j: int | None
    """None when any of them did not tell."""
    charged_micro: int


@dataclass(frozen=True, kw_only=True)
class Statement:
    note: StatementNote
    usages: tuple[Usage, ...]
    """Paid by the partner."""
    earned: tuple[Usage, ...]
    """Work of the partner's sites that others paid."""
    refunds: tuple[Refund, ...]
    """To the partner."""
    refunds_by_owner: tuple[Refund, ...]
    """To others, for work of the partner's sites."""
    disputes: tuple[Disputed, ...]
    """Raised by the partner: opened or ended in the period, or still open."""
    grants: tuple[Granted, ...]
    """By the charter, and what other members paid as pledges."""
    pledged: tuple[Granted, ...]
    """Paid to other members."""
    conversions: tuple[Granted, ...]
    expired: tuple[Granted, ...]
    holds: tuple[OpenHold, ...]
    """Of the partner's budget, open at the end."""
    held_before_micro: int
    """What they came to at the beginning."""
    cards: tuple[Card, ...]
    """In force in the period."""
    charters: tuple[Charter, ...] = field(repr=False)

    @property
    def totals(self) -> tuple[Total, ...]:
        """What the partner paid for, summed up, in the order it began."""
        groups: dict[tuple[str, str, str, str, bool], list[Usage]] = {}
        for u in self.usages:
            groups.setdefault((u.run, u.site, u.device, u.precision, u.accepted), []).append(u)
        return tuple(self._total(found) for found in groups.values())

    @property
    def clearing(self) -> tuple[Clearing, ...]:
        """One for every partner with whom something is owed, by name."""
        owed: dict[str, int] = {}
        owes: dict[str, int] = {}
        for u in self.earned:
            owed[u.payer] = owed.get(u.payer, 0) + u.charged_micro
        for u in self.usages:
            owes[u.owner] = owes.get(u.owner, 0) + u.charged_micro
        for r in self.refunds_by_owner:
            owed[r.payer] = owed.get(r.payer, 0) - r.amount_micro
        for r in self.refunds:
            owes[r.owner] = owes.get(r.owner, 0) - r.amount_micro
        others = sorted((owed.keys() | owes.keys()) - {self.note.partner})
        return tuple(Clearing(other, owed.get(other, 0), owes.get(other, 0)) for other in others)

    def _total(self, usages: Sequence[Usage]) -> Total:
        first, energy = usages[0], [u.energy_j for u in usages if u.energy_j is not None]
        return Total(
            run=first.run,
            site=first.site,
            experts=self.experts(first.site),
            device=first.device,
            precision=first.precision,
            accepted=first.accepted,
            rounds=len(usages),
            gflop=sum(u.gflop for u in usages),
            device_ms=sum(u.device_ms for u in usages),
            tokens=sum(u.tokens for u in usages),
            energy_j=sum(energy) if len(energy) == len(usages) else None,
            charged_micro=sum(u.charged_micro for u in usages),
        )

    def experts(self, site: str) -> tuple[str, ...]:
        """By the newest charter at hand that knows the site."""
        return next((s.experts for c in reversed(self.charters) if (s := c.site(site))), ())

    def card(self, digest: str) -> RateCard:
        """A card that the lines were priced by. Raises ValueError when no charter at hand has it."""
        for charter in self.charters:
            if rate_card_digest(charter.rate_card) == digest:
                return charter.rate_card
        raise ValueError(f"no charter of the statement has rate card {digest}")

    def rate(self, usage: Usage) -> Rate:
        """The one that a measured usage was priced by. Raises ValueError when it has none."""
        rates = rates_of(self.card(usage.rate_card), usage.device, usage.precision)
        if not rates:
            raise ValueError(f"{usage.id} is for {usage.device} at {usage.precision}, which has no rate")
        return rates[0]

    def exact_pico(self, usage: Usage) -> tuple[int, int]:
        """(price of the work, price of the time) in 10^-6 micro, before rounding, shares and bounds."""
        rate = self.rate(usage)
        return exact_pico(rate, usage.gflop, 0), exact_pico(rate, 0, usage.device_ms)

    def problems(self) -> list[str]:
        """What a reader who knows the rate cards objects to, each in a sentence; empty: nothing."""
        note, found = self.note, []
        last = self.cards[-1] if self.cards else None
        stated = (note.rate_card, note.rate_card_since_ms, note.rate_cards)
        if last is None or (last.digest, last.since_ms, len(self.cards)) != stated:
            found.append(f"rate card {note.rate_card} was not in force at the end of {note.period}")
        for usage in (u for u in (*self.usages, *self.earned) if u.device):
            exact = whole_micro(sum(self.exact_pico(usage))) * usage.percent // 100
            if usage.charged_micro > exact:
                found.append(f"{usage.id} charged {usage.charged_micro} micro, its price is {exact}")
        return found
