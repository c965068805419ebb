"""The money half of the audit: accounts, lots, holds, charges and what corrects them, from the invariants alone.

Shares no code with `governance.ledger`: facts are JSON, notes are lines of text, and every sum is made again here.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.flows import Flows
from tests.simulation.pledges import Pledges
from tests.simulation.values import NEVER, Facts, Hold, Lot, Where, period_of, root, sha, sides, where

PICO = 1_000_000


@dataclass
class Money:
    """Fold records with `charter`, `usage`, `transfer`, `period`; `finish` checks what only the whole can show."""

    accounts: dict[str, list[Any]] = field(default_factory=dict)
    """Name -> [unit, debits pending, debits, credits pending, credits]."""
    lots: dict[str, list[Lot]] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    usages: dict[Where, dict[str, dict[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    """(run, round, site) -> digest of a usage note -> its fields."""
    disputes: dict[str, list[Any]] = field(default_factory=dict)
    """Tail of the dispute's digest -> [settle id, partner, amount still in suspense]."""
    cards: dict[str, Any] = field(default_factory=dict)
    charters: list[Facts] = field(default_factory=list)
    founding: Counter[str] = field(default_factory=Counter)
    credited: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Base hold -> partner -> contribution for it."""
    taken_back: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    shares: dict[str, int] = field(default_factory=dict)
    """Base hold -> the owner's percentage when it was settled."""
    roundings: Counter[str] = field(default_factory=Counter)
    conversions: dict[str, list[Facts]] = field(default_factory=lambda: defaultdict(list))
    closed: set[str] = field(default_factory=set)
    ended_periods: dict[str, tuple[int, int, int, tuple[str, ...]]] = field(default_factory=dict)
    """Period -> (begin, end, records, balance lines)."""
    flows: Flows = field(default_factory=Flows)
    dispute_notes: set[str] = field(default_factory=set)
    pledges: Pledges = field(default_factory=Pledges)
    last_ms: int = 0
    size: int = 0
    _period: tuple[str, int, int] | None = None

    def begin(self, index: int, at_ms: int) -> None:
        """Before each record: does its date end a period?"""
        if self._period is None or at_ms >= self._period[2]:
            if self._period is not None:
                name, start, end = self._period
                self.ended_periods[name] = (start, end, index, self.lines())
            rule = _rule(self.charters[-1]) if self.charters else "month"
            self._period = period_of(at_ms, rule, self._period[2] if self._period else 0)
        self.last_ms, self.size = at_ms, index + 1

    def charter(self, facts: Facts) -> None:
        self.charters.append(facts)
        if len(self.charters) == 1:  # the founders' rule holds from the beginning
            self._period = period_of(self.last_ms, _rule(facts), 0)
        text = json.dumps(facts["rate_card"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.cards[sha(text)] = facts["rate_card"]
        accounts = ["issuance", "contribution"]
        for member in facts["members"]:
            self.lots.setdefault(member["name"], [])
            accounts += [f"partner/{member['name']}/budget", f"partner/{member['name']}/contributed"]
        for name in accounts:
            self.accounts.setdefault(name, ["micro", 0, 0, 0, 0])

    def usage(self, site: Where, text: str, said: dict[str, str]) -> None:
        self.usages[site][sha(text)] = said
        for hold in self.open_holds.values():
            hold.claimed = hold.claimed or where(hold.facts) == site

    def period(self, facts: Facts, at_ms: int) -> None:
        name = facts["period"]
        assert name not in self.closed, f"{name} was closed before"
        begin, end, count, lines = self.ended_periods[name]
        assert at_ms >= end, f"{name} is closed before it ends"
        said = (facts["begin_ms"], facts["end_ms"], facts["records"], facts["accounts"], facts["balances"])
        tree = root([line.encode() for line in lines]).hex()
        assert said == (begin, end, count, len(lines), tree), f"{said} is not what {name} ended with"
        self.closed.add(name)

    def transfer(self, facts: Facts, at_ms: int) -> None:
        unit = facts.get("unit", "micro")
        amount = facts["amount_micro"] if unit == "micro" else facts["amount"]
        assert type(amount) is int and 0 <= amount < NEVER, f"{amount!r} is no amount"
        assert facts["id"] not in self.ids, f"{facts['id']} is booked twice"
        assert facts["id"] not in self.failed, f"{facts['id']} had failed for ever"
        self.ids.add(facts["id"])
        for name in (facts["debit"], facts["credit"]):
            account = self.accounts.setdefault(name, [unit, 0, 0, 0, 0])
            assert account[0] == unit, f"{name} is in {account[0]}, not in {unit}"
        if facts["type"].startswith("pledge"):
            self.pledges.transfer(self, facts, amount, at_ms)
        else:
            getattr(self, "_" + facts["type"].replace("-", "_"))(facts, amount, at_ms)
        self._sound(facts)
        assert self._period is not None
        self.flows.add(self._period[0], facts)

    def finish(self) -> None:
        """Sums per unit, and every charge against its usage, its rate card and its contributions."""
        for unit in {account[0] for account in self.accounts.values()}:
            own = [account[1:] for account in self.accounts.values() if account[0] == unit]
            pending, debits, credited, credits = (sum(column) for column in zip(*own, strict=True))
            assert (pending, debits) == (credited, credits), f"debits and credits in {unit} differ"
        for partner, lots in self.lots.items():
            _, pending, debits, _, credits = self.accounts[f"partner/{partner}/budget"]
            assert sum(lot.held for lot in lots) == pending, (
                f"{partner}: lots and account differ on what is held"
            )
            assert sum(lot.spent + lot.lost for lot in lots) == debits, f"{partner}: lots and account differ"
            assert sum(lot.amount for lot in lots) == credits, (
                f"{partner}: lots and account differ on credits"
            )
        for name, hold in self.holds.items():
            if hold.end == "settle" and not hold.facts.get("tops"):
                self._charged_rightly(name, hold)
        for tail, legs in self.conversions.items():
            self._converted_rightly(tail, legs)
        self.pledges.finish()

    def totals(self, partner: str) -> dict[str, int]:
        """What the coordinator's budget view must say of the partner, as of the last record."""
        _, held, debits, _, credits = self.accounts[f"partner/{partner}/budget"]
        lots, now = self.lots[partner], self.last_ms
        contributed = self.accounts[f"partner/{partner}/contributed"]
        refunded = sum(lot.amount for lot in lots if lot.id.startswith("reversal/"))
        lost = sum(lot.lost for lot in lots)
        stale = sum(lot.free for lot in lots if 0 < lot.expires_ms <= now)
        return {
            "granted_micro": credits - refunded,
            "held_micro": held,
            "spent_micro": debits - lost,
            "available_micro": sum(lot.free for lot in lots if lot.usable(now)),
            "contributed_micro": contributed[4] - contributed[2],
            "later_micro": sum(lot.free for lot in lots if lot.not_before_ms > now),
            "expired_micro": lost + stale,
            "refunded_micro": refunded,
            "disputed_micro": sum(rest for _, who, rest in self.disputes.values() if who == partner),
        }

    def lines(self) -> tuple[str, ...]:
        return tuple(" ".join(map(str, (name, *account))) for name, account in sorted(self.accounts.items()))

    @property
    def open_holds(self) -> dict[str, Hold]:
        return {name: hold for name, hold in self.holds.items() if not hold.end}

    # Transfers, one method for each type.

    def _grant(self, facts: Facts, amount: int, at_ms: int) -> None:
        name, partner = facts["id"].removeprefix("grant/"), facts["partner"]
        charter = self.charters[-1]
        if "/" in name:
            self.founding[partner] += amount
            budget = next(m["budget_micro"] for m in charter["members"] if m["name"] == partner)
            assert name == f"{charter['version']}/{partner}" and self.founding[partner] == budget, (
                f"grant {name}"
            )
        else:
            [voted] = [g for g in charter["grants"] if g["name"] == name]
            unit = facts.get("unit", "micro")
            assert (partner, amount, unit) == (voted["member"], voted["amount"], voted["unit"]), (
                f"grant {name}"
            )
            if unit != "micro":
                device = unit.partition(":")[2]
                self._post(facts, amount, f"issuance/{unit}", f"partner/{partner}/pledge/{device}")
                return
        limits = {key: facts[key] for key in ("priority", "not_before_ms", "expires_ms") if key in facts}
        self._post(facts, amount, "issuance", f"partner/{partner}/budget")
        self.give(partner, Lot(facts["id"], amount, **limits))

    def _hold(self, facts: Facts, amount: int, at_ms: int) -> None:
        payer, charter = facts["payer"], self.charters[-1]
        assert payer in {m["name"] for m in charter["members"]}, (
            f"{payer} has left, nothing more is held of it"
        )
        assert facts["partner"] in {s["partner"] for s in charter["sites"] if s["name"] == facts["site"]}
        assert facts["expires_ms"] > at_ms and facts["rate_card"] in self.cards, f"{facts['id']}"
        draws, left = [], amount
        for lot in self.lots[payer]:
            part = min(left, lot.free) if lot.usable(at_ms) else 0
            if part:
                lot.held += part
                left -= part
                draws.append((lot, part))
        assert not left, f"{payer} lacks {left} of the {amount} that {facts['id']} holds"
        hold = self.holds[facts["id"]] = Hold(facts, draws)
        if base := facts.get("tops"):
            assert self.holds[base].end == "", f"{facts['id']} tops up what has ended"
            self.holds[base].tops.append(hold)
            number = facts["id"].removeprefix(f"{base}/top")
            assert number.isdecimal() and int(number) > 0, f"{facts['id']} does not name what it tops up"
        assert (facts["debit"], facts["credit"]) == sides(facts)
        self.accounts[facts["debit"]][1] += amount
        self.accounts[facts["credit"]][3] += amount

    def _settle(self, facts: Facts, amount: int, at_ms: int) -> None:
        hold = self._end(facts, at_ms)
        assert amount + facts["returned_micro"] == hold.facts["amount_micro"], f"{facts['id']} loses money"
        hold.charged, hold.settle = amount, facts
        left = amount
        for lot, part in hold.draws:
            spent = min(left, part)
            left -= spent
            lot.spent += spent
        self.accounts[facts["debit"]][2] += amount
        self.accounts[facts["credit"]][4] += amount
        share = self.charters[-1].get("accounting", {}).get("contribution_owner_percent", 100)
        self.shares[facts["hold"]] = share

    def _release(self, facts: Facts, amount: int, at_ms: int) -> None:
        assert amount == self._end(facts, at_ms).facts["amount_micro"], f"{facts['id']} is not the whole hold"

    def _expire(self, facts: Facts, amount: int, at_ms: int) -> None:
        hold = self._end(facts, at_ms)
        assert amount == hold.facts["amount_micro"] and at_ms >= hold.facts["expires_ms"], f"{facts['id']}"
        assert not hold.claimed, f"{facts['id']}: the site has delivered, it is to be paid"

    def _end(self, facts: Facts, at_ms: int) -> Hold:
        hold = self.holds[facts["hold"]]
        assert not hold.end, f"{facts['hold']} ended before, by {hold.end}"
        assert facts["id"] == facts["hold"].replace("hold/", f"{facts['type']}/", 1)
        assert (facts["debit"], facts["credit"]) == sides(hold.facts), f"{facts['id']} moves elsewhere"
        held = hold.facts["amount_micro"]
        hold.end, hold.ended_ms = facts["type"], at_ms
        for lot, part in hold.draws:
            lot.held -= part
        self.accounts[facts["debit"]][1] -= held
        self.accounts[facts["credit"]][3] -= held
        return hold

    def _contribution(self, facts: Facts, amount: int, at_ms: int) -> None:
        self._post(facts, amount, "contribution", f"partner/{facts['partner']}/contributed")
        self.credited[facts["hold"]][facts["partner"]] += amount

    def _contribution_reversal(self, facts: Facts, amount: int, at_ms: int) -> None:
        self._post(facts, amount, f"partner/{facts['partner']}/contributed", "contribution")
        self.taken_back[self._base(facts["reverses"])][facts["partner"]] += amount

    def _rounding(self, facts: Facts, amount: int, at_ms: int) -> None:
        assert 0 < amount < PICO, f"{facts['id']}: {amount} pico is no rounding"
        if facts["id"].startswith("rounding/convert/"):
            self._post(facts, amount, "fx/pico", "rounding")
            self.conversions[facts["id"].rpartition("/")[2]].append(facts)
            return
        payer = self.holds[facts["hold"]].facts["payer"]
        self._post(facts, amount, f"partner/{payer}/rounding", "rounding")
        self.roundings[facts["hold"]] += amount

    def _breakage(self, facts: Facts, amount: int, at_ms: int) -> None:
        partner = facts["partner"]
        [lot] = [lot for lot in self.lots[partner] if lot.id == facts["grant"]]
        self._post(facts, amount, f"partner/{partner}/budget", "breakage")
        assert 0 < lot.expires_ms <= at_ms and 0 < amount == lot.free, f"{facts['id']}: {lot}"
        lot.lost += amount
        lot.losses += 1
        assert facts["id"] == f"breakage/{lot.id.removeprefix('grant/')}/{lot.losses}"

    def _reversal(self, facts: Facts, amount: int, at_ms: int) -> None:
        hold = self._charge(facts["reverses"])
        payer, tail = hold.facts["payer"], facts["id"].removeprefix("reversal/")
        source = f"run/{hold.facts['run']}/consumed"
        if facts["debit"] != source:
            source = f"suspense/{tail}"
            assert self.disputes[tail][0] == facts["reverses"], f"{facts['id']} is for another charge"
            self.disputes[tail][2] -= amount
            hold.suspended -= amount
        assert 0 < amount <= hold.left, f"{facts['id']} gives back {amount}, {hold.left} are left"
        self._post(facts, amount, source, f"partner/{payer}/budget")
        hold.reversed += amount
        self.give(payer, Lot(facts["id"], amount))

    def _dispute(self, facts: Facts, amount: int, at_ms: int) -> None:
        hold, tail = self._charge(facts["disputes"]), facts["id"].removeprefix("dispute/")
        self._post(facts, amount, f"run/{hold.facts['run']}/consumed", f"suspense/{tail}")
        assert facts["dispute"] in self.dispute_notes and facts["dispute"].startswith(f"sha256:{tail}")
        assert 0 < amount <= hold.left and facts["partner"] == hold.facts["payer"], f"{facts['id']}"
        hold.suspended += amount
        self.disputes[tail] = [facts["disputes"], facts["partner"], amount]

    def _dismiss(self, facts: Facts, amount: int, at_ms: int) -> None:
        hold, tail = self._charge(facts["disputes"]), facts["id"].removeprefix("dismiss/")
        self._post(facts, amount, f"suspense/{tail}", f"run/{hold.facts['run']}/consumed")
        assert self.disputes[tail][0] == facts["disputes"], f"{facts['id']} is for another charge"
        self.disputes[tail][2] -= amount
        hold.suspended -= amount

    def _convert(self, facts: Facts, amount: int, at_ms: int) -> None:
        partner = facts["partner"]
        self.conversions[facts["id"].split("/")[1]].append(facts)
        if facts.get("unit", "micro") == "micro":
            self._post(facts, amount, "fx/micro", f"partner/{partner}/budget")
            self.give(partner, Lot(facts["id"], amount))
        else:
            device = facts["unit"].partition(":")[2]
            self._post(facts, amount, f"partner/{partner}/pledge/{device}", f"fx/{facts['unit']}")

    def _post(self, facts: Facts, amount: int, debit: str, credit: str) -> None:
        assert (facts["debit"], facts["credit"]) == (debit, credit), f"{facts['id']} goes {facts}"
        self.accounts[debit][2] += amount
        self.accounts[credit][4] += amount

    def give(self, partner: str, lot: Lot) -> None:
        self.lots[partner].append(lot)
        self.lots[partner].sort(key=lambda lot: (lot.priority, lot.expires_ms or NEVER))

    def _charge(self, settle: str) -> Hold:
        hold = self.holds[settle.replace("settle/", "hold/", 1)]
        assert hold.end == "settle", f"there is no charge {settle}"
        return hold

    def _base(self, settle: str) -> str:
        hold = self._charge(settle)
        return str(hold.facts.get("tops") or hold.facts["id"])

    def _sound(self, facts: Facts) -> None:
        """Nobody is overdrawn after any transfer; what is in suspense is what is disputed."""
        for name in (facts["debit"], facts["credit"]):
            _, pending, debits, _, credits = self.accounts[name]
            if name.startswith("partner/") and not name.endswith("/rounding"):
                assert pending + debits <= credits, f"{name} is overdrawn by {facts['id']}"
            if name.startswith("suspense/"):
                assert credits - debits == self.disputes[name.removeprefix("suspense/")][2] >= 0, name

    def _charged_rightly(self, name: str, hold: Hold) -> None:
        family = [hold, *(top for top in hold.tops if top.ended_ms == hold.ended_ms)]
        charged, settle = sum(h.charged for h in family), hold.settle
        said = self.usages[where(hold.facts)].pop(settle["usage"])
        for key in ("device", "precision", "gflop", "device_ms", "tokens", "energy_j"):
            value = "-" if settle[key] is None else str(settle[key])
            assert value == said[key], f"{name}: {key} is {value}, the site signed {said[key]}"
        exact = self._exact(hold.facts["rate_card"], said)
        due = -(-exact // PICO) * settle["percent"] // 100
        assert charged == min(due, sum(h.facts["amount_micro"] for h in family)), (
            f"{name} is charged {charged}"
        )
        assert self.roundings[name] == max(0, charged * PICO - exact), f"{name} is rounded otherwise"
        owner, payer, credited = hold.facts["partner"], hold.facts["payer"], self.credited[name]
        theirs = charged * (100 - self.shares[name]) // 100 if payer != owner else 0
        wanted = Counter({owner: charged - theirs, payer: theirs} if payer != owner else {owner: charged})
        assert +credited == (+wanted if settle["accepted"] else Counter()), (
            f"{name} is contributed {credited}"
        )
        back = sum(h.reversed for h in family)
        for partner, amount in credited.items():
            share = back * amount // charged if charged else 0
            assert self.taken_back[name][partner] == share, f"{name}: {partner} keeps contribution given back"

    def _exact(self, card: str, said: Mapping[str, str]) -> int:
        rates = [r for r in self.cards[card]["rates"] if r["device"] == said["device"]]
        own = [r for r in rates if r.get("precision", "any") == said["precision"]]
        [rate] = own or [r for r in rates if r.get("precision", "any") == "any"]
        flop = rate["micro_per_gflop"] * PICO + rate.get("micro_per_pflop", 0)
        time = rate.get("micro_per_device_second", 0) * 1000
        exact: int = int(said["gflop"]) * flop + int(said["device_ms"]) * time
        return exact

    def _converted_rightly(self, tail: str, legs: Sequence[Facts]) -> None:
        [time] = [leg for leg in legs if leg["id"] == f"convert/{tail}/time"]
        device = time["unit"].partition(":")[2]
        rates = [r for r in self.cards[time["rate_card"]]["rates"] if r["device"] == device]
        rate = next((r for r in rates if r.get("precision", "any") == "any"), rates[0])
        exact = time["amount"] * rate["micro_per_device_second"] * 1000
        got = sum(leg.get("amount_micro", 0) * PICO for leg in legs)
        got += sum(leg["amount"] for leg in legs if leg.get("unit") == "pico")
        assert got == exact, f"conversion {tail} of {time['amount']} ms gives {got} pico, not {exact}"


def _rule(charter: Facts) -> str:
    rule: str = charter.get("accounting", {}).get("period", "month")
    return rule
