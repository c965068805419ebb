"""Mistakes and quarrels: reversals that name the charge they correct, disputes and how they end.

A charge is never changed. What was wrong about it is a further transfer, bounded by what is left of the charge.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from commons.amounts import is_amount
from commons.charter import Charter
from commons.claims import DisputeNote, RulingNote
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.records import Kind, Record, fact
from governance.ledger.accounts import budget_account, consumed_account, contributed_account
from governance.ledger.books import Dispute, Ledger
from governance.ledger.holds import Hold, invalid_amount

DAY_MS = 86_400_000
Why = Literal["metering_error", "hardware_fault", "duplicate", "rate_error", "dispute_upheld"]


def decide_reverse(
    ledger: Ledger, name: str, settle: str, amount_micro: int, reason: Why, now_ms: int
) -> list[Record] | Refusal:
    """Give back some or all of a charge; the contribution credited for it goes back in proportion.

    `name` is ``reversal/<token>``, made by the caller; asked twice with it: nothing. Refuses:
    exists_with_different_fields, id_already_failed, transfer_not_found, amount_invalid, reversal_exceeds_original.
    """
    assert name.startswith("reversal/"), f"{name} is no id of a reversal"
    if name in ledger.failed:
        message = f"{name} failed before ({ledger.failed[name]}): a new attempt needs a new id"
        return Refusal(Code.ID_ALREADY_FAILED, message)
    known = ledger.booked.get(name)
    if known is not None:
        same = (known["reverses"], known["amount_micro"], known["reason"]) == (settle, amount_micro, reason)
        message = f"{name} stands already, for {known['amount_micro']} micro of {known['reverses']}"
        return [] if same else Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message)
    if any(dispute.reversal_id == name for dispute in ledger.disputes.values()):
        message = f"{name} is what a dispute ends in when it is upheld: another reversal needs another id"
        return Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message)
    hold = ledger.settled(settle)
    if hold is None:
        return _no_charge(settle)
    if not is_amount(amount_micro) or amount_micro == 0:
        return invalid_amount(name, amount_micro, 1)
    if amount_micro > hold.correctable_micro:
        return _exceeds(settle, hold, amount_micro)
    return _reversal(ledger, name, hold, consumed_account(hold.request.run), amount_micro, reason, now_ms)


def decide_dispute(ledger: Ledger, note: DisputeNote, digest: Digest, now_ms: int) -> list[Record] | Refusal:
    """Move what is disputed to suspense; the records that follow the DISPUTE note. Asked twice: nothing.

    Refuses: transfer_not_found, not_authorised (only the payer may), amount_invalid, period_closed (its period was
    closed more than the charter's `dispute_days` ago), reversal_exceeds_original, exists_with_different_fields
    (a transfer has the id that the dispute's would have).
    """
    if digest in ledger.disputes:
        return []
    hold = ledger.settled(note.transfer)
    if hold is None:
        return _no_charge(note.transfer)
    if note.partner != hold.request.payer:
        message = f"{note.transfer} was charged to {hold.request.payer}, who alone may dispute it"
        return Refusal(Code.NOT_AUTHORISED, message)
    if not is_amount(note.amount_micro) or note.amount_micro == 0:
        return invalid_amount(f"dispute of {note.transfer}", note.amount_micro, 1)
    if refusal := _too_late(ledger, hold, now_ms):
        return refusal
    if note.amount_micro > hold.correctable_micro:
        return _exceeds(note.transfer, hold, note.amount_micro)
    dispute = Dispute(digest, note.transfer, note.partner, note.amount_micro)
    if dispute.reversal_id in ledger.booked or dispute.account in ledger.accounts:
        message = f"another transfer has the id of {dispute.account}; {note.partner} words the dispute anew"
        return Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message)
    return [
        fact(
            Kind.TRANSFER,
            now_ms,
            type="dispute",
            id=f"dispute/{dispute.tail}",
            debit=consumed_account(hold.request.run),
            credit=dispute.account,
            amount_micro=note.amount_micro,
            disputes=note.transfer,
            dispute=digest,
            partner=note.partner,
        )
    ]


def decide_ruling(ledger: Ledger, note: RulingNote, now_ms: int) -> list[Record] | Refusal:
    """End a dispute by one of its parties; the records that follow the RULING note. Asked twice: nothing.

    The payer may withdraw it, the owner of the site may concede it. Refuses: transfer_not_found, not_authorised,
    exists_with_different_fields (it ended otherwise).
    """
    dispute = ledger.disputes.get(Digest(note.dispute))
    if dispute is None:
        return Refusal(Code.TRANSFER_NOT_FOUND, f"there is no dispute {note.dispute[:80]}")
    hold = ledger.settled(dispute.settle)
    assert hold is not None, "a dispute is about a charge"
    party = dispute.partner if note.outcome == "withdrawn" else hold.partner
    if note.partner != party:
        message = f"a dispute about {dispute.settle} is {note.outcome} by {party}, not by {note.partner}"
        return Refusal(Code.NOT_AUTHORISED, message)
    upheld = dispute.amount_micro if note.outcome == "conceded" else 0
    if not dispute.open:
        how = f"was {dispute.ruling}" if dispute.ruling else "was decided by vote"
        message = f"the dispute about {dispute.settle} {how}: {dispute.outcome} micro"
        same = dispute.ruling == note.outcome
        return [] if same else Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message)
    return _end(ledger, dispute, hold, upheld, now_ms, Counter())


def decide_rulings(ledger: Ledger, charter: Charter, now_ms: int) -> list[Record]:
    """Carry out what members voted on open disputes (`rulings` of the charter). Asked twice: nothing."""
    records: list[Record] = []
    earlier: Counter[str] = Counter()
    for ruling in charter.rulings:
        dispute = ledger.disputes.get(Digest(ruling.dispute))
        if dispute is None or not dispute.open:
            continue
        hold = ledger.settled(dispute.settle)
        assert hold is not None, "a dispute is about a charge"
        upheld = min(ruling.upheld_micro, dispute.amount_micro)
        records += _end(ledger, dispute, hold, upheld, now_ms, earlier)
    return records


def _end(
    ledger: Ledger, dispute: Dispute, hold: Hold, upheld: int, now_ms: int, earlier: Counter[str]
) -> list[Record]:
    """`earlier`: what the same decision reversed before of each base hold and its top-ups; grows."""
    records: list[Record] = []
    if upheld:
        base = ledger.family(hold)[0].request.id
        records += _reversal(
            ledger,
            dispute.reversal_id,
            hold,
            dispute.account,
            upheld,
            "dispute_upheld",
            now_ms,
            earlier_micro=earlier[base],
        )
        earlier[base] += upheld
    if dispute.amount_micro > upheld:
        records.append(
            fact(
                Kind.TRANSFER,
                now_ms,
                type="dismiss",
                id=f"dismiss/{dispute.tail}",
                debit=dispute.account,
                credit=consumed_account(hold.request.run),
                amount_micro=dispute.amount_micro - upheld,
                disputes=dispute.settle,
                dispute=dispute.id,
                partner=dispute.partner,
            )
        )
    return records


def _reversal(
    ledger: Ledger,
    name: str,
    hold: Hold,
    source: str,
    amount_micro: int,
    reason: Why,
    now_ms: int,
    *,
    earlier_micro: int = 0,
) -> list[Record]:
    """The reversal, and of the contribution the share that keeps it in proportion to what is left of the charge."""
    request = hold.request
    about = {"reverses": hold.settle_id, "run": request.run, "round": request.round, "site": request.site}
    reversal = fact(
        Kind.TRANSFER,
        now_ms,
        type="reversal",
        id=name,
        debit=source,
        credit=budget_account(request.payer),
        amount_micro=amount_micro,
        payer=request.payer,
        partner=hold.partner,
        reason=reason,
        **about,
    )
    family = ledger.family(hold)
    charged = sum(h.charged_micro for h in family)
    before = sum(h.reversed_micro for h in family) + earlier_micro
    back = {
        partner: (before + amount_micro) * credited // charged - before * credited // charged
        for partner, credited in family[0].contributed.items()
    }
    return [
        reversal,
        *(
            fact(
                Kind.TRANSFER,
                now_ms,
                type="contribution-reversal",
                id=f"contribution-{name}/{partner}",
                debit=contributed_account(partner),
                credit="contribution",
                amount_micro=amount,
                partner=partner,
                **about,
            )
            for partner, amount in back.items()
            if amount
        ),
    ]


def _too_late(ledger: Ledger, hold: Hold, now_ms: int) -> Refusal | None:
    period = ledger.period_at(hold.ended_ms)
    closed_ms = ledger.closed.get(period.name) if period else None
    days = ledger.rules.dispute_days
    if period is None or closed_ms is None or now_ms <= closed_ms + days * DAY_MS:
        return None
    message = (
        f"{hold.settle_id} was charged in {period.name}, which was closed more than {days} days ago; "
        "the members can still grant the amount by a vote"
    )
    return Refusal(Code.PERIOD_CLOSED, message)


def _no_charge(settle: str) -> Refusal:
    message = f"there is no charge {settle[:200]}; `hansa budget show --charges` lists them"
    return Refusal(Code.TRANSFER_NOT_FOUND, message)


def _exceeds(settle: str, hold: Hold, amount_micro: int) -> Refusal:
    message = (
        f"{settle} charged {hold.charged_micro} micro; {hold.reversed_micro} are reversed and "
        f"{hold.suspended_micro} disputed, so {amount_micro} are more than is left of it"
    )
    return Refusal(Code.REVERSAL_EXCEEDS_ORIGINAL, message)
