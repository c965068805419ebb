"""On which line of a TOML text each key stands: `tomllib` does not say.

Follows the text loosely: a text that `tomllib` refuses still gets lines for what comes before the mistake.
"""

from __future__ import annotations

import re

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the document's root."""

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_ARRAY = re.compile(rf"[ \t]*\[\[[ \t]*({_DOTTED})[ \t]*\]\]")
_TABLE = re.compile(rf"[ \t]*\[[ \t]*({_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_TOKEN = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]|\n')


class Lines:
    """Lines count from 1. `repeated` lists keys given twice: (key, first line, second line)."""

    def __init__(self, text: str) -> None:
        self.repeated: list[tuple[KeyPath, int, int]] = []
        self._line: dict[KeyPath, int] = {}
        self._count: dict[KeyPath, int] = {}
        self._headed: set[KeyPath] = set()
        self._scan(text)

    def at(self, path: KeyPath) -> int:
        """Line of the key, else of the nearest table around it, else 1."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._line:
                return self._line[path[:end]]
        return 1

    def _scan(self, text: str) -> None:
        table: KeyPath = ()
        position, line = 0, 1
        while position < len(text):
            if found := _ARRAY.match(text, position):
                table = self._resolve((), found[1], last=False)
                self._count[table] = self._count.get(table, 0) + 1
                self._line.setdefault(table, line)
                table = (*table, self._count[table] - 1)
                self._line[table] = line
            elif found := _TABLE.match(text, position):
                table = self._resolve((), found[1])
                if table in self._headed:
                    self.repeated.append((table, self._line[table], line))
                self._headed.add(table)
                self._line.setdefault(table, line)
            elif found := _KEY.match(text, position):
                key = self._resolve(table, found[1])
                if key in self._line:
                    self.repeated.append((key, self._line[key], line))
                for end in range(len(table) + 1, len(key) + 1):
                    self._line.setdefault(key[:end], line)
            end_of_value = _end(text, found.end() if found else position)
            line += text.count("\n", position, end_of_value)
            position = end_of_value

    def _resolve(self, table: KeyPath, dotted: str, *, last: bool = True) -> KeyPath:
        """A dotted key below `table`; a name that is a list of tables means its newest element."""
        parts = [part.strip("\"'") for part in re.findall(_PART, dotted)]
        path = table
        for number, part in enumerate(parts):
            path = (*path, part)
            if path in self._count and (last or number < len(parts) - 1):
                path = (*path, self._count[path] - 1)
        return path


def _end(text: str, position: int) -> int:
    """Position after the newline that ends the value begun at `position`."""
    depth = 0
    while found := _TOKEN.search(text, position):
        token, position = found[0], found.end()
        if token in ('"""', "'''"):
            close = text.find(token, position)
            if close < 0:
                return len(text)
            position = close + 3
        elif token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        elif token == "\n" and depth <= 0:
            return position
    return len(text)
