"""Closed sets of words, as they stand in files and on the wire."""

from enum import Enum


class Word(str, Enum):
    """A member is its string and prints as it (`enum.StrEnum`, which Python 3.10 lacks)."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, format_spec: str) -> str:
        return str(self.value).__format__(format_spec)
