"""Tokenizers for a charter: trained on public text, or given; checked, described, and put beside the charter that names one.

A charter's tokenizer.json lies in the charter's folder: whoever checks, signs or founds with the one needs the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from commons.charter import Charter
from commons.errors import ConfigError, HansaError, StoreError
from commons.experts.tokenizer import FILE, FILE_BYTES_MAX, Tokenizer, text_of
from commons.identity import read_file, write_file
from commons.notes import digest
from workers.data import CorpusError, read_documents
from workers.encoder import Encoder, EncoderError

END = "<|endoftext|>"
ENDS = (END, "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>")
"""Tokens that end a document in published tokenizers: OLMo, Qwen and GLM; Llama; DeepSeek; Mixtral. The first there is, is it."""
LEAST = 257
"""Every byte and the end."""


def train(texts: Sequence[Path], *, tokens: int, out: Path) -> dict[str, Any]:
    """Byte-level BPE (Sennrich et al. 2016, over bytes as GPT-2) of at most `tokens` tokens, written to `out`; what
    `describe` says. Raises StoreError when `out` exists, ConfigError for a text that cannot be read."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if out.exists():
        raise StoreError(f"{out} exists and was left as it is; choose another name")
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(_documents(texts), trainer)
    write_file(out, made.to_str(pretty=True).encode())
    return facts(out)


def _documents(texts: Sequence[Path]) -> Iterator[str]:
    for text in texts:
        try:
            yield from (document.decode() for document in read_documents(text))
        except CorpusError as error:
            raise ConfigError([str(error)]) from error


def facts(file: Path, end: str = "") -> dict[str, Any]:
    """Digest, size, tokens and end of a file that a charter can name. Raises HansaError where none can."""
    found, data = describe(file, end)
    return {
        "path": file, "digest": found.file, "bytes": found.bytes, "tokens": found.tokens, "end": found.end,
        "end_token": text_of(json.loads(data), found.end),
    }  # fmt: skip


def describe(file: Path, end: str = "") -> tuple[Tokenizer, bytes]:
    """A tokenizer.json as a charter names it, and its bytes. `end`: the token that ends documents; empty: the one of `ENDS`.

    Raises HansaError for a file that no run can use, or without such a token.
    """
    data = read_file(file, "name a tokenizer.json, or make one with `hansa tokenizer train`")
    if len(data) > FILE_BYTES_MAX:
        raise EncoderError(f"{file} has {len(data)} bytes, at most {FILE_BYTES_MAX} are a tokenizer")
    number = _end(file, data, end)
    encoder = Encoder.read(data, f"{file}", end=number)
    return Tokenizer(file=digest(data), bytes=len(data), tokens=len(encoder.sizes), end=number), data


def _end(file: Path, data: bytes, end: str) -> int:
    try:
        described = json.loads(data)
        vocabulary = described["model"]["vocab"]
        found = (
            dict(vocabulary) if isinstance(vocabulary, dict) else {e[0]: n for n, e in enumerate(vocabulary)}
        )
        found |= {entry["content"]: entry["id"] for entry in described.get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EncoderError(f"{file} cannot be read as a tokenizer.json: {error}") from error
    wanted = [end] if end else [text for text in ENDS if text in found]
    if not wanted or wanted[0] not in found:
        what = f"no token {end!r}" if end else f"none of {', '.join(ENDS)}"
        raise EncoderError(f"{file} has {what} to end documents with; name one that it has with --end")
    return int(found[wanted[0]])


def beside(charter: Path) -> Path:
    """Where the tokenizer of a charter's file lies."""
    return charter.with_name(FILE)


def check_beside(file: Path, charter: Charter) -> None:
    """Raises HansaError where the charter names a tokenizer and the one beside `file` is another, or none that a run can use."""
    if charter.model.tokenizer.file:
        Encoder.load(beside(file), charter.model.tokenizer)


def put_beside(file: Path, data: bytes) -> None:
    """Beside the charter `file`. Raises HansaError where another one lies there."""
    place = beside(file)
    if place.exists() and place.read_bytes() != data:
        raise HansaError(f"{place} is another tokenizer and was left as it is; put the charter elsewhere")
    write_file(place, data)
