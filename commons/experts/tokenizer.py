"""The charter's `[model.tokenizer]`: what tokens are, bytes or those of a `tokenizer.json` named by digest.

What follows from the charter alone is here, and how a released folder gets its tokenizer. What is in such a file, and how
text becomes tokens, is `workers.encoder`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from commons.errors import HansaError
from commons.notes import digest
from commons.section import Section

VOCABULARY = 256
"""One token per byte; the token's id is the byte's value."""
END_OF_DOCUMENT = 0
"""NUL never occurs in a corpus, so it ends a document (and generation)."""
FILE = "tokenizer.json"
"""Hugging Face's name for it, beside a charter, in a model's folder, at the coordinator and at a site."""
FILE_BYTES_MAX = 1 << 26
TOKENS_MAX = 1 << 20


class Tokenizer(Section):
    """`[model.tokenizer]`. Without a file tokens are bytes. It is fixed at the founding: embeddings are of its tokens."""

    file: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """SHA-256 of a Hugging Face tokenizer.json; empty: tokens are bytes."""
    bytes: Annotated[int, Field(ge=0, le=FILE_BYTES_MAX)] = 0
    """Size of the file."""
    tokens: Annotated[int, Field(ge=1, le=TOKENS_MAX)] = VOCABULARY
    """Ids are below this; the model's `vocab_size` may be larger, so that a checkpoint's padded embedding fits."""
    end: Annotated[int, Field(ge=0, lt=TOKENS_MAX)] = END_OF_DOCUMENT
    """Id of the token that ends each document, and generation."""


def conflicts(tokenizer: Tokenizer) -> Iterator[str]:
    """What in the section cannot be, each in a sentence."""
    if not tokenizer.file:
        if tokenizer != Tokenizer():
            yield (
                "model.tokenizer.file is empty but the rest describes a file: without one tokens are bytes, "
                "remove the section"
            )
        return
    if not tokenizer.bytes:
        yield "model.tokenizer.bytes is 0 but a file is named: state its size"
    if tokenizer.end >= tokenizer.tokens:
        yield f"model.tokenizer.end is {tokenizer.end} but ids end at {tokenizer.tokens - 1}"


def read_named(path: Path, tokenizer: Tokenizer, otherwise: str) -> bytes:
    """The bytes of the charter's tokenizer. Raises HansaError where `path` is another, or none; `otherwise`: who does what then."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise HansaError(f"{path} has more than {FILE_BYTES_MAX} bytes and is no tokenizer; {otherwise}")
        data = path.read_bytes()
    except OSError as error:
        raise HansaError(
            f"{path} should be the charter's tokenizer {tokenizer.file} and cannot be read ({error.strerror}); {otherwise}"
        ) from error
    check(data, tokenizer, f"{path}", otherwise)
    return data


def check(data: bytes, tokenizer: Tokenizer, what: str, otherwise: str) -> None:
    """Raises HansaError with both digests where `data` is not the charter's file."""
    found = digest(data)
    if (found, len(data)) != (tokenizer.file, tokenizer.bytes):
        raise HansaError(
            f"{what} is {found} of {len(data)} bytes, the charter's tokenizer is {tokenizer.file} of "
            f"{tokenizer.bytes} bytes; {otherwise}"
        )


def put_tokenizer(folder: Path, tokenizer: Tokenizer, file: Path | None) -> None:
    """Into a model's folder, so that `AutoTokenizer.from_pretrained(folder)` loads it. `file`: where the charter's lies.

    Raises HansaError where that is another one.
    """
    if not tokenizer.file:
        write_tokenizer(folder)
        return
    assert file is not None, "whoever writes a model has the charter's tokenizer"
    data = read_named(file, tokenizer, "put the charter's there")
    (folder / FILE).write_bytes(data)
    _write_config(folder, eos_token=text_of(json.loads(data), tokenizer.end))


def text_of(described: dict[str, Any], token: int) -> str:
    """How a parsed tokenizer.json writes the token with this id. Raises HansaError where there is none."""
    added = {entry["id"]: str(entry["content"]) for entry in described.get("added_tokens", ())}
    if token in added:
        return added[token]
    vocabulary = described["model"]["vocab"]
    pairs = (
        vocabulary.items() if isinstance(vocabulary, dict) else ((e[0], n) for n, e in enumerate(vocabulary))
    )
    found = next((str(text) for text, number in pairs if number == token), None)
    if found is None:
        raise HansaError(f"the tokenizer has no token {token}, with which the charter ends documents")
    return found


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, loadable by `AutoTokenizer.from_pretrained(folder)`, whose tokens are
    bytes."""
    (folder / FILE).write_bytes(byte_tokenizer())
    _write_config(folder)


def byte_tokenizer() -> bytes:
    """A tokenizer.json whose tokens are bytes: byte-level BPE without merges, through which any UTF-8 text goes and comes back
    unchanged."""
    vocabulary = {letter: byte for byte, letter in enumerate(letters())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    return json.dumps(tokenizer, ensure_ascii=True).encode("ascii")


def _write_config(folder: Path, **more: str) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
    } | more
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "ascii")


def letters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
