"""Mistakes and quarrels: reversals that name the charge they correct, disputes and how they end.

A charge is never changed. What was wrong about it is a further transfer, bounded by what is left of the charge.
"""

from __future__ import annotations

from typing import Literal

from commons.charter import Charter
from commons.claims import DisputeNote, RulingNote
from commons.errors import Code, Refusal
from commons.names import Digest
from commons.records import Kind, Record, fact
from governance.amounts import is_amount
from governance.ledger.accounts import budget_account, consumed_account, contributed_account
from governance.ledger.books import Dispute, Ledger
from governance.ledger.holds import Hold, invalid_amount
from governance.ledger.periods import Period

DAY_MS = 86_400_000
Why = Literal["metering_error", "hardware_fault", "duplicate", "rate_error", "dispute_upheld"]


def decide_reverse(
    ledger: Ledger, name: str, settle: str, amount_micro: int, reason: Why, now_ms: int
) -> list[Record] | Refusal:
    """Give back some or all of a charge; the contribution credited for it goes back in proportion.

    `name` is ``reversal/<token>``, made by the caller; asked twice with it: nothing. Refuses:
    exists_with_different_fields, id_already_failed, transfer_not_found, amount_invalid, reversal_exceeds_original.
    """
    if name in ledger.failed:
        message = f"{name} failed before ({ledger.failed[name]}): a new attempt needs a new id"
        return Refusal(Code.ID_ALREADY_FAILED, message)
    known = ledger.booked.get(name)
    if known is not None:
        same = (known["reverses"], known["amount_micro"], known["reason"]) == (settle, amount_micro, reason)
        message = f"{name} stands already, for {known['amount_micro']} micro of {known['reverses']}"
        return [] if same else Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message)
    hold = ledger.settled(settle)
    if hold is None:
        return Refusal(
            Code.TRANSFER_NOT_FOUND, f"there is no charge {settle}; `hansa budget show` lists them"
        )
    if not is_amount(amount_micro) or amount_micro == 0:
        return invalid_amount(name, amount_micro)
    if amount_micro > hold.correctable_micro:
        return _exceeds(settle, hold, amount_micro)
    return _reversal(ledger, name, hold, consumed_account(hold.request.run), amount_micro, reason, now_ms)


def decide_dispute(ledger: Ledger, note: DisputeNote, digest: Digest, now_ms: int) -> list[Record] | Refusal:
    """Move what is disputed to suspense; the records that follow the DISPUTE note. Asked twice: nothing.

    Refuses: transfer_not_found, not_authorised (only the payer may), amount_invalid, period_closed (its period was
    closed more than the charter's `dispute_days` ago), reversal_exceeds_original.
    """
    if digest in ledger.disputes:
        return []
    hold = ledger.settled(note.transfer)
    if hold is None:
        message = f"there is no charge {note.transfer[:200]}; `hansa budget show --charges` lists them"
        return Refusal(Code.TRANSFER_NOT_FOUND, message)
    if note.partner != hold.request.payer:
        message = f"{note.transfer} was charged to {hold.request.payer}, who alone may dispute it"
        return Refusal(Code.NOT_AUTHORISED, message)
    if note.amount_micro == 0:
        return invalid_amount(f"dispute of {note.transfer}", 0)
    if refusal := _too_late(ledger, hold, now_ms):
        return refusal
    if note.amount_micro > hold.correctable_micro:
        return _exceeds(note.transfer, hold, note.amount_micro)
    dispute = Dispute(digest, note.transfer, note.partner, note.amount_micro)
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
        same = dispute.outcome == f"upheld {upheld}"
        message = f"the dispute about {dispute.settle} has ended: {dispute.outcome} micro"
        return [] if same else Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message)
    return _end(ledger, dispute, hold, upheld, now_ms)


def decide_rulings(ledger: Ledger, charter: Charter, now_ms: int) -> list[Record]:
    """Carry out what members voted on open disputes (`rulings` of the charter). Asked twice: nothing."""
    records: list[Record] = []
    for ruling in charter.rulings:
        dispute = ledger.disputes.get(Digest(ruling.dispute))
        if dispute is None or not dispute.open:
            continue
        hold = ledger.settled(dispute.settle)
        assert hold is not None, "a dispute is about a charge"
        records += _end(ledger, dispute, hold, min(ruling.upheld_micro, dispute.amount_micro), now_ms)
    return records


def _end(ledger: Ledger, dispute: Dispute, hold: Hold, upheld: int, now_ms: int) -> list[Record]:
    records: list[Record] = []
    if upheld:
        name = f"reversal/{dispute.tail}"
        records += _reversal(ledger, name, hold, dispute.account, upheld, "dispute_upheld", now_ms)
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
    ledger: Ledger, name: str, hold: Hold, source: str, amount_micro: int, reason: Why, now_ms: int
) -> list[Record]:
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
    base = ledger.base(hold)
    family = [base, *ledger.topups(base.request.id)]
    charged = sum(h.charged_micro for h in family)
    before = sum(h.reversed_micro for h in family)
    back = {
        partner: (before + amount_micro) * credited // charged - before * credited // charged
        for partner, credited in base.contributed.items()
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
    period = Period.of(hold.ended_ms, ledger.rules.period).name
    closed_ms = ledger.closed.get(period)
    days = ledger.rules.dispute_days
    if closed_ms is None or now_ms <= closed_ms + days * DAY_MS:
        return None
    message = (
        f"{hold.settle_id} was charged in {period}, which was closed more than {days} days ago; "
        "the members can still grant the amount by a vote"
    )
    return Refusal(Code.PERIOD_CLOSED, message)


def _exceeds(settle: str, hold: Hold, amount_micro: int) -> Refusal:
    message = (
        f"{settle} charged {hold.charged_micro} micro; {hold.reversed_micro} are reversed and "
        f"{hold.suspended_micro} disputed, so {amount_micro} are more than is left of it"
    )
    return Refusal(Code.REVERSAL_EXCEEDS_ORIGINAL, message)
