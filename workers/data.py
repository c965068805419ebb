"""A site's private text: read, checked, split by document, and drawn from without any state.

Text is UTF-8: one file (documents separated by form feeds, or else by blank lines) or a folder of `.txt` files
(one document each). What tokens are, the charter says (`workers.encoder`); each document is encoded once, when it is read,
and ends in the token that ends documents, so that a model learns where texts stop. NUL is the only byte refused: where
tokens are bytes, it is that end. Nothing here leaves the site but the facts of `Corpus`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from commons.names import Digest
from workers.encoded import encoded
from workers.encoder import BYTES, Encoder, Ids

Rows = NDArray[np.int64]
"""[rows, length + 1] token ids: inputs are columns 0..length-1, targets columns 1..length."""

HELD_OUT_PART = 10
"""One document in ten is held out, chosen by its hash: the same text is on the same side at every site."""
_END = b"\x00"


class CorpusError(ValueError):
    """The text cannot be trained on. The message names the file and what its owner should do."""


class HeldOut(Protocol):
    """Whatever a loss is measured on."""

    def held_out_rows(self, *, length: int, limit: int) -> Rows: ...

    @property
    def encoder(self) -> Encoder:
        """What made its tokens."""
        ...


class Source(HeldOut, Protocol):
    """Whatever batches are drawn from."""

    def batch(self, step: int, *, rows: int, length: int, seed: int) -> Rows:
        """Rows of one inner step: a pure function of the arguments and the text."""
        ...


@dataclass(frozen=True)
class Corpus:
    name: str
    """Keys the random draws, so that two sites with one text still draw differently."""
    train: Ids
    held_out: Ids
    documents: int
    held_out_documents: int
    bytes: int
    """Length of the text, without the end marks."""
    digest: Digest
    """SHA-256 over the documents in order, each preceded by its length."""
    encoder: Encoder = BYTES

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        sequence_length: int,
        name: str = "",
        encoder: Encoder = BYTES,
        kept: Path | None = None,
    ) -> Corpus:
        """Read, encode and split the text at `path`. `kept`: folder where its tokens stay (`workers.encoded`).

        Raises CorpusError, StoreError when they cannot be kept.
        """
        documents, total = read_documents(path), hashlib.sha256()
        for document in documents:
            total.update(len(document).to_bytes(8, "big") + document)
        digest = Digest("sha256:" + total.hexdigest())
        ids = encoded(path, documents, digest, encoder, kept)
        out = _held_out(path, documents, [len(i) + 1 for i in ids], sequence_length + 1, encoder.unit)
        return cls(
            name=name or path.stem,
            train=_joined((i for i, held in zip(ids, out, strict=True) if not held), encoder),
            held_out=_joined((i for i, held in zip(ids, out, strict=True) if held), encoder),
            documents=len(documents),
            held_out_documents=sum(out),
            bytes=sum(map(len, documents)),
            digest=digest,
            encoder=encoder,
        )

    def batch(self, step: int, *, rows: int, length: int, seed: int) -> Rows:
        """`rows` windows of length + 1 tokens at random places of the training side."""
        key = hashlib.sha256(f"{seed}/{self.name}".encode()).digest()[:16]
        philox = np.random.Philox(key=np.frombuffer(key, np.uint64), counter=[0, 0, 0, step])
        starts = np.random.Generator(philox).integers(0, len(self.train) - length, size=rows)
        return _windows(self.train, starts, length)

    def held_out_rows(self, *, length: int, limit: int) -> Rows:
        """At most `limit` non-overlapping windows, evenly spread over the held-out side; at least one."""
        return spread_rows(self.held_out, length=length, limit=limit)


@dataclass(frozen=True)
class Mixture:
    """Several sources at fixed shares of every batch (shares sum to 1).

    The first source gives the evaluation text and whatever rows rounding leaves; the others' counts alternate so
    that their shares hold exactly over many steps.
    """

    sources: Sequence[tuple[Source, float]]

    def batch(self, step: int, *, rows: int, length: int, seed: int) -> Rows:
        counts = [
            int(share * rows * (step + 1) + 1e-6) - int(share * rows * step + 1e-6)
            for _, share in self.sources[1:]
        ]
        parts = [self.sources[0][0].batch(step, rows=rows - sum(counts), length=length, seed=seed)]
        for (source, _), count in zip(self.sources[1:], counts, strict=True):
            parts.append(source.batch(step, rows=count, length=length, seed=seed))
        return np.concatenate(parts)

    def held_out_rows(self, *, length: int, limit: int) -> Rows:
        return self.sources[0][0].held_out_rows(length=length, limit=limit)

    @property
    def encoder(self) -> Encoder:
        return self.sources[0][0].encoder


def spread_rows(text: Ids, *, length: int, limit: int) -> Rows:
    """At most `limit` non-overlapping windows, evenly spread over `text`; at least one, if it holds one."""
    available = (len(text) - 1) // length
    chosen = np.linspace(0, available - 1, min(limit, available)).astype(np.int64)
    return _windows(text, chosen * length, length)


def _windows(text: Ids, starts: NDArray[np.int64], length: int) -> Rows:
    rows: Rows = text[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    return rows


def _joined(documents: Iterable[Ids], encoder: Encoder) -> Ids:
    end = np.array([encoder.end], encoder.dtype)
    return np.concatenate([part for ids in documents for part in (ids, end)])


def read_documents(path: Path) -> list[bytes]:
    """The documents, in file order, without empty ones. Raises CorpusError."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.txt") if p.is_file())
        if not files:
            raise CorpusError(f"{path} holds no .txt files; put one document in each, or name a text file")
        documents = [_checked(p).strip() for p in files]
    elif path.is_file():
        text = _checked(path)
        documents = [d.strip() for d in (text.split(b"\f") if b"\f" in text else re.split(rb"\n\s*\n", text))]
    else:
        raise CorpusError(f"{path} does not exist; give a UTF-8 text file or a folder of .txt files")
    documents = [d for d in documents if d]
    if not documents:
        raise CorpusError(f"{path} is empty; give it the text this site is to train on")
    return documents


def _checked(path: Path) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}); let the site's user read it") from error
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 at byte {error.start}; convert it, e.g. with iconv -t UTF-8"
        ) from error
    if _END in text:
        raise CorpusError(f"{path} holds a NUL at byte {text.index(_END)}; remove it, text files have none")
    return text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")


def _held_out(path: Path, documents: list[bytes], lengths: list[int], window: int, unit: str) -> list[bool]:
    """Which documents are held out, so that each side is long enough for one window. `lengths`: in tokens, with the end mark."""
    if len(documents) < 2:
        raise CorpusError(
            f"{path} is one document, so nothing can be held out; separate documents by form feeds or blank lines"
        )
    hashes = [int.from_bytes(hashlib.sha256(d).digest()[:8], "big") for d in documents]
    out = {h for h in hashes if h % HELD_OUT_PART == 0}
    for h in sorted(set(hashes)):
        if sum(n for n, of in zip(lengths, hashes, strict=True) if of in out) >= window:
            break
        out.add(h)
    held = sum(n for n, of in zip(lengths, hashes, strict=True) if of in out)
    for side in (sum(lengths) - held, held):
        if side < window:
            raise CorpusError(
                f"{path} is too short: training and held-out documents need {window} {unit} each "
                f"(sequence_length + 1), and {sum(lengths) - len(lengths)} {unit} in {len(documents)} documents "
                "do not split so; add documents"
            )
    return [h in out for h in hashes]
