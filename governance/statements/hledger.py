"""A statement as a journal for hledger (hledger.org), with balance assertions.

Owns the spelling alone; what is booked where is `postings`.
"""

from __future__ import annotations

import re

from governance.statements.postings import (
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


def hledger_journal(statement: Statement) -> str:
    """The whole file. The same statement gives the same text."""
    currency = statement.note.currency
    lines = [f"; {line}" for line in heading(statement)]
    lines += ["", "decimal-mark .", f"commodity 1.000000 {currency}"]
    lines += [f"account {_name(account)}" for account in accounts(statement)]
    for entry in entries(statement):
        lines += ["", *_transaction(entry, currency)]
    lines += ["", f"{day(last_ms(statement))} * balances that the statement states"]
    for balance in balances(statement):
        stated = f"{decimal(balance.amount_micro, 6)} {currency}"
        lines.append(f"    {_name(balance.account)}  0.000000 {currency} =* {stated}")
    return "\n".join(lines) + "\n"


def _transaction(entry: Entry, currency: str) -> list[str]:
    code = "" if entry.record is None else f"({entry.record}) "
    lines = [f"{day(entry.at_ms)} * {code}{_text(entry.payee)} | {_text(entry.text)}"]
    if entry.id:
        lines.append(f"    ; transfer:{_text(entry.id)}")
    return [*lines, *aligned(entry, currency, _name, "    ")]


def _name(account: Account) -> str:
    return ":".join(re.sub(r"[^A-Za-z0-9._-]", "-", part) for part in account)


def _text(words: str) -> str:
    """Without what would begin a comment, another field or another line."""
    return re.sub(r"[;|\s]+", " ", words)
