"""An auditor of the books: follows the records as they come and says what must be true of any ledger.

Written from the promises (every transfer moves one amount between two accounts, a charge is never more than its hold,
nothing is spent twice), not from the ledger: it shares no code with `governance`, keeps plain dictionaries and counts
the slow way.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from commons.records import Kind, Record

FOREVER = 10**30


@dataclass
class Grant:
    """Part of a partner's budget that was credited at once: a grant, a conversion, a refund."""

    id: str
    kind: str
    amount: int
    priority: int
    begins: int
    ends: int
    order: int
    held: int = 0
    spent: int = 0
    lost: int = 0

    @property
    def left(self) -> int:
        return self.amount - self.held - self.spent - self.lost

    def usable(self, at: int) -> bool:
        return self.begins <= at < self.ends


@dataclass
class Claim:
    """A hold and what became of it."""

    facts: dict[str, Any]
    taken: list[tuple[Grant, int]]
    state: str = "held"
    charged: int = 0
    reversed: int = 0
    suspended: int = 0
    delivered: bool = False
    """The site said what it took, while this was held."""
    credited: dict[str, int] = field(default_factory=dict)
    given_back: Counter[str] = field(default_factory=Counter)


class Auditor:
    def __init__(self) -> None:
        self.units: dict[str, str] = {}
        self.counters: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        """Account -> debits pending, debits posted, credits pending, credits posted."""
        self.grants: defaultdict[str, list[Grant]] = defaultdict(list)
        self.claims: dict[str, Claim] = {}
        self.failed: set[str] = set()
        self.seen: set[str] = set()
        self.suspense: dict[str, tuple[str, str, int]] = {}
        """Account -> (settle, payer, amount)"""
        self.rules: dict[str, Any] = {}
        self.rates: list[dict[str, Any]] = []
        self.snapshots: dict[str, tuple[int, list[str]]] = {}
        """Period -> records in it or before, balances at its end."""
        self.size = self.now = 0
        self._period: tuple[str, int] | None = None

    def take(self, records: list[Record]) -> None:
        """One commit. AssertionError: the ledger broke a promise."""
        before = {name: list(values) for name, values in self.counters.items()}
        for record in records:
            assert record.at_ms >= self.now, "time goes back"
            self._turn(record.at_ms)
            self.now = record.at_ms
            match record.kind:
                case Kind.TRANSFER:
                    self._transfer(json.loads(record.body))
                case Kind.CHARTER:
                    self._charter(json.loads(record.body))
                case Kind.REFUSED:
                    facts = json.loads(record.body)
                    assert facts["id"] not in self.seen, "what stands cannot fail"
                    self.failed.add(facts["id"])
                case Kind.PERIOD:
                    self._close(json.loads(record.body))
                case Kind.USAGE:
                    self._delivered(record.body.decode())
                case _:
                    pass
            self.size += 1
        self._settled_together([json.loads(r.body) for r in records if r.kind is Kind.TRANSFER])
        self._balanced(before)

    def lines(self) -> list[str]:
        return [
            f"{name} {self.units[name]} {' '.join(map(str, c))}" for name, c in sorted(self.counters.items())
        ]

    def budget(self, partner: str) -> dict[str, int]:
        grants, now = self.grants[partner], self.now
        charged = [c for c in self.claims.values() if c.facts["payer"] == partner]
        refunds = sum(g.amount for g in grants if g.kind == "reversal")
        contributed = self.counters[f"partner/{partner}/contributed"]
        return {
            "granted_micro": sum(g.amount for g in grants) - refunds,
            "refunded_micro": refunds,
            "held_micro": sum(c.facts["amount_micro"] for c in charged if c.state == "held"),
            "spent_micro": sum(c.charged for c in charged),
            "available_micro": sum(g.left for g in grants if g.usable(now)),
            "later_micro": sum(g.left for g in grants if g.begins > now),
            "expired_micro": sum(g.lost + (g.left if g.ends <= now else 0) for g in grants),
            "contributed_micro": contributed[3] - contributed[1],
            "disputed_micro": sum(c.suspended for c in charged),
        }

    def _charter(self, charter: dict[str, Any]) -> None:
        self.rules = charter.get("accounting", {})
        if not self.rates:
            self._period = None
            self._turn(self.now)
        self.rates = charter["rate_card"]["rates"]
        for name in ("issuance", "contribution"):
            self._open(name, "micro")
        for member in charter["members"]:
            self._open(f"partner/{member['name']}/budget", "micro")
            self._open(f"partner/{member['name']}/contributed", "micro")

    def _open(self, name: str, unit: str) -> list[int]:
        assert self.units.setdefault(name, unit) == unit, f"{name} has two units"
        return self.counters[name]

    def _turn(self, at: int) -> None:
        """The period that was running is over with the first record after its end."""
        if self._period is None or at >= self._period[1]:
            if self._period is not None:
                self.snapshots[self._period[0]] = (self.size, self.lines())
            day = datetime.fromtimestamp(at // 1000, timezone.utc)
            quarter = (day.month + 2) // 3
            last = quarter * 3 if self.rules.get("period") == "quarter" else day.month
            name = f"{day.year}-q{quarter}" if self.rules.get("period") == "quarter" else f"{day:%Y-%m}"
            end = datetime(day.year + last // 12, last % 12 + 1, 1, tzinfo=timezone.utc)
            self._period = (name, int(end.timestamp()) * 1000)

    def _delivered(self, note: str) -> None:
        said = dict(line.split(" ", 1) for line in note.split("\n\n")[0].split("\n")[1:])
        for claim in self.claims.values():
            facts = claim.facts
            if (facts["run"], str(facts["round"]), facts["site"]) == (
                said["run"],
                said["round"],
                said["site"],
            ):
                claim.delivered |= claim.state == "held"

    def _close(self, facts: dict[str, Any]) -> None:
        size, lines = self.snapshots[facts["period"]]
        assert (facts["records"], facts["accounts"]) == (size, len(lines)), facts
        assert f"period {facts['period']}" not in self.seen, "a period closes once"
        self.seen.add(f"period {facts['period']}")

    def _transfer(self, facts: dict[str, Any]) -> None:
        name, kind, unit = facts["id"], facts["type"], facts.get("unit", "micro")
        amount = facts["amount_micro"] if unit == "micro" else facts["amount"]
        assert name not in self.seen, f"{name} stands twice"
        assert name not in self.failed, f"{name} failed before"
        assert type(amount) is int and 0 <= amount < 2**63, amount
        self.seen.add(name)
        debit, credit = self._open(facts["debit"], unit), self._open(facts["credit"], unit)
        if kind == "hold":
            debit[0] += amount
            credit[2] += amount
        elif kind in ("settle", "release", "expire"):
            held = self.claims[facts["hold"]].facts["amount_micro"]
            charged = amount if kind == "settle" else 0
            assert charged <= held, f"{name} charges {charged} of {held}"
            debit[0] -= held
            credit[2] -= held
            debit[1] += charged
            credit[3] += charged
        else:
            debit[1] += amount
            credit[3] += amount
        getattr(self, f"_{kind.replace('-', '_')}")(facts, amount)

    def _grant(self, facts: dict[str, Any], amount: int) -> None:
        if facts.get("unit", "micro") == "micro":
            assert facts["credit"] == f"partner/{facts['partner']}/budget"
            self._credited(facts, facts["partner"], amount)

    def _credited(self, facts: dict[str, Any], partner: str, amount: int) -> None:
        ends = facts.get("expires_ms", 0) or FOREVER
        rank, begins = facts.get("priority", 100), facts.get("not_before_ms", 0)
        self.grants[partner].append(
            Grant(facts["id"], facts["type"], amount, rank, begins, ends, len(self.seen))
        )

    def _hold(self, facts: dict[str, Any], amount: int) -> None:
        usable = [g for g in self.grants[facts["payer"]] if g.usable(self.now)]
        taken, left = [], amount
        for grant in sorted(usable, key=lambda g: (g.priority, g.ends, g.order)):
            part = min(left, grant.left)
            grant.held += part
            left -= part
            taken.append((grant, part))
        assert left == 0, f"{facts['id']} holds {left} that are not there"
        if "tops" in facts:
            assert self.claims[facts["tops"]].state == "held", "tops up what has ended"
        self.claims[facts["id"]] = Claim(facts, taken)

    def _end(self, facts: dict[str, Any], state: str, charged: int) -> Claim:
        claim = self.claims[facts["hold"]]
        assert claim.state == "held", f"{facts['hold']} ends twice"
        claim.state, claim.charged, left = state, charged, charged
        for grant, part in claim.taken:
            grant.held -= part
            grant.spent += min(part, left)
            left -= min(part, left)
        return claim

    def _settle(self, facts: dict[str, Any], amount: int) -> None:
        self._end(facts, "settled", amount)
        assert facts["returned_micro"] == self.claims[facts["hold"]].facts["amount_micro"] - amount

    def _release(self, facts: dict[str, Any], amount: int) -> None:
        self._end(facts, "released", 0)

    def _expire(self, facts: dict[str, Any], amount: int) -> None:
        claim = self._end(facts, "expired", 0)
        assert claim.facts["expires_ms"] <= self.now and not claim.delivered, "expired before its time"

    def _contribution(self, facts: dict[str, Any], amount: int) -> None:
        self.claims[facts["hold"]].credited[facts["partner"]] = amount

    def _rounding(self, facts: dict[str, Any], amount: int) -> None:
        assert 0 < amount < 10**6 and facts["unit"] == "pico"

    def _breakage(self, facts: dict[str, Any], amount: int) -> None:
        (grant,) = (g for g in self.grants[facts["partner"]] if g.id == facts["grant"])
        assert grant.ends <= self.now and 0 < amount <= grant.left, f"{facts['id']} takes what may be spent"
        grant.lost += amount

    def _charge(self, settle: str) -> Claim:
        claim = self.claims[settle.replace("settle", "hold", 1)]
        assert claim.state == "settled"
        return claim

    def _dispute(self, facts: dict[str, Any], amount: int) -> None:
        claim = self._charge(facts["disputes"])
        claim.suspended += amount
        assert facts["partner"] == claim.facts["payer"]
        self.suspense[facts["credit"]] = (facts["disputes"], facts["partner"], amount)

    def _dismiss(self, facts: dict[str, Any], amount: int) -> None:
        self._charge(facts["disputes"]).suspended -= amount
        assert self.suspense[facts["debit"]][0] == facts["disputes"]

    def _reversal(self, facts: dict[str, Any], amount: int) -> None:
        claim = self._charge(facts["reverses"])
        if facts["debit"] in self.suspense:
            claim.suspended -= amount
        claim.reversed += amount
        assert facts["credit"] == f"partner/{claim.facts['payer']}/budget"
        assert amount > 0 and 0 <= claim.suspended <= claim.charged - claim.reversed, facts["id"]
        self._credited(facts, claim.facts["payer"], amount)

    def _contribution_reversal(self, facts: dict[str, Any], amount: int) -> None:
        claim = self._charge(facts["reverses"])
        self._base(claim).given_back[facts["partner"]] += amount

    def _convert(self, facts: dict[str, Any], amount: int) -> None:
        if facts.get("unit", "micro") == "micro":
            self._credited(facts, facts["partner"], amount)

    def _base(self, claim: Claim) -> Claim:
        return self.claims[claim.facts["tops"]] if "tops" in claim.facts else claim

    def _family(self, base: Claim) -> list[Claim]:
        name = base.facts["id"]
        return [base, *(c for c in self.claims.values() if c.facts.get("tops") == name)]

    def _settled_together(self, transfers: list[dict[str, Any]]) -> None:
        """What one commit says about a charge or a conversion must fit together."""
        share = 100 - self.rules.get("contribution_owner_percent", 100)
        for facts in transfers:
            if facts["type"] == "settle" and "tops" not in self.claims[facts["hold"]].facts:
                base = self.claims[facts["hold"]]
                charged = sum(c.charged for c in self._family(base))
                owner, payer = base.facts["partner"], base.facts["payer"]
                payers = charged * share // 100 if payer != owner else 0
                wanted = {owner: charged - payers, payer: payers} if payers else {owner: charged - payers}
                assert base.credited == (wanted if facts["accepted"] else {}), facts
                assert all(c.state != "held" for c in self._family(base)), "a top-up outlives its hold"
            if facts["type"] == "convert" and facts.get("unit", "micro") != "micro":
                self._converted(facts, [t for t in transfers if t.get("linked") == facts["linked"]])
        for base in self.claims.values():
            charged, undone = (
                sum(getattr(c, n) for c in self._family(base)) for n in ("charged", "reversed")
            )
            for partner, credited in base.credited.items():
                assert base.given_back[partner] == undone * credited // max(charged, 1), base.facts["id"]

    def _converted(self, time: dict[str, Any], legs: list[dict[str, Any]]) -> None:
        own = [r for r in self.rates if f"device_ms:{r['device']}" == time["unit"]]
        rate = next((r for r in own if r.get("precision", "any") == "any"), own[0])
        exact = time["amount"] * rate["micro_per_device_second"] * 1000
        money = sum(t["amount_micro"] for t in legs if t["type"] == "convert" and "amount_micro" in t)
        rest = sum(t["amount"] for t in legs if t["type"] == "rounding")
        assert money * 10**6 + rest == exact and rest < 10**6

    def _balanced(self, before: dict[str, list[int]]) -> None:
        for unit in set(self.units.values()):
            own = [self.counters[n] for n, u in self.units.items() if u == unit]
            assert sum(c[0] for c in own) == sum(c[2] for c in own), f"pending {unit} do not balance"
            assert sum(c[1] for c in own) == sum(c[3] for c in own), f"posted {unit} do not balance"
        for name, old in before.items():
            now = self.counters[name]
            assert now[1] >= old[1] and now[3] >= old[3] and min(now) >= 0, (
                f"{name} falls from {old} to {now}"
            )
        for name, (dp, d, _, c) in self.counters.items():
            kind = name.split("/")[0]
            if kind in ("partner", "suspense", "run") and not name.endswith("/rounding"):
                assert dp + d <= c + (self.counters[name][2] if kind == "run" else 0), f"{name} is overdrawn"
        for partner, grants in self.grants.items():
            dp, d, _, c = self.counters[f"partner/{partner}/budget"]
            assert sum(g.amount for g in grants) == c
            assert sum(g.held for g in grants) == dp
            assert sum(g.spent + g.lost for g in grants) == d
            assert all(g.left >= 0 and min(g.held, g.spent, g.lost) >= 0 for g in grants)
            b = self.budget(partner)
            out = ("available_micro", "later_micro", "held_micro", "spent_micro", "expired_micro")
            assert b["granted_micro"] + b["refunded_micro"] == sum(b[n] for n in out), f"{partner}: {b}"
        for account, (settle, _, amount) in self.suspense.items():
            _, d, _, c = self.counters[account]
            assert c == amount and d in (0, amount), f"{account} about {settle} is {c} - {d}"
