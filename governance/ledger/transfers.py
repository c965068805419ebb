"""The fold of TRANSFER records: accounts, lots, holds, disputes, and what makes each transfer lawful.

Knows the accounts every type of transfer moves between and the bounds it keeps; a record that breaks one is not
folded. Refuses to know who asked for it, the charter's rules and the calendar: `books` and the decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from commons.amounts import DEVICE_MS, MICRO, PICO, PICO_PER_MICRO, is_amount
from commons.ballot_weights import DAY_MS
from commons.names import Digest
from governance.ledger.accounts import (
    Account,
    Lot,
    Purse,
    budget_account,
    consumed_account,
    contributed_account,
    pledge_account,
    require,
    rounding_account,
)
from governance.ledger.holds import Hold, HoldRequest
from governance.ledger.pledges import PLEDGES, PledgeHold

Facts = Mapping[str, Any]


@dataclass
class Dispute:
    id: Digest
    settle: str
    partner: str
    amount_micro: int
    open: bool = True
    outcome: str = ""
    """`upheld <micro>` once it has ended."""
    ruling: str = ""
    """`withdrawn` or `conceded` when a party ended it; empty when the members voted."""

    @property
    def tail(self) -> str:
        return self.id.partition(":")[2][:32]

    @property
    def account(self) -> str:
        return f"suspense/{self.tail}"

    @property
    def reversal_id(self) -> str:
        """Of the transfer that gives the payer what is upheld."""
        return f"reversal/{self.tail}"


@dataclass
class Transfers:
    """What all transfers so far come to."""

    accounts: dict[str, Account] = field(default_factory=dict)
    purses: dict[str, Purse] = field(default_factory=dict)
    """Partner -> lots of its budget, in the order partners came."""
    booked: dict[str, Facts] = field(default_factory=dict)
    """id -> facts of every grant, conversion, dispute, reversal and pledge. What belongs to a hold is known by the hold."""
    founding_micro: dict[str, int] = field(default_factory=dict)
    """Partner -> sum of the grants that follow from `members[].budget_micro`."""
    disputes: dict[Digest, Dispute] = field(default_factory=dict)
    open: dict[str, Hold] = field(default_factory=dict)
    """The holds that have not ended, in the order they were made."""
    pledges: dict[str, PledgeHold] = field(default_factory=dict)
    """The pledges that are neither paid nor given back."""
    failed: dict[str, str] = field(default_factory=dict)
    """id -> why it failed"""
    contributions: dict[str, dict[int, int]] = field(default_factory=dict)
    """Partner -> day since 1970 by UTC -> credited for work settled on it, less what was taken back."""
    _holds: dict[str, Hold] = field(default_factory=dict)
    _tops: dict[str, list[Hold]] = field(default_factory=dict)
    _open_for: dict[tuple[str, int, str], list[Hold]] = field(default_factory=dict)
    """(run, round, site) -> its holds that have not ended."""
    _suspense: dict[str, Dispute] = field(default_factory=dict)
    """Account -> the dispute it is for."""

    def hold(self, hold: str) -> Hold | None:
        return self._holds.get(hold)

    def settled(self, transfer: str) -> Hold | None:
        """The hold that this settle charged."""
        kind, _, tail = transfer.partition("/")
        found = self._holds.get(f"hold/{tail}") if kind == "settle" else None
        return found if found and found.state == "settled" else None

    def topups(self, hold: str) -> list[Hold]:
        return self._tops.get(hold, [])

    def family(self, hold: Hold) -> list[Hold]:
        """A base hold and its top-ups, whichever of them is asked for."""
        base = self._holds[hold.request.tops] if hold.request.tops else hold
        return [base, *self.topups(base.request.id)]

    def _claim(self, work: tuple[str, int, str]) -> None:
        """The site has said what its round took: the holds for it wait for their settle."""
        for hold in self._open_for.get(work, ()):
            hold.claimed = True

    def _transfer(self, facts: Facts, at_ms: int) -> None:
        unit = facts.get("unit", MICRO)
        amount = facts["amount_micro"] if unit == MICRO else facts["amount"]
        if not is_amount(amount):
            raise ValueError(f"amount {amount!r}")
        kind = facts["type"]
        if kind == "hold":
            self._apply_hold(facts, amount, at_ms)
        elif kind in _ENDS:
            self._end(facts, _ENDS[kind], amount if kind == "settle" else 0, at_ms)
        elif kind in PLEDGES:
            PLEDGES[kind](self, facts, amount, at_ms)
        else:
            _EFFECTS[kind](self, facts, amount)
        if kind == "contribution":
            self._weigh(facts["partner"], at_ms, amount)

    def _weigh(self, partner: str, at_ms: int, amount: int) -> None:
        """A contribution, or what is taken back of one, counts by the day on which the work was settled."""
        days = self.contributions.setdefault(partner, {})
        days[at_ms // DAY_MS] = days.get(at_ms // DAY_MS, 0) + amount

    def once(self, facts: Facts) -> None:
        """Once, for ever: what has no hold to tell that it happened."""
        require(facts["id"] not in self.booked, f"{facts['id']} was booked before")
        require(facts["id"] not in self.failed, f"{facts['id']} failed before")
        self.booked[facts["id"]] = facts

    def _post(self, facts: Facts, debit: str, credit: str, amount: int) -> None:
        """Move `amount`; accounts other than the partners' come into being with their first transfer."""
        if (facts["debit"], facts["credit"]) != (debit, credit):
            raise ValueError(f"{facts['id']} moves between other accounts than {debit} and {credit}")
        unit = facts.get("unit", MICRO)
        for name in (debit, credit):
            account = self.accounts.get(name)
            if account is None:
                account = self.accounts[intern(name)] = Account(intern(unit))
            if account.unit != unit:
                raise ValueError(f"{name} holds {account.unit}, not {unit}")
        self.accounts[debit].debits_posted += amount
        self.accounts[credit].credits_posted += amount

    def _apply_hold(self, facts: Facts, amount: int, at_ms: int) -> None:
        request = HoldRequest(
            id=facts["id"],
            payer=intern(facts["payer"]),
            site=intern(facts["site"]),
            run=intern(facts["run"]),
            round=facts["round"],
            amount_micro=amount,
            expires_ms=facts["expires_ms"],
            rate_card=Digest(intern(facts["rate_card"])),
            tops=facts.get("tops", ""),
        )
        debit, credit = budget_account(request.payer), consumed_account(request.run)
        require(request.id.startswith("hold/"), f"a hold has the id {request.id}")
        require(request.id not in self._holds, f"{request.id} was made before")
        require(request.id not in self.failed, f"{request.id} failed before")
        require((facts["debit"], facts["credit"]) == (debit, credit), f"{request.id} holds of other accounts")
        hold = Hold(request, intern(facts["partner"]), at_ms)
        if request.tops:
            self._link(hold, self._holds[request.tops])
        hold.draws = self.purses[request.payer].draw(amount, at_ms)
        self.accounts[debit].debits_pending += amount
        self.accounts.setdefault(credit, Account()).credits_pending += amount
        self._holds[request.id] = self.open[request.id] = hold
        self._open_for.setdefault(request.work, []).append(hold)

    def _link(self, hold: Hold, base: Hold) -> None:
        same = base.request.work == hold.request.work and base.request.payer == hold.request.payer
        require(same and base.state == "held" and not base.request.tops, f"{hold.request.id} tops up nothing")
        self._tops.setdefault(base.request.id, []).append(hold)

    def _end(self, facts: Facts, state: str, charged: int, at_ms: int) -> None:
        hold = self.open[facts["hold"]]
        request = hold.request
        held = request.amount_micro
        _named(facts, f"{facts['type']}/{hold.tail}")
        require(charged <= held, f"{request.id} is for {held}")
        debit, credit = budget_account(request.payer), consumed_account(request.run)
        require(
            (facts["debit"], facts["credit"]) == (debit, credit), f"{request.id} is between other accounts"
        )
        del self.open[request.id]
        working = self._open_for[request.work]
        working.remove(hold)
        if not working:
            del self._open_for[request.work]
        payer, consumed = self.accounts[debit], self.accounts[credit]
        payer.debits_pending -= held
        consumed.credits_pending -= held
        payer.debits_posted += charged
        consumed.credits_posted += charged
        self.purses[request.payer].spend(hold.draws, charged)
        hold.draws = ()
        hold.state, hold.charged_micro, hold.ended_ms = state, charged, at_ms
        hold.usage, hold.accepted = facts.get("usage", ""), facts.get("accepted", True)

    def _contribute(self, facts: Facts, amount: int) -> None:
        hold, partner = self._holds[facts["hold"]], facts["partner"]
        require(hold.state == "held" and not hold.request.tops, f"{hold.request.id} brings no contribution")
        if partner == hold.partner:
            require(hold.owner_credit is None, f"{hold.request.id} credits {partner} twice")
            _named(facts, f"contribution/{hold.tail}")
            hold.owner_credit = amount
        else:
            require(partner == hold.request.payer, f"{partner} has no part in {hold.request.id}")
            require(hold.payer_credit is None, f"{hold.request.id} credits {partner} twice")
            _named(facts, f"contribution/{hold.tail}/payer")
            hold.payer_credit = amount
        self._post(facts, "contribution", contributed_account(partner), amount)

    def _round(self, facts: Facts, amount: int) -> None:
        require(facts["unit"] == PICO and 0 < amount < PICO_PER_MICRO, f"{amount} were not lost by rounding")
        if "hold" in facts:
            hold = self._holds[facts["hold"]]
            _named(facts, f"rounding/{hold.tail}")
            charged = hold.state == "settled" and not hold.rounded_pico
            require(charged, f"{hold.request.id} is not settled, or was rounded before")
            self._post(facts, rounding_account(hold.request.payer), "rounding", amount)
            hold.rounded_pico = amount
        else:
            self.once(facts)
            require(f"{facts['linked']}/time" in self.booked, f"there is no {facts['linked']}")
            self._post(facts, f"fx/{PICO}", "rounding", amount)

    def _break(self, facts: Facts, amount: int) -> None:
        purse = self.purses[facts["partner"]]
        lot = next((lot for lot in purse.lots if lot.id == facts["grant"]), None)
        require(lot is not None and lot.expires_ms > 0, f"{facts['partner']} has no {facts['grant']} to lose")
        assert lot is not None
        _named(facts, breakage_id(lot))
        require(amount <= lot.free, f"{lot.id} has {lot.free} left")
        self._post(facts, budget_account(facts["partner"]), "breakage", amount)
        purse.lose(lot, amount)

    def _grant(self, facts: Facts, amount: int) -> None:
        self.once(facts)
        partner, unit = facts["partner"], facts.get("unit", MICRO)
        if unit != MICRO:
            device = unit.removeprefix(DEVICE_MS)
            self._post(facts, f"issuance/{unit}", pledge_account(partner, device), amount)
            return
        self._post(facts, "issuance", budget_account(partner), amount)
        rules = {name: facts[name] for name in ("priority", "not_before_ms", "expires_ms") if name in facts}
        self.purses[partner].add(Lot(facts["id"], amount, **rules))
        if not rules:
            self.founding_micro[partner] = self.founding_micro.get(partner, 0) + amount

    def _convert(self, facts: Facts, amount: int) -> None:
        self.once(facts)
        partner, unit = facts["partner"], facts.get("unit", MICRO)
        if unit == MICRO:
            require(f"{facts['linked']}/time" in self.booked, f"there is no {facts['linked']}")
            self._post(facts, f"fx/{MICRO}", budget_account(partner), amount)
            self.purses[partner].add(Lot(facts["id"], amount))
        else:
            pledge = pledge_account(partner, unit.removeprefix(DEVICE_MS))
            self._post(facts, pledge, f"fx/{unit}", amount)
            self._not_overdrawn(pledge)

    def _dispute(self, facts: Facts, amount: int) -> None:
        self.once(facts)
        hold = self._correctable(facts["disputes"], amount)
        request = hold.request
        dispute = Dispute(Digest(facts["dispute"]), hold.settle_id, request.payer, amount)
        require(facts["partner"] == request.payer, f"{facts['partner']} does not pay for {hold.settle_id}")
        require(dispute.account not in self.accounts, f"{dispute.account} is in use")
        self._post(facts, consumed_account(request.run), dispute.account, amount)
        hold.suspended_micro += amount
        self.purses[request.payer].disputed_micro += amount
        self.disputes[dispute.id] = self._suspense[dispute.account] = dispute

    def _dismiss(self, facts: Facts, amount: int) -> None:
        self.once(facts)
        dispute = self.disputes[Digest(facts["dispute"])]
        hold = self._settled(dispute.settle)
        self._post(facts, dispute.account, consumed_account(hold.request.run), amount)
        self._leave_suspense(dispute, hold, amount)

    def _reverse(self, facts: Facts, amount: int) -> None:
        self.once(facts)
        hold = self._settled(facts["reverses"])
        request = hold.request
        source = consumed_account(request.run)
        dispute = self._suspense.get(facts["debit"])
        if dispute is not None:
            require(dispute.settle == hold.settle_id, f"{dispute.account} is not about {hold.settle_id}")
            source = dispute.account
        self._post(facts, source, budget_account(request.payer), amount)
        if dispute is not None:
            dispute.outcome = f"upheld {amount}"
            self._leave_suspense(dispute, hold, amount)
        self._correctable(hold.settle_id, amount)
        hold.reversed_micro += amount
        purse = self.purses[request.payer]
        purse.add(Lot(facts["id"], amount))
        purse.refunded_micro += amount

    def _take_back(self, facts: Facts, amount: int) -> None:
        self.once(facts)
        partner = facts["partner"]
        base = self.family(self._settled(facts["reverses"]))[0]
        require(partner in base.contributed, f"{partner} was credited nothing for {facts['reverses']}")
        self._post(facts, contributed_account(partner), "contribution", amount)
        self._not_overdrawn(contributed_account(partner))
        self._weigh(partner, base.ended_ms, -amount)

    def _leave_suspense(self, dispute: Dispute, hold: Hold, amount: int) -> None:
        self._not_overdrawn(dispute.account)
        hold.suspended_micro -= amount
        self.purses[dispute.partner].disputed_micro -= amount
        account = self.accounts[dispute.account]
        dispute.open = account.debits_posted < account.credits_posted
        dispute.outcome = dispute.outcome or "upheld 0"

    def _settled(self, settle: str) -> Hold:
        hold = self.settled(settle)
        if hold is None:
            raise ValueError(f"there is no {settle}")
        return hold

    def _correctable(self, settle: str, amount: int) -> Hold:
        hold = self._settled(settle)
        require(amount <= hold.correctable_micro, f"{settle} has {hold.correctable_micro} left")
        return hold

    def _not_overdrawn(self, name: str) -> None:
        account = self.accounts[name]
        require(account.debits_posted <= account.credits_posted, f"{name} is overdrawn")


def _named(facts: Facts, name: str) -> None:
    if facts["id"] != name:
        raise ValueError(f"{facts['id']} is not {name}")


def breakage_id(lot: Lot) -> str:
    """Of what the lot loses next."""
    return f"breakage/{lot.id.removeprefix('grant/')}/{lot.breakages + 1}"


_ENDS = {"settle": "settled", "release": "released", "expire": "expired"}
_EFFECTS: dict[str, Callable[[Transfers, Facts, int], None]] = {
    "grant": Transfers._grant,
    "contribution": Transfers._contribute,
    "contribution-reversal": Transfers._take_back,
    "rounding": Transfers._round,
    "breakage": Transfers._break,
    "dispute": Transfers._dispute,
    "dismiss": Transfers._dismiss,
    "reversal": Transfers._reverse,
    "convert": Transfers._convert,
}
