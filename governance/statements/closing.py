"""Closing the books: one PERIOD record for every period that is over, sealed with the root of its balances."""

from __future__ import annotations

from commons.records import Kind, Record, fact
from governance.ledger import Ledger
from governance.statements.balances import BalanceTree


def decide_close(ledger: Ledger, now_ms: int) -> list[Record]:
    """A PERIOD record for each period that is over and not closed, oldest first. Asked twice: nothing.

    What a record says follows from the records before its period's end alone, however late it is made.
    """
    records = []
    for period, size, lines in ledger.due_periods(now_ms):
        records.append(
            fact(
                Kind.PERIOD,
                now_ms,
                period=period.name,
                begin_ms=period.begin_ms,
                end_ms=period.end_ms,
                records=size,
                balances=BalanceTree(lines).root.hex(),
                accounts=len(lines),
            )
        )
    return records
