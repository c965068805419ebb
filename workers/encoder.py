"""Text to tokens: bytes, or the ids of the charter's tokenizer.json, and how many bytes of text each id stands for.

The one door to the `tokenizers` library, which is imported when a file is opened. A file is good when any text can be
written in its tokens and comes back from them: every byte has a token of its own, and nothing but its Unicode composition
(NFC) is changed. Losses are told per byte, so that runs with different tokenizers compare.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commons.errors import HansaError
from commons.experts.tokenizer import (
    END_OF_DOCUMENT,
    TOKENS_MAX,
    VOCABULARY,
    Tokenizer,
    letters,
    read_named,
)
from commons.notes import digest

Ids = NDArray[np.unsignedinteger[Any]]
_AT_ONCE_BYTES = 4 << 20
"""Of text that is encoded in one call: what the library holds of it is far larger than it is."""
_SPACE = "\u2581"
_SAMPLE = (
    "The Quick brown fox",
    " two  spaces,\tand\ttabs\n\n\n    indented\r\n",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \u0130stanbul \ufb01ne \u00bd \u2460 \uff21",
    "\u6771\u4eac \u041c\u043e\u0441\u043a\u0432\u0430 \u05e9\u05dc\u05d5\u05dd \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f469\u200d\U0001f52c \u200b\u00a0\u0007",
    "def f(x):\n\treturn {'a': [1, 2.5e-3]}  # 100%",
)


class EncoderError(HansaError):
    """The file is no tokenizer that a run can use; the message says why."""


class _Unusable(ValueError):
    """The rest of a sentence that begins with the file."""


@dataclass(frozen=True)
class Encoder:
    end: int
    """The token behind each document."""
    sizes: NDArray[np.int64]
    """Bytes of text that each id stands for; one for the end of a document."""
    name: str = ""
    """Of the file and the library that reads it; empty: tokens are bytes."""
    _library: Any = field(default=None, repr=False)

    @classmethod
    def load(cls, path: Path, tokenizer: Tokenizer) -> Encoder:
        """The charter's. Raises HansaError where the file at `path` is another, EncoderError where it is none that can be used."""
        if not tokenizer.file:
            return BYTES
        data = read_named(path, tokenizer, "put the file with the charter's digest there")
        encoder = cls.read(data, f"{path}", end=tokenizer.end)
        if (found := len(encoder.sizes)) != tokenizer.tokens:
            raise EncoderError(f"{path} has {found} tokens, the charter says {tokenizer.tokens}")
        return encoder

    @classmethod
    def read(cls, data: bytes, name: str, *, end: int) -> Encoder:
        """Of a file that no charter describes yet. Raises EncoderError, which begins with `name`."""
        try:
            return cls._read(data, end)
        except _Unusable as why:
            raise EncoderError(f"{name} {why}") from why

    @classmethod
    def _read(cls, data: bytes, end: int) -> Encoder:
        import tokenizers

        library, described = _opened(data)
        sizes = _sizes(library, described)
        if not 0 <= end < len(sizes) or library.id_to_token(end) is None:
            raise _Unusable(f"has no token {end} to end documents with")
        sizes[end] = 1
        encoder = cls(end, sizes, f"{digest(data)} tokenizers {tokenizers.__version__}", library)
        encoder._check_that_text_comes_back(described)
        return encoder

    def encode(self, documents: Sequence[bytes]) -> Iterator[Ids]:
        """The ids of each UTF-8 document, without the end mark, in the smallest type that fits.

        Where tokens are not bytes, a character that is cut at an edge is left out.
        """
        if self._library is None:
            yield from (np.frombuffer(document, np.uint8) for document in documents)
            return
        for some in _in_portions(documents):
            texts = [document.decode("utf-8", "ignore") for document in some]
            for found in self._library.encode_batch_fast(texts, add_special_tokens=False):
                yield np.array(found.ids, self.dtype)

    @property
    def unit(self) -> str:
        return "bytes" if self._library is None else "tokens"

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        return np.min_scalar_type(len(self.sizes) - 1)

    def bytes_per_token(self, ids: NDArray[np.int64]) -> float:
        """Of these tokens on average; 1 where tokens are bytes."""
        return float(self.sizes[ids].sum()) / ids.size

    def _check_that_text_comes_back(self, described: dict[str, Any]) -> None:
        added = [e["content"] for e in described.get("added_tokens", ()) if not e.get("special")]
        for text in (*_SAMPLE, *(f"so {content} it is" for content in added)):
            [ids] = self.encode([text.encode()])
            back = self._library.decode(ids.tolist(), skip_special_tokens=False)
            if unicodedata.normalize("NFC", back) != unicodedata.normalize("NFC", text):
                raise _Unusable(f"does not give a text back: {text!r} becomes {back!r}")


BYTES = Encoder(END_OF_DOCUMENT, np.ones(VOCABULARY, np.int64))


def _in_portions(documents: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Of `_AT_ONCE_BYTES` each; a document that is larger is one by itself."""
    some, size = list[bytes](), 0
    for document in documents:
        if some and size + len(document) > _AT_ONCE_BYTES:
            yield some
            some, size = [], 0
        some.append(document)
        size += len(document)
    if some:
        yield some


def _opened(data: bytes) -> tuple[Any, dict[str, Any]]:
    from tokenizers import Tokenizer as Library

    try:
        described = json.loads(data)
        library = Library.from_str(data.decode("utf-8"))
        described["model"]["vocab"]
    except Exception as error:  # the library raises nothing narrower
        raise _Unusable(f"cannot be read as a tokenizer.json: {error}") from error
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True  # what looks like one in a text is text
    return library, described


def _sizes(library: Any, described: dict[str, Any]) -> NDArray[np.int64]:
    """Bytes of text behind each id up to the largest. Raises _Unusable where not every byte has a token."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    tokens = max(vocabulary.values(), default=-1) + 1
    if not 0 < tokens <= TOKENS_MAX:
        raise _Unusable(f"has ids up to {tokens - 1}, a model takes 1 to {TOKENS_MAX} tokens")
    byte_of = {letter: byte for byte, letter in enumerate(letters())}
    by_letter = _has(described.get("decoder"), "ByteLevel")
    whole = byte_of if by_letter else {f"<0x{byte:02X}>": byte for byte in range(256)}
    if described["model"].get("dropout"):
        raise _Unusable("draws the tokens of a text at random (dropout)")
    if not by_letter and not described["model"].get("byte_fallback"):
        raise _Unusable("is neither byte-level nor falls back to bytes, so there are texts it cannot write")
    if lacking := whole.keys() - vocabulary.keys():
        raise _Unusable(
            f"has no token for {len(lacking)} of the 256 bytes, so there are texts it cannot write"
        )
    literal = {entry["content"] for entry in described.get("added_tokens", ())}
    sizes = np.zeros(tokens, np.int64)
    for text, number in vocabulary.items():
        if text in literal:
            sizes[number] = len(text.encode())
        elif by_letter:
            sizes[number] = len(text)
        else:
            sizes[number] = 1 if text in whole else len(text.replace(_SPACE, " ").encode())
    return sizes


def _has(decoder: Any, kind: str) -> bool:
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == kind or any(_has(inner, kind) for inner in decoder.get("decoders", ()))
