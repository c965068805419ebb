"""A statement as a page for a person: what came, what went, for which work, and who owes whom.

Owns the words and the columns; every number is the statement's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from commons.amounts import MICRO
from commons.pricing import pico_per_gflop
from governance.statements.postings import day, decimal
from governance.statements.statement import Clearing, Statement, Total

Table = Sequence[Sequence[str]]
"""Rows of the same length; the first one is the head."""


def statement_page(statement: Statement) -> str:
    """The whole page, without the signed note. The same statement gives the same text."""
    sections = [text for text in _sections(statement) if text]
    return "\n\n".join(sections) + "\n"


def _sections(statement: Statement) -> Iterator[str]:
    yield _head(statement)
    yield _balance(statement)
    yield _part("Charged for", _usages(statement))
    yield _part("Given back", _refunds(statement))
    yield _part("Disputed", _disputes(statement))
    yield _part("Granted, converted, pledged, expired", _budget(statement))
    yield _part("Held by rounds under way", _holds(statement))
    yield _part("Between members", _clearing(statement.clearing))
    yield _contributed(statement)
    yield _part("Rate cards", _cards(statement))


def _head(statement: Statement) -> str:
    note = statement.note
    state = "closed" if note.closed == "yes" else f"open, as of journal record {note.journal_size - 1}"
    last = day(note.end_ms - 1)
    return (
        f"{note.partner}, consortium {note.consortium}: {note.period} ({day(note.begin_ms)} to {last} UTC), "
        f"{state}. Amounts in {note.currency}."
    )


def _balance(statement: Statement) -> str:
    note = statement.note
    rows = [
        ("opening", note.opening_micro),
        ("+ granted", note.granted_micro),
        ("+ given back", note.refunded_micro),
        ("+ converted", note.converted_micro),
        ("- expired", note.expired_micro),
        ("- charged", note.charged_micro),
    ]
    shown = [(name, _money(micro)) for name, micro in rows if micro or name in ("opening", "- charged")]
    shown.append(("= closing", _money(note.closing_micro)))
    if note.held_micro:
        shown.append(("  of which held", _money(note.held_micro)))
    return _columns(shown)


def _usages(statement: Statement) -> Table:
    rows = [_usage(total) for total in statement.totals]
    if not rows:
        return []
    head = (
        "run",
        "site",
        "experts",
        "device",
        "rounds",
        "10^12 ops",
        "device s",
        "tokens",
        "joule",
        "charged",
    )
    return [head, *rows]


def _usage(total: Total) -> Sequence[str]:
    device = " ".join(word for word in (total.device, total.precision) if word) or "-"
    return (
        total.run,
        total.site + " (rejected)" * (not total.accepted),
        " ".join(total.experts) or "-",
        device,
        str(total.rounds),
        decimal(total.gflop, 3),
        decimal(total.device_ms, 3),
        str(total.tokens),
        "-" if total.energy_j is None else str(total.energy_j),
        _money(total.charged_micro),
    )


def _refunds(statement: Statement) -> Table:
    rows = [
        (
            _minute(refund.at_ms),
            refund.settle.removeprefix("settle/"),
            refund.reason.replace("_", " "),
            f"corrects a charge of {day(refund.charged_ms)}" if refund.correction else "-",
            _money(refund.amount_micro),
        )
        for refund in statement.refunds
    ]
    return [("when (UTC)", "charge", "why", "earlier period", "amount"), *rows] if rows else []


def _disputes(statement: Statement) -> Table:
    rows = [
        (
            _minute(dispute.opened_ms),
            dispute.settle.removeprefix("settle/"),
            _money(dispute.amount_micro),
            "open" if dispute.ended_ms is None else f"ended {_minute(dispute.ended_ms)}",
            "-" if dispute.ended_ms is None else _money(dispute.upheld_micro),
        )
        for dispute in statement.disputes
    ]
    return [("when (UTC)", "charge", "amount", "state", "given back"), *rows] if rows else []


def _budget(statement: Statement) -> Table:
    rows = []
    for granted in (*statement.grants, *statement.conversions, *statement.pledged, *statement.expired):
        in_money = granted.unit == MICRO
        amount = (
            _money(granted.amount) if in_money else f"{granted.amount} {granted.unit.replace(':', ' of ')}"
        )
        rows.append((_minute(granted.at_ms), granted.id, granted.about or "-", amount))
    return [("when (UTC)", "transfer", "for", "amount"), *rows] if rows else []


def _holds(statement: Statement) -> Table:
    rows = [
        (_minute(hold.since_ms), hold.id.removeprefix("hold/"), _money(hold.amount_micro))
        for hold in statement.holds
    ]
    return [("since (UTC)", "hold", "amount"), *rows] if rows else []


def _clearing(clearings: Sequence[Clearing]) -> Table:
    rows = []
    for clearing in clearings:
        net = clearing.net_micro
        how = f"{clearing.other} owes" if net > 0 else f"is owed to {clearing.other}" if net < 0 else "even"
        cells = (
            clearing.other,
            _money(clearing.owed_micro),
            _money(clearing.owes_micro),
            how,
            _money(abs(net)),
        )
        rows.append(cells)
    return [("member", "owes", "is owed", "together", "net"), *rows] if rows else []


def _contributed(statement: Statement) -> str:
    note = statement.note
    if not note.contributed_micro and not note.contribution_reversed_micro:
        return ""
    text = f"Contributed by accepted work: {_money(note.contributed_micro)}"
    if note.contribution_reversed_micro:
        text += f"; taken back with charges: {_money(note.contribution_reversed_micro)}"
    return text + "."


def _cards(statement: Statement) -> Table:
    rows = [
        (
            _minute(card.since_ms),
            f"{rate.device} {rate.precision}",
            _rate(pico_per_gflop(rate)),
            _money(rate.micro_per_device_second),
            card.digest[:23],
        )
        for card in statement.cards
        for rate in card.card.rates
    ]
    return [("since (UTC)", "device", "per 10^12 ops", "per device second", "card"), *rows] if rows else []


def _part(title: str, table: Table) -> str:
    return f"{title}\n{_columns(table)}" if table else ""


def _columns(rows: Table) -> str:
    """Words to the left, numbers to the right; a head stands like what is under it."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numeric = [
        all(map(_is_number, column[-1:] if len(rows) < 2 else column[1:]))
        for column in zip(*rows, strict=True)
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in rows
    )


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("-").replace(".", "", 1).isdecimal()


def _money(micro: int) -> str:
    return decimal(micro, 6)


def _rate(pico_per_gflop: int) -> str:
    """Of 10^12 operations, as money."""
    return decimal(pico_per_gflop * 1000, 12).rstrip("0").ljust(4, "0")


def _minute(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, timezone.utc).strftime("%Y-%m-%d %H:%M")
