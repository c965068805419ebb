"""How a command answers: one value, as text for a person or as JSON for a program; and what a bug looks like."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def answer(value: Any, text: str | Iterable[str], *, as_json: bool) -> None:
    """Print `value` as JSON on stdout, or `text`. A pydantic model is printed by its JSON form."""
    if as_json:
        typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))
    else:
        typer.echo(text if isinstance(text, str) else "\n".join(text))


def plain(value: Any) -> Any:
    """The JSON form of models, paths and containers of them."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def line(value: Any) -> None:
    """One JSON value on one line, flushed: for commands that keep printing."""
    print(json.dumps(plain(value), ensure_ascii=False), flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Plain aligned columns: words to the left, numbers to the right."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells]) for i in range(len(head))]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(head))]

    def aligned(row: Sequence[str]) -> str:
        parts = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([aligned(head), *map(aligned, cells)])


def explain_bug(error: BaseException) -> str:
    """Two lines for a mistake of ours; the traceback goes to a file that only its owner can read."""
    handle, name = tempfile.mkstemp(prefix=time.strftime("hansa-%Y%m%d-%H%M%S-"), suffix=".log")
    with os.fdopen(handle, "w") as log:
        log.write(f"hansa {' '.join(sys.argv[1:])}\n\n")
        log.write("".join(traceback.format_exception(error)))
    return f"hansa made a mistake: {type(error).__name__}: {error}\nPlease report it with {name}"


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace(",", "").replace("%", "").lstrip("+-").isdecimal()
