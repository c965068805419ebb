"""The auditor's reading of charges: what each piece of work must cost, who is credited for it, what rounding left.

Every price is computed anew from the usage that a site signed and the rate card that the hold names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from commons import notes
from commons.accounting import RateCard
from commons.charter import Charter
from commons.pricing import exact_pico, rates_of
from commons.records import canonical_json
from governance.fsck_findings import Findings, Rule
from governance.fsck_rounds import Work
from governance.fsck_votes import Votes

Facts = Mapping[str, Any]
MICRO, PICO = "micro", "pico"
MILLION = 1_000_000


@dataclass(slots=True)
class Charge:
    """What was settled of a base hold and its top-ups, once for one piece of work."""

    facts: Facts
    """Of the hold."""
    index: int
    total: int
    """What all its settles together must come to."""
    left: int
    """Of that, what its top-ups still have to pay."""
    usage: str
    credited: dict[str, int]
    """Partner -> contribution."""
    settled: dict[str, int] = field(default_factory=dict)
    """Settle id -> amount."""
    corrected: dict[str, int] = field(default_factory=dict)
    """Settle id -> reversed or in suspense."""
    reversed: int = 0


class Charges:
    """Told by `governance.fsck_money` of every settle and of what stands around it."""

    def __init__(self, findings: Findings, votes: Votes) -> None:
        self._findings, self._votes = findings, votes
        self.of_hold: dict[str, Charge] = {}
        """Base hold -> what was charged on it and its top-ups."""
        self.of_settle: dict[str, Charge] = {}
        self._cards: dict[str, RateCard] = {}
        self._contributions: dict[str, dict[str, tuple[int, int]]] = {}
        """Base hold -> partner -> (index, amount), until it is settled."""
        self._roundings: dict[str, tuple[int, int]] = {}
        """Base hold -> (index of its settle, pico), until it is booked."""
        self._paid: set[int] = set()
        """Indexes of the usage records that were charged for."""

    def know(self, charter: Charter) -> None:
        """Its rate card is in force from now on, and may price holds for ever."""
        self._cards[card_digest(charter)] = charter.rate_card

    def paid(self, work: Work) -> bool:
        return work.index in self._paid

    def finish(self) -> None:
        """After the last record."""
        for index, pico in self._roundings.values():
            self._findings.add(
                Rule.CHARGE, index, f"rounds a price up by {pico} pico that are booked nowhere"
            )
        for stands in self._contributions.values():
            for index, _ in stands.values():
                what = "credits a contribution for work that was not charged"
                self._findings.add(Rule.CONTRIBUTION, index, what)

    def settle(self, index: int, hold: Facts, work: Work | None, most: int, facts: Facts) -> None:
        """`facts` settles `hold`, which has just ended. `most`: what it and its open top-ups held."""
        need, name = self._findings.require, hold["id"]
        amount, held = facts["amount_micro"], hold["amount_micro"]
        base = hold.get("tops") or name
        need(amount <= held, Rule.CHARGE, index, f"charges {amount} micro on {name}, which holds {held}")
        rest = facts.get("returned_micro") == held - amount
        need(rest, Rule.CHARGE, index, f"does not return what {name} held beyond the charge")
        charge = self.of_hold.get(base)
        if charge is None:
            charge = self.of_hold[base] = self._price(index, hold, work, most, facts)
        part = min(charge.left, held)
        charge.left -= part
        what = f"charges {amount} micro on {name}; by its usage and rate card it is {part}"
        need(amount == part, Rule.CHARGE, index, what)
        named = facts["usage"] == charge.usage
        need(named, Rule.CHARGE, index, f"names usage {facts['usage'][:23]}, which is not what was done")
        charge.settled[facts["id"]] = amount
        self.of_settle[facts["id"]] = charge

    def contribute(self, index: int, facts: Facts, *, open_hold: bool) -> None:
        """Contributions stand before the settle that they belong to."""
        partner, base = facts["partner"], facts["hold"]
        stands = self._contributions.setdefault(base, {})
        first = open_hold and base not in self.of_hold and partner not in stands
        what = f"credits {partner} for {base}, which is not about to be settled"
        if self._findings.require(first, Rule.CONTRIBUTION, index, what):
            stands[partner] = (index, facts["amount_micro"])

    def round_up(self, index: int, facts: Facts) -> None:
        due = self._roundings.pop(facts["hold"], (index, 0))[1]
        what = f"books {facts['amount']} pico as rounding of {facts['hold']}, due are {due}"
        self._findings.require(facts["amount"] == due > 0, Rule.CHARGE, index, what)

    def _price(self, index: int, hold: Facts, work: Work | None, most: int, facts: Facts) -> Charge:
        """What the whole charge must be; judges the contributions that stand before it."""
        name = hold["id"]
        if work is None:
            what = f"charges on {name} for work that no usage record stands for"
            self._findings.add(Rule.CHARGE, index, what)
            return self._credit(Charge(hold, index, 0, 0, facts["usage"], {}), accepted=False)
        what = f"charges a second time for usage record {work.index}"
        self._findings.require(not self.paid(work), Rule.CHARGE, index, what)
        self._paid.add(work.index)
        self._compare(index, facts, work)
        card, usage = self._cards.get(hold["rate_card"]), work.usage
        rates = rates_of(card, usage.device, usage.precision) if card else []
        exact = exact_pico(rates[0], usage.gflop, usage.device_ms) if rates else most * MILLION
        total = min(-(-exact // MILLION) * _percent(work) // 100, most)
        if (rounded := total * MILLION - exact) > 0:
            self._roundings[name] = (index, rounded)
        return self._credit(Charge(hold, index, total, total, work.digest, {}), accepted=work.accepted)

    def _compare(self, index: int, facts: Facts, work: Work) -> None:
        """The measure that a bill shows is the one that was signed. Older settles show none."""
        usage = work.usage
        signed = {
            "device": usage.device,
            "precision": usage.precision,
            "gflop": usage.gflop,
            "device_ms": usage.device_ms,
            "tokens": usage.tokens,
            "energy_j": usage.energy_j,
            "percent": _percent(work),
            "accepted": work.accepted,
        }
        odd = [k for k, value in signed.items() if k in facts and facts[k] != value]
        what = f"bills another {', '.join(odd)} than what stands in the journal for site {usage.site}"
        self._findings.require(not odd, Rule.CHARGE, index, what)

    def _credit(self, charge: Charge, *, accepted: bool) -> Charge:
        made, stands = charge.facts, self._contributions.pop(charge.facts["id"], {})
        owner, payer = made["partner"], made["payer"]
        owed = {owner: charge.total} if accepted else {}
        if accepted and payer != owner:
            share = 100 - self._votes.charter.accounting.contribution_owner_percent
            theirs = charge.total * share // 100
            owed = {owner: charge.total - theirs} | ({payer: theirs} if theirs else {})
        for partner in sorted(owed.keys() | stands.keys()):
            index, amount = stands.get(partner, (charge.index, 0))
            due = owed.get(partner, 0)
            what = f"credits {partner} with {amount} micro for {made['id']}, due are {due}"
            same = partner in stands and partner in owed and amount == due
            self._findings.require(same, Rule.CONTRIBUTION, index, what)
        charge.credited = {p: amount for p, (_, amount) in stands.items()}
        return charge


def card_digest(charter: Charter) -> str:
    return notes.digest(canonical_json(charter.rate_card.model_dump(mode="json")))


def _percent(work: Work) -> int:
    """Share of the price that is charged."""
    return 100 if work.accepted else work.charter.accounting.charge_rejected_percent
