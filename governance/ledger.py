"""The compute-budget ledger: who may spend what, what is held, what was charged, who contributed.

Pure: a fold over the journal's records and decisions that return new records or one refusal. No clock, no
randomness, no IO, no float. Double entry with TigerBeetle's semantics: every transfer debits one account and
credits one other, a hold counts against the budget at once and ends exactly once, by settle (at most the hold,
the remainder returns with it), release or expire. An id is made by the caller and means one transfer for ever.

Accounts: ``issuance`` and ``contribution`` (unbounded), ``partner/<p>/budget`` (never overdrawn),
``partner/<p>/contributed``, ``run/<r>/consumed``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from commons import notes
from commons.charter import Charter
from commons.errors import Code, Refusal, StoreError
from commons.records import Kind, Record, fact
from commons.work import UpdateNote
from governance.holds import (
    Account,
    Budget,
    Hold,
    HoldRequest,
    available,
    budget_account,
    consumed_account,
    contributed_account,
    difference,
    ended,
    ending,
    invalid_amount,
    is_amount,
    require,
    unknown_hold,
)

__all__ = ["Account", "Budget", "Hold", "HoldRequest", "Ledger"]

HOLDS_MAX = 1024
"""Requests of one linked batch: as many as a charter may have sites."""


@dataclass
class Ledger:
    """State folded from records by `apply`; `decide_*` answer with records and change nothing."""

    accounts: dict[str, Account] = field(default_factory=dict)
    _owners: dict[str, str] = field(default_factory=dict)
    """site -> partner, by the charter in force"""
    _holds: dict[str, Hold] = field(default_factory=dict)
    _open: dict[str, Hold] = field(default_factory=dict)
    """The holds that have not ended, in the order they were made."""
    _failed: dict[str, str] = field(default_factory=dict)
    """id -> why it failed"""
    _booked: set[str] = field(default_factory=set)

    def decide_grants(self, charter: Charter, now_ms: int) -> list[Record]:
        """Grants that bring every member's granted total up to the charter's budget. Asked twice: none.

        A budget that the charter lowered is left as it is: what was granted is not taken back here.
        """
        granted = {p: account.credits_posted for p, account in self._budget_accounts().items()}
        return [
            fact(
                Kind.TRANSFER,
                now_ms,
                type="grant",
                id=f"grant/{charter.version}/{member.name}",
                debit="issuance",
                credit=budget_account(member.name),
                amount_micro=member.budget_micro - granted.get(member.name, 0),
                partner=member.name,
            )
            for member in charter.members
            if member.budget_micro > granted.get(member.name, 0)
        ]

    def decide_hold(self, requests: Sequence[HoldRequest], now_ms: int) -> list[Record] | Refusal:
        """All of the holds or none. Requests that stand already, field for field, add nothing.

        Refuses, first cause first: exists_with_different_fields, id_already_failed, amount_invalid,
        hold_expired, account_not_found, exceeds_budget with
        ``details["lacking"] = {payer: {"needs": micro, "available": micro}}`` for every payer who lacks.
        """
        assert len(requests) <= HOLDS_MAX, f"{len(requests)} holds in one batch"
        fresh: dict[str, HoldRequest] = {}
        for request in requests:
            stands = self._holds[request.id].request if request.id in self._holds else fresh.get(request.id)
            refusal = self._refuse_hold(request, stands, now_ms)
            if refusal is not None:
                return refusal
            if stands is None:
                fresh[request.id] = request
        lacking = self._lacking(fresh)
        if lacking:
            whose = "; ".join(
                f"{payer} needs {need['needs']} micro and has {need['available']}"
                for payer, need in lacking.items()
            )
            message = f"budget exceeded: {whose}; the consortium grants more by an executed proposal"
            return Refusal(Code.EXCEEDS_BUDGET, message, {"lacking": lacking})
        return [self._hold_record(request, now_ms) for request in fresh.values()]

    def decide_settle(self, hold: str, amount_micro: int, now_ms: int, usage: str) -> list[Record] | Refusal:
        """Charge `amount_micro` of a hold, return the remainder, credit the site's partner. Asked twice: nothing.

        `usage` names what was paid for (digest of the usage note). Refuses: hold_not_found, amount_invalid,
        hold_already_settled (for another amount or usage), hold_already_released, hold_expired, exceeds_hold.
        """
        found = self._holds.get(hold)
        if found is None:
            return unknown_hold(hold)
        if not is_amount(amount_micro):
            return invalid_amount(hold, amount_micro)
        if found.state == "settled" and (found.charged_micro, found.usage) == (amount_micro, usage):
            return []
        if found.state != "held":
            return ended(found)
        if not found.admitted and now_ms >= found.request.expires_ms:
            return ended(replace(found, state="expired"))
        if amount_micro > found.request.amount_micro:
            message = f"{hold} is for {found.request.amount_micro} micro, the charge would be {amount_micro}"
            return Refusal(Code.EXCEEDS_HOLD, message)
        returned = found.request.amount_micro - amount_micro
        settle = ending(found, "settle", amount_micro, now_ms, usage=usage, returned_micro=returned)
        contribution = fact(
            Kind.TRANSFER,
            now_ms,
            type="contribution",
            id=hold.replace("hold/", "contribution/", 1),
            debit="contribution",
            credit=contributed_account(found.partner),
            amount_micro=amount_micro,
            partner=found.partner,
            hold=hold,
            run=found.request.run,
            round=found.request.round,
            site=found.request.site,
        )
        return [contribution, settle]

    def decide_release(self, hold: str, why: str, now_ms: int) -> list[Record] | Refusal:
        """Return a whole hold. Asked twice: nothing. Refuses: hold_not_found, hold_already_settled, hold_expired."""
        found = self._holds.get(hold)
        if found is None:
            return unknown_hold(hold)
        if found.state == "released":
            return []
        if found.state != "held":
            return ended(found)
        return [ending(found, "release", found.request.amount_micro, now_ms, why=why)]

    def decide_expire(self, now_ms: int) -> list[Record]:
        """End every open hold whose time has come and whose site delivered nothing, oldest first."""
        due = [h for h in self._open.values() if h.request.expires_ms <= now_ms and not h.admitted]
        due.sort(key=lambda h: (h.request.expires_ms, h.request.id))
        return [ending(h, "expire", h.request.amount_micro, now_ms) for h in due]

    def decide_failed(self, ids: Sequence[str], refusal: Refusal, now_ms: int) -> list[Record]:
        """Make ids fail for ever, so that a retried refusal can never succeed later. Known ids are left as they are."""
        return [
            fact(Kind.REFUSED, now_ms, id=i, code=refusal.code, message=refusal.message)
            for i in dict.fromkeys(ids)
            if i not in self._holds and i not in self._failed
        ]

    def budgets(self) -> list[Budget]:
        """Every partner that ever was a member, in the order they came."""
        return [self._budget(partner, account) for partner, account in self._budget_accounts().items()]

    def available_micro(self, partner: str) -> int:
        """What the partner may still have held; 0 for one the ledger does not know."""
        account = self.accounts.get(budget_account(partner))
        return available(account) if account is not None else 0

    def charges(self) -> list[Hold]:
        """Every hold ever made, in order."""
        return list(self._holds.values())

    def hold(self, hold: str) -> Hold | None:
        return self._holds.get(hold)

    def apply(self, index: int, record: Record) -> None:
        """Fold one record. Raises StoreError when a transfer would break the ledger: the journal is not ours."""
        match record.kind:
            case Kind.CHARTER:
                self._open_accounts(record.facts)
            case Kind.TRANSFER:
                try:
                    self._transfer(record.facts)
                except (KeyError, TypeError, ValueError) as wrong:
                    text = f"record {index} of the journal is no lawful transfer ({wrong}): run `hansa journal verify`"
                    raise StoreError(text) from wrong
            case Kind.REFUSED:
                facts = record.facts
                self._failed[facts["id"]] = facts["message"]
            case Kind.UPDATE:
                self._admit(record.body)
            case _:
                pass

    def _open_accounts(self, charter: Mapping[str, Any]) -> None:
        self._owners = {site["name"]: site["partner"] for site in charter["sites"]}
        for name in ("issuance", "contribution"):
            self.accounts.setdefault(name, Account())
        for member in charter["members"]:
            self.accounts.setdefault(budget_account(member["name"]), Account())
            self.accounts.setdefault(contributed_account(member["name"]), Account())

    def _transfer(self, facts: Mapping[str, Any]) -> None:
        amount = facts["amount_micro"]
        require(is_amount(amount), f"amount {amount!r}")
        match facts["type"]:
            case "grant" | "contribution":
                require(facts["id"] not in self._booked, f"{facts['id']} was booked before")
                self._booked.add(facts["id"])
                self.accounts[facts["debit"]].debits_posted += amount
                self.accounts[facts["credit"]].credits_posted += amount
            case "hold":
                self._apply_hold(facts, amount)
            case "settle":
                self._end(facts, "settled", charged=amount)
            case "release" | "expire":
                self._end(facts, "released" if facts["type"] == "release" else "expired", charged=0)
            case other:
                raise ValueError(f"type {other!r}")

    def _apply_hold(self, facts: Mapping[str, Any], amount: int) -> None:
        request = HoldRequest(**{name: facts[name] for name in HoldRequest.__dataclass_fields__})
        require(request.id not in self._holds, f"{request.id} was made before")
        payer = self.accounts[facts["debit"]]
        require(amount <= available(payer), f"{request.id} overdraws {facts['debit']}")
        payer.debits_pending += amount
        self.accounts.setdefault(facts["credit"], Account()).credits_pending += amount
        self._holds[request.id] = self._open[request.id] = Hold(request, facts["partner"])

    def _end(self, facts: Mapping[str, Any], state: str, *, charged: int) -> None:
        hold = self._open.pop(facts["hold"])
        held = hold.request.amount_micro
        require(charged <= held, f"{facts['hold']} is for {held}")
        own = (budget_account(hold.request.payer), consumed_account(hold.request.run))
        require((facts["debit"], facts["credit"]) == own, f"{facts['id']} moves between other accounts")
        payer, consumed = self.accounts[facts["debit"]], self.accounts[facts["credit"]]
        payer.debits_pending -= held
        consumed.credits_pending -= held
        payer.debits_posted += charged
        consumed.credits_posted += charged
        usage = facts.get("usage", "")
        self._holds[hold.request.id] = replace(hold, state=state, charged_micro=charged, usage=usage)

    def _admit(self, body: bytes) -> None:
        update = UpdateNote.from_note(notes.parse(body))
        for hold in list(self._open.values()):
            request = hold.request
            if (request.run, request.round, request.site) == (update.run, update.round, update.site):
                self._holds[request.id] = self._open[request.id] = replace(hold, admitted=True)

    def _refuse_hold(self, request: HoldRequest, stands: HoldRequest | None, now_ms: int) -> Refusal | None:
        if stands is not None:
            return difference(stands, request)
        if request.id in self._failed:
            message = f"{request.id} failed before ({self._failed[request.id]}): a new attempt needs a new id"
            return Refusal(Code.ID_ALREADY_FAILED, message)
        if not is_amount(request.amount_micro):
            return invalid_amount(request.id, request.amount_micro)
        if request.expires_ms <= now_ms:
            return Refusal(Code.HOLD_EXPIRED, f"{request.id} would expire before it is made")
        if budget_account(request.payer) not in self.accounts:
            return Refusal(
                Code.ACCOUNT_NOT_FOUND, f"{request.id}: payer {request.payer} has no budget account"
            )
        if request.site not in self._owners:
            return Refusal(Code.ACCOUNT_NOT_FOUND, f"{request.id}: the charter names no site {request.site}")
        return None

    def _lacking(self, fresh: Mapping[str, HoldRequest]) -> dict[str, dict[str, int]]:
        needs: dict[str, int] = {}
        for request in fresh.values():
            needs[request.payer] = needs.get(request.payer, 0) + request.amount_micro
        return {
            payer: {"needs": need, "available": self.available_micro(payer)}
            for payer, need in sorted(needs.items())
            if need > self.available_micro(payer)
        }

    def _hold_record(self, request: HoldRequest, now_ms: int) -> Record:
        return fact(
            Kind.TRANSFER,
            now_ms,
            type="hold",
            debit=budget_account(request.payer),
            credit=consumed_account(request.run),
            partner=self._owners[request.site],
            **{name: getattr(request, name) for name in HoldRequest.__dataclass_fields__},
        )

    def _budget_accounts(self) -> dict[str, Account]:
        return {
            name.split("/")[1]: account for name, account in self.accounts.items() if name.endswith("/budget")
        }

    def _budget(self, partner: str, account: Account) -> Budget:
        return Budget(
            partner=partner,
            granted_micro=account.credits_posted,
            held_micro=account.debits_pending,
            spent_micro=account.debits_posted,
            available_micro=available(account),
            contributed_micro=self.accounts[contributed_account(partner)].credits_posted,
        )
