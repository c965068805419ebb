"""What counts of each member's contributions when ballots are weighed by them: halved with age, in whole micro."""

from __future__ import annotations

from commons.ballot_weights import DAY_MS, decayed
from commons.charter import Charter
from governance.ledger.books import Ledger


def contributed(ledger: Ledger, charter: Charter, now_ms: int) -> dict[str, int]:
    """Member -> credited for accepted, settled work, less what was reversed of it; aged by whole UTC days."""
    today, half_life = now_ms // DAY_MS, charter.voting.power.half_life_days
    return {
        member.name: max(
            0,
            sum(
                decayed(amount, today - day, half_life)
                for day, amount in ledger.contributions.get(member.name, {}).items()
            ),
        )
        for member in charter.members
    }
