"""A world's whole history, and everything that must hold of it."""

from __future__ import annotations

from commons.records import Record
from tests.simulation.auditor import Books, audit, check_promises
from tests.simulation.world import World


def checked(world: World) -> tuple[list[Record], Books]:
    """Run it; an AssertionError says what does not hold: sums, promises, receipts, or the coordinator's own totals."""
    records = world.run()
    books = audit(records)
    check_promises(books, world.acknowledged)
    for partner, said in world.budgets.items():
        ours = books.money.totals(partner)
        theirs = {name: said[name] for name in ours}
        assert theirs == ours, f"{partner}'s totals: the coordinator has {theirs}, the auditor {ours}"
    for note in world.notes:
        books.money.flows.check(note.partner, note.period, vars(note))
    for name in world.topped:
        assert name in books.money.holds, f"a site was told that {name} is held"
    for what, index in world.receipts.items():
        _holds(books, records, what, index)
    return records, books


def _holds(books: Books, records: list[Record], what: bytes, index: int | None) -> None:
    """Something that its sender was told is in the journal: a note, or the token of a reversal."""
    if what.startswith(b"hansa-"):
        stands = books.notes.get(what)
        assert stands is not None, f"this was taken and is lost: {what!r:.300}"
        assert index in (None, stands), f"said to be record {index}, is {stands}: {what!r:.300}"
    else:
        assert index is not None and records[index].facts["id"] == f"reversal/{what.decode()}", what
