"""What files in MLflow need of the journal itself: proofs of records, and the statements of closed periods.

The same record gives the same proof, and the same closed period the same statement, whenever they are asked for: the
proof leads to the checkpoint of the moment the record was written.
"""

from __future__ import annotations

from commons.log import Checkpoint, proof_text
from commons.notes import Signer
from commons.statement import Line
from governance.consortium import Consortium
from governance.statements.focus import focus_csv
from governance.statements.hledger import hledger_journal
from governance.statements.issuing import Statements
from governance.statements.reading import read_statement


class Papers:
    """Safe to call from any thread. `signer` is the log key."""

    def __init__(self, consortium: Consortium, signer: Signer) -> None:
        self._consortium, self._signer = consortium, signer
        self._statements = Statements(consortium, signer)

    def proof(self, index: int) -> str:
        """A ``.tlog-proof`` of the record, with the record in it: `hansa journal verify` checks it offline."""
        journal, size = self._consortium.journal, index + 1
        checkpoint = Checkpoint(self._signer.name, size, journal.root_at(size)).sign(self._signer)
        return proof_text(index, journal.inclusion(index, size), checkpoint, journal.record(index).leaf)

    def statement(self, partner: str, period: str) -> dict[str, str]:
        """Files of the statement of a closed period, by name."""
        with self._consortium.lock:
            note = self._statements.note(partner, self._consortium.book.periods[period])
            lines, earlier = self._statements.lines(partner, period)
        said = read_statement(note, self._leaves(lines), self._leaves(earlier))
        return {
            "statement.note": self._signer.sign(note.text).decode(),
            "focus.csv": focus_csv(said),
            "journal.hledger": hledger_journal(said),
        }

    def _leaves(self, indices: list[int]) -> list[Line]:
        leaves = self._consortium.journal.leaves(indices)
        return [(index, leaf.decode()) for index, leaf in zip(indices, leaves, strict=True)]
