"""A statement as double entry from the partner's side; `hledger` and `beancount` only spell it.

Owns which account a movement stands in. A file is one period and complete in itself: it opens with the balance the
period before closed with. Device time and clearing are no money of the partner's, they are remarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from commons.amounts import MICRO
from governance.statements.statement import Granted, Statement

Account = tuple[str, ...]
"""From the top: assets, equity, income or expenses first."""
CONTRIBUTED: Account = ("equity", "contributed")
CONTRIBUTIONS: Account = ("income", "contributions")
EXPIRED: Account = ("expenses", "expired")
GRANTS: Account = ("income", "grants")
CONVERSIONS: Account = ("income", "conversions")
PLEDGES: Account = ("expenses", "pledges")
OPENING: Account = ("equity", "opening")
RUNS: Account = ("expenses", "runs")
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Entry:
    """One transaction; its movements add up to nothing."""

    at_ms: int
    payee: str
    text: str
    moves: tuple[tuple[Account, int], ...]
    """Micro of the currency; above 0 is a debit."""
    id: str = ""
    """The transfer it stands for; empty: several, or none."""
    record: int | None = None


@dataclass(frozen=True)
class Balance:
    """What an account, with all below it, comes to at the end."""

    account: Account
    amount_micro: int


def entries(statement: Statement) -> list[Entry]:
    """In the order of time. Raises AssertionError when they do not come to the statement: our own mistake."""
    found = sorted(_entries(statement), key=lambda entry: (entry.at_ms, entry.record or 0))
    for stated in balances(statement):
        moved = sum(
            micro
            for entry in found
            for account, micro in entry.moves
            if account[: len(stated.account)] == stated.account
        )
        assert moved == stated.amount_micro, f"{stated} is posted as {moved}"
    return found


def balances(statement: Statement) -> list[Balance]:
    """As the signed note states them."""
    note, given = statement.note, sum(pledge.amount for pledge in statement.pledged)
    pledges = [Balance(PLEDGES, given)] if given else []
    return [
        Balance(budget(statement), note.closing_micro - note.held_micro),
        Balance(held(statement), note.held_micro),
        Balance(RUNS, note.charged_micro - given - note.refunded_micro),
        *pledges,
        Balance(EXPIRED, note.expired_micro),
        Balance(CONTRIBUTED, note.contributed_micro - note.contribution_reversed_micro),
    ]


def accounts(statement: Statement) -> list[Account]:
    """Every one that an entry or a balance names, by name."""
    found = {balance.account for balance in balances(statement)}
    return sorted(found | {account for entry in entries(statement) for account, _ in entry.moves})


def budget(statement: Statement) -> Account:
    return "assets", statement.note.consortium, "budget"


def held(statement: Statement) -> Account:
    return "assets", statement.note.consortium, "held"


def last_ms(statement: Statement) -> int:
    """When the period ends; for one that goes on, when its last entry was made."""
    note = statement.note
    if note.closed == "yes":
        return note.end_ms - 1
    return max([note.begin_ms, *(entry.at_ms for entry in _movements(statement))])


def day(at_ms: int) -> str:
    """The UTC date, 2026-11-24."""
    return datetime.fromtimestamp(at_ms // 1000, timezone.utc).date().isoformat()


def decimal(scaled: int, places: int) -> str:
    """`scaled` * 10^-places with all its places: 1500000, 6 -> 1.500000."""
    whole, rest = divmod(abs(scaled), 10**places)
    return f"{'-' if scaled < 0 else ''}{whole}.{rest:0{places}d}"


def aligned(entry: Entry, currency: str, name: Callable[[Account], str], indent: str) -> list[str]:
    """The entry's movements, one a line, accounts spelled by `name`, amounts below each other."""
    rows = [(name(account), decimal(micro, 6)) for account, micro in entry.moves]
    width, places = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"{indent}{account:<{width}}  {amount:>{places}} {currency}" for account, amount in rows]


def heading(statement: Statement) -> list[str]:
    """What a file says first: whose it is, where it comes from, what it does not book."""
    note = statement.note
    state = "closed" if note.closed == "yes" else "open, more will come"
    found = [
        f"{note.partner} in consortium {note.consortium}, {note.period} ({state}), {note.currency}",
        f"statement {note.digest}",
    ]
    for granted in statement.grants:
        if granted.unit != MICRO:
            found.append(f"not booked: {granted.id}, {granted.amount} {granted.unit}")
    for converted in statement.conversions:
        found.append(f"{converted.id}: for {converted.about}")
    for dispute in statement.disputes:
        how = "open" if dispute.ended_ms is None else f"{decimal(dispute.upheld_micro, 6)} given back"
        found.append(f"disputed: {decimal(dispute.amount_micro, 6)} of {dispute.settle}, {how}")
    for clearing in statement.clearing:
        found.append(
            f"clearing, not booked: {clearing.other} owes {decimal(clearing.owed_micro, 6)}, "
            f"is owed {decimal(clearing.owes_micro, 6)}"
        )
    return [" ".join(line.split()) for line in found]


def _entries(statement: Statement) -> Iterator[Entry]:
    note, before = statement.note, statement.held_before_micro
    own, holds = budget(statement), held(statement)
    if note.opening_micro:
        moves = ((own, note.opening_micro - before), (holds, before), (OPENING, -note.opening_micro))
        yield Entry(note.begin_ms, note.partner, "opening balance", moves)
    yield from _movements(statement)
    end_ms = last_ms(statement)
    if change := note.held_micro - before:
        text = f"holds: {len(statement.holds)} open at the end"
        yield Entry(end_ms, note.partner, text, ((holds, change), (own, -change)))
    for text, micro in (
        ("work of own sites that was accepted", note.contributed_micro),
        ("contributions taken back", -note.contribution_reversed_micro),
    ):
        if micro:
            yield Entry(end_ms, note.partner, text, ((CONTRIBUTED, micro), (CONTRIBUTIONS, -micro)))


def _movements(statement: Statement) -> Iterator[Entry]:
    own, partner = budget(statement), statement.note.partner
    for granted in statement.grants:
        if granted.unit == MICRO:
            yield _received(granted, partner, granted.about or "grant", own, GRANTS)
    for paid in statement.pledged:
        yield _received(paid, partner, paid.about, PLEDGES, own)
    for converted in statement.conversions:
        yield _received(converted, partner, f"conversion of {converted.about}", own, CONVERSIONS)
    for lost in statement.expired:
        yield _received(lost, partner, f"expired: {lost.about}", EXPIRED, own)
    for usage in statement.usages:
        what = f"{usage.run} round {usage.round} on {usage.site}" + ", rejected" * (not usage.accepted)
        moves = (((*RUNS, usage.run, usage.site), usage.charged_micro), (own, -usage.charged_micro))
        yield Entry(usage.at_ms, usage.owner, what, moves, usage.id, usage.record)
    for refund in statement.refunds:
        what = f"{refund.reason}: {refund.settle}" + " (of an earlier period)" * refund.correction
        moves = ((own, refund.amount_micro), ((*RUNS, refund.run, refund.site), -refund.amount_micro))
        yield Entry(refund.at_ms, refund.owner, what, moves, refund.id, refund.record)


def _received(granted: Granted, payee: str, text: str, to: Account, source: Account) -> Entry:
    moves = ((to, granted.amount), (source, -granted.amount))
    return Entry(granted.at_ms, payee, text, moves, granted.id, granted.record)
