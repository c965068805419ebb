"""A statement as a file for beancount (beancount.github.io), with balance assertions.

Owns the spelling alone; what is booked where is `postings`. Beancount wants capital account names, strings in quotes
and a balance on the morning after.
"""

from __future__ import annotations

import re

from governance.statements.postings import (
    DAY_MS,
    Account,
    Entry,
    accounts,
    aligned,
    balances,
    day,
    decimal,
    entries,
    heading,
    last_ms,
)
from governance.statements.statement import Statement


def beancount_file(statement: Statement) -> str:
    """The whole file. The same statement gives the same text."""
    note = statement.note
    begin, currency = day(note.begin_ms), note.currency
    lines = [f"; {line}" for line in heading(statement)]
    lines += ["", f'option "title" {_text(f"{note.partner} in {note.consortium}, {note.period}")}']
    lines += [f'option "operating_currency" "{currency}"', ""]
    lines += [f"{begin} open {_name(account)} {currency}" for account in accounts(statement)]
    for entry in entries(statement):
        lines += ["", *_transaction(entry, currency)]
    lines.append("")
    morning_after = day(last_ms(statement) + DAY_MS)
    for balance in balances(statement):
        stated = decimal(balance.amount_micro, 6)
        lines.append(f"{morning_after} balance {_name(balance.account)}  {stated} ~ 0 {currency}")
    return "\n".join(lines) + "\n"


def _transaction(entry: Entry, currency: str) -> list[str]:
    lines = [f"{day(entry.at_ms)} * {_text(entry.payee)} {_text(entry.text)}"]
    if entry.id:
        lines.append(f"  transfer: {_text(entry.id)}")
    if entry.record is not None:
        lines.append(f"  record: {entry.record}")
    return [*lines, *aligned(entry, currency, _name, "  ")]


def _name(account: Account) -> str:
    return ":".join(_component(part) for part in account)


def _component(part: str) -> str:
    """Letters, digits and hyphens; a capital or a digit first."""
    plain = re.sub(r"[^A-Za-z0-9-]", "-", part)
    return plain[0].upper() + plain[1:] if plain[0].isalnum() else f"X{plain}"


def _text(words: str) -> str:
    plain = " ".join(words.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"'
