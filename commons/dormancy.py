"""Which members quorums do not wait for: those that missed three votes in a row, until they have voted twice in a row.

After the CNCF's rule for its committee (three missed meetings, back after two). A fold over decided votes, in the
order of their outcomes.
"""

from __future__ import annotations

from collections.abc import Container

from commons.opening import Opening

MISSED, RETURNED = 3, 2


class Dormancy:
    def __init__(self) -> None:
        self._missed: dict[str, int] = {}
        """Member -> votes missed in a row; dormant from `MISSED` on."""
        self._returned: dict[str, int] = {}
        """Dormant member -> votes cast in a row since."""

    @property
    def members(self) -> frozenset[str]:
        return frozenset(member for member, missed in self._missed.items() if missed >= MISSED)

    def take(self, opening: Opening, voted: Container[str]) -> None:
        """A vote was decided. Silence on an optimistic proposal is consent and not counted."""
        if opening.objection:
            return
        for member in opening.electorate:
            if member not in voted:
                self._missed[member] = self._missed.get(member, 0) + 1
                self._returned.pop(member, None)
            elif self._missed.get(member, 0) < MISSED:
                self._missed[member] = 0
            else:
                self._returned[member] = self._returned.get(member, 0) + 1
                if self._returned[member] >= RETURNED:
                    del self._missed[member], self._returned[member]
