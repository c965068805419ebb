"""The auditor's reading of the money: grants, holds, charges, contributions, from raw transfers and first principles.

Computes every price from the usage a site signed and the rate card the members voted, and compares. Corrections,
disputes, conversions and periods are read by `governance.fsck_claims`.
"""

from __future__ import annotations

from dataclasses import dataclass

from commons import charter_file
from commons.charter import Charter
from commons.records import Kind, Record
from governance.fsck_accounts import Books, Draw, put_back
from governance.fsck_charges import MICRO, PICO, Charges, Facts, card_digest
from governance.fsck_findings import Findings, Rule
from governance.fsck_pledges import Pledges
from governance.fsck_rounds import Key, Rounds
from governance.fsck_votes import Votes

_SAME = ("run", "round", "site", "payer", "rate_card")


@dataclass(slots=True)
class Hold:
    facts: Facts
    index: int
    draws: list[Draw]

    @property
    def amount(self) -> int:
        amount: int = self.facts["amount_micro"]
        return amount

    @property
    def base(self) -> str:
        """Itself, or the hold that it tops up."""
        base: str = self.facts.get("tops") or self.facts["id"]
        return base


class Money:
    """Reads the TRANSFER and REFUSED records, and what charters say of money."""

    def __init__(self, findings: Findings, votes: Votes) -> None:
        self.findings, self.votes = findings, votes
        self.books = Books()
        self.held: dict[str, int] = {}
        """Id -> amount of every hold that is open."""
        self.charges = Charges(findings, votes)
        self._holds: dict[str, Hold] = {}
        self._held_for: dict[Key, str] = {}
        """Work -> its base hold, while that is open."""
        self._ids: set[str] = set()
        self._failed: set[str] = set()
        self._founding: dict[str, int] = {}
        self._pledges = Pledges(findings, votes, self.books, self.check_legs)
        self._types = {
            **self._pledges.types,
            "grant": self._grant,
            "hold": self._hold,
            "settle": self._settle,
            "release": self._give_back,
            "expire": self._give_back,
            "contribution": self._contribute,
            "rounding": self._round_up,
            "breakage": self._break,
        }

    def attend(self, rounds: Rounds) -> None:
        """Whose work is paid for."""
        self._rounds = rounds

    def reads(self, facts: Facts) -> bool:
        """Whether this transfer is read here; if not, it is a claim's."""
        return facts["type"] in self._types and not facts["id"].startswith("rounding/convert/")

    def take(self, index: int, record: Record) -> None:
        self._pledges.take(index, record)
        match record.kind:
            case Kind.CHARTER:
                self._charter(charter_file.from_canonical(record.body))
            case Kind.REFUSED:
                name = record.facts["id"]
                known = name in self._failed or name in self._ids
                what = f"says {name} failed, which has failed or was booked before"
                self.findings.require(not known, Rule.TRANSFER, index, what)
                self._failed.add(name)
            case Kind.TRANSFER:
                facts = record.facts
                self._check_form(index, facts)
                if self.reads(facts):
                    self._types[facts["type"]](index, record.at_ms, facts)

    def finish(self, size: int) -> None:
        """After the last record."""
        self.charges.finish()
        self._pledges.finish(size)

    def check_legs(self, index: int, facts: Facts, debit: str, credit: str) -> None:
        """The transfer moves between these two accounts."""
        same = (facts["debit"], facts["credit"]) == (debit, credit)
        what = f"moves from {facts['debit']} to {facts['credit']}; a {facts['type']} like this, from {debit} to {credit}"
        self.findings.require(same, Rule.TRANSFER, index, what)

    def _charter(self, charter: Charter) -> None:
        self.charges.know(charter)
        for name in ("issuance", "contribution"):
            self.books.account(name, MICRO)
        for member in charter.members:
            self.books.account(f"partner/{member.name}/budget", MICRO)
            self.books.account(f"partner/{member.name}/contributed", MICRO)

    def _check_form(self, index: int, facts: Facts) -> None:
        need = self.findings.require
        unit = facts.get("unit", MICRO)
        amount = facts["amount_micro"] if unit == MICRO else facts["amount"]
        whole = type(amount) is int and 0 <= amount < 2**63
        if not whole:
            raise ValueError(f"{amount!r} is no amount")
        for name in (facts["debit"], facts["credit"]):
            known = self.books.unit(name)
            what = f"moves {unit} on account {name}, which is in {known}"
            need(known in (None, unit), Rule.TRANSFER, index, what)
        need(facts["id"] not in self._ids, Rule.TRANSFER, index, f"books {facts['id']} a second time")
        what = f"books {facts['id']}, which failed before and must stay failed"
        need(facts["id"] not in self._failed, Rule.TRANSFER, index, what)
        self._ids.add(facts["id"])

    def _grant(self, index: int, at_ms: int, facts: Facts) -> None:
        charter, need, partner = self.votes.charter, self.findings.require, facts["partner"]
        member = charter.member(partner)
        name = facts["id"].partition("/")[2]
        granted = next((g for g in charter.grants if g.name == name), None)
        unit = facts.get("unit", MICRO)
        lot = {k: facts[k] for k in ("priority", "not_before_ms", "expires_ms") if k in facts}
        if granted is not None:
            amount = facts["amount_micro"] if unit == MICRO else facts["amount"]
            told = (granted.member, granted.unit, granted.amount)
            due = {k: getattr(granted, k) for k in ("priority", "not_before_ms", "expires_ms")}
            same = told == (partner, unit, amount) and (unit != MICRO or lot == due)
            need(
                same,
                Rule.GRANT,
                index,
                f"grants {amount} {unit} to {partner}, {name} is {told[2]} {told[1]} to {told[0]}",
            )
        else:
            amount = facts["amount_micro"]
            before = self._founding.get(partner, 0)
            due_micro = member.budget_micro - before if member else 0
            lawful = (
                name == f"{charter.version}/{partner}" and amount == due_micro and not lot and unit == MICRO
            )
            what = f"grants {partner} {amount} micro as {facts['id']}, charter version {charter.version} owes {due_micro}"
            need(lawful, Rule.GRANT, index, what)
            self._founding[partner] = before + amount
        if unit == MICRO:
            self.check_legs(index, facts, "issuance", f"partner/{partner}/budget")
            self.books.add_lot(partner, facts["id"], amount, **lot)
        else:
            device = unit.partition(":")[2]
            self.check_legs(index, facts, f"issuance/{unit}", f"partner/{partner}/pledge/{device}")
        self.books.post(facts["debit"], facts["credit"], unit, amount)

    def _hold(self, index: int, at_ms: int, facts: Facts) -> None:
        need, name, amount = self.findings.require, facts["id"], facts["amount_micro"]
        key = (facts["run"], facts["round"], facts["site"])
        charter = self._rounds.charter(*key) or self.votes.charter
        site = charter.site(facts["site"])
        self.check_legs(index, facts, f"partner/{facts['payer']}/budget", f"run/{facts['run']}/consumed")
        roles = (site.payer, site.partner) if site else ("nobody", "nobody")
        what = f"holds for site {facts['site']} at the cost of {facts['payer']}, for {facts['partner']}"
        right = roles == (facts["payer"], facts["partner"])
        need(right, Rule.HOLD, index, f"{what}; the charter says {roles[0]}, for {roles[1]}")
        member = self.votes.charter.member(facts["payer"]) is not None
        need(member, Rule.HOLD, index, f"holds of the budget of {facts['payer']}, who is no member")
        need(facts["expires_ms"] > at_ms, Rule.HOLD, index, f"makes {name}, which had expired by then")
        of_round = facts["rate_card"] == card_digest(charter)
        need(of_round, Rule.HOLD, index, f"prices {name} by another rate card than the one in force")
        tops = facts.get("tops")
        if tops:
            lawful = tops in self.held and name.startswith(f"{tops}/top") and key not in self._rounds.work
            need(
                lawful and amount > 0,
                Rule.HOLD,
                index,
                f"tops up {tops} as {name}, which may not be topped up then",
            )
        else:
            plain = f"hold/{key[0]}/{key[1]}/{key[2]}"
            need(name.startswith(plain), Rule.HOLD, index, f"calls a hold for {plain[5:]} {name}")
            need(
                key not in self._held_for,
                Rule.HOLD,
                index,
                f"holds a second time for site {key[2]} in round {key[1]}",
            )
            self._held_for[key] = name
        draws, lacking = self.books.draw(facts["payer"], amount, at_ms)
        what = f"holds {amount} micro of the budget of {facts['payer']}, which has {amount - lacking}"
        need(not lacking, Rule.OVERDRAFT, index, what)
        self.books.pend(facts["debit"], facts["credit"], MICRO, amount)
        self.held[name] = amount
        self._holds[name] = Hold(facts, index, draws)

    def _end(self, index: int, facts: Facts) -> Hold | None:
        """Take the hold that this record ends, if it is open."""
        hold = self._holds.pop(facts["hold"], None)
        if hold is None:
            self.findings.add(
                Rule.ENDING, index, f"ends {facts['hold']}, which is not open: a hold ends once"
            )
            return None
        del self.held[facts["hold"]]
        if self._held_for.get(_key(hold)) == facts["hold"]:
            del self._held_for[_key(hold)]
        made = hold.facts
        name = made["id"].replace("hold/", f"{facts['type']}/", 1)
        same = facts["id"] == name and all(facts[k] == made[k] for k in _SAME)
        self.findings.require(same, Rule.ENDING, index, f"ends {made['id']} as if it were for something else")
        self.check_legs(index, facts, made["debit"], made["credit"])
        self.books.pend(made["debit"], made["credit"], MICRO, -hold.amount)
        return hold

    def _give_back(self, index: int, at_ms: int, facts: Facts) -> None:
        hold = self._end(index, facts)
        if hold is None:
            return
        put_back(hold.draws, 0)
        need, name = self.findings.require, facts["hold"]
        need(
            facts["amount_micro"] == hold.amount,
            Rule.ENDING,
            index,
            f"returns another amount than {name} held",
        )
        due = facts["type"] == "release" or at_ms >= hold.facts["expires_ms"]
        need(due, Rule.ENDING, index, f"lets {name} expire before its time")
        charge = self.charges.of_hold.get(hold.base)
        if charge is not None:
            what = f"returns {name}, of which {min(charge.left, hold.amount)} micro were to be charged"
            need(not charge.left, Rule.CHARGE, index, what)
            return
        work = self._rounds.work.get(_key(hold))
        unpaid = work is not None and not self.charges.paid(work)
        need(not unpaid, Rule.ENDING, index, f"returns {name}, for whose work a usage record stands unpaid")

    def _settle(self, index: int, at_ms: int, facts: Facts) -> None:
        hold = self._end(index, facts)
        if hold is None:
            return
        put_back(hold.draws, facts["amount_micro"])
        self.books.post(hold.facts["debit"], hold.facts["credit"], MICRO, facts["amount_micro"])
        tops = (h.amount for h in self._holds.values() if h.facts.get("tops") == hold.base)
        most = hold.amount + sum(tops)
        self.charges.settle(index, hold.facts, self._rounds.work.get(_key(hold)), most, facts)

    def _contribute(self, index: int, at_ms: int, facts: Facts) -> None:
        self.check_legs(index, facts, "contribution", f"partner/{facts['partner']}/contributed")
        self.books.post(facts["debit"], facts["credit"], MICRO, facts["amount_micro"])
        self.charges.contribute(index, facts, open_hold=facts["hold"] in self._holds)

    def _round_up(self, index: int, at_ms: int, facts: Facts) -> None:
        charge = self.charges.of_hold.get(facts["hold"])
        payer = charge.facts["payer"] if charge else "nobody"
        self.check_legs(index, facts, f"partner/{payer}/rounding", "rounding")
        self.charges.round_up(index, facts)
        self.books.post(facts["debit"], facts["credit"], PICO, facts["amount"])

    def _break(self, index: int, at_ms: int, facts: Facts) -> None:
        need, partner, amount = self.findings.require, facts["partner"], facts["amount_micro"]
        self.check_legs(index, facts, f"partner/{partner}/budget", "breakage")
        lot = self.books.lot(partner, facts["grant"])
        expired = lot is not None and at_ms >= lot.expires_ms
        what = (
            f"takes {amount} micro of {facts['grant']} from {partner}, which had not expired with that left"
        )
        if need(expired and lot is not None and 0 < amount == lot.left, Rule.BREAKAGE, index, what) and lot:
            lot.left -= amount
            lot.breakages += 1
            name = f"breakage/{lot.id.removeprefix('grant/')}/{lot.breakages}"
            need(facts["id"] == name, Rule.BREAKAGE, index, f"is called {facts['id']}, expected {name}")
        self.books.post(facts["debit"], facts["credit"], MICRO, amount)


def _key(hold: Hold) -> Key:
    return hold.facts["run"], hold.facts["round"], hold.facts["site"]
