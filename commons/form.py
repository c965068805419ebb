"""The outline of a document, looked at before it is read.

What a JSON reader makes of a few megabytes of braces, and of all that is wrong with them, takes gigabytes. The documents
sites and coordinator send each other have one writing, so whatever else they hold can be refused from their bytes alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WHOLE = rb"[0-9]{1,19}"
SHAPE = rb"\[(?:" + WHOLE + rb"(?:," + WHOLE + rb"){0,7})?\]"


def text(chars: int) -> bytes:
    """A pattern of a JSON string of 1 to `chars` bytes and escapes."""
    return rb'"(?:[^"\\]|\\.){1,%d}"' % chars


@dataclass(frozen=True)
class Form:
    """`head`, then entries with commas between them, then `tail`; all but the head are patterns of bytes."""

    head: bytes
    entry: bytes
    tail: bytes

    def check(self, data: bytes, what: str) -> None:
        """Raises ValueError saying where `data` is no `what`; takes no memory worth mentioning."""
        entry = re.compile(self.entry + rb"(?:,|(?=[\]}]))", re.DOTALL)
        at = len(self.head) if data.startswith(self.head) else 0
        while at and (found := entry.match(data, at)):
            at = found.end()
        if not at or not re.compile(self.tail).fullmatch(data, at):
            raise ValueError(f"not {what} in canonical form: at byte {at} comes {data[at : at + 40]!r}")
