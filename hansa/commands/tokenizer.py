"""`hansa tokenizer`: what a model's tokens are, where they are not bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hansa.options import Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)

End = Annotated[
    str,
    typer.Option("--end", help="Token that ends a document; none: <|endoftext|> or its like in the file."),
]


@app.callback()
def tokenizers() -> None:
    """Make or check a tokenizer for `hansa charter new --tokenizer`."""


@app.command("train")
def train(
    text: Annotated[list[Path], typer.Option("--text", help="Public text to learn it from; repeat.")],
    vocabulary: Annotated[
        int,
        typer.Option(
            min=257, max=1 << 20, help="Tokens, at most: each byte, the end of a document, and words."
        ),
    ] = 8192,
    out: Annotated[Path, typer.Option("--out", help="Where to write it.")] = Path("tokenizer.json"),
    as_json: Json = False,
) -> None:
    """Train a byte-level BPE tokenizer on public text. It shows words of that text to everybody: give no private text.

    \b
    Example:
      hansa tokenizer train --text texts/public.txt --vocabulary 4096
    """
    from hansa.tokenizers import train as learn

    _show(learn(text, tokens=vocabulary, out=out), as_json=as_json)


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="A Hugging Face tokenizer.json.")] = Path("tokenizer.json"),
    end: End = "",
    as_json: Json = False,
) -> None:
    """Check that a run can use a tokenizer: any text can be written in its tokens, and comes back from them.

    \b
    Example:
      hansa tokenizer check OLMoE-1B-7B-0924/tokenizer.json
    """
    from hansa.tokenizers import facts

    _show(facts(file, end), as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    text = [
        f"{found['path']}: {found['tokens']} tokens, {found['bytes']} bytes, {found['digest']}",
        f"Documents end in {found['end_token']!r}, token {found['end']}.",
        f"Name it in a charter: hansa charter new --tokenizer {found['path']} ...",
    ]
    answer(found, text, as_json=as_json)
