"""What the charter says of experts that were added by a vote."""

from __future__ import annotations

from typing import ClassVar

from commons.section import Name, Section


class Added(Section):
    """An expert that was added by a vote, and what it began as."""

    LATER: ClassVar[frozenset[str]] = frozenset({"like"})

    expert: Name
    like: Name | None = None
    """The expert whose weights and router row it is a copy of; None: weights by the seed rule
    (`commons.experts.initial`). What was copied stays a copy when the other is retired."""
