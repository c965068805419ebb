"""The texts of the learning benchmark, each document on one of four sides: train, validation, test, kin.

The sides follow from the documents' hashes alone and were fixed before any run. Settings are chosen on the validation
side; the test side is read once, when a run has ended. `kin` holds documents of the sites' own kinds that no site
trains on. Everything comes from installed packages (`hansa.samples`), nothing is downloaded; or from a folder, for runs that
need more text than these have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commons.names import Digest
from hansa.samples import DOMAINS, SamplesError
from workers.data import Corpus, Mixture, Source, read_documents

SITES = ("code", "scripture", "medical", "dialogue")
REST = ("math", "headers")
"""The public text: domains of no site."""
SITE_BYTES = 3_000_000
LEAST_BYTES = 16_000
"""Of a side that is evaluated."""
_TEST, _VALIDATION, _KIN = 0.05, 0.05, 0.1
"""Shares of a text's bytes."""
_END = b"\x00"
_SHORT = 260
"""Bytes: two rows of 128."""


@dataclass(frozen=True)
class Texts:
    train: dict[str, Corpus]
    """By domain; what each holds out is its validation side."""
    test: dict[str, Corpus]
    """By domain; the held-out side alone is used."""
    rest: Corpus
    """Public text of other domains than the sites'."""
    kin: Corpus
    """Public text of the sites' own kinds."""
    probe: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """By domain: the same text, which nobody trains on where no variant takes it for public text."""

    @classmethod
    def read(cls, folder: Path | None = None) -> Texts:
        """`folder`: has a text file `DOMAIN.txt` or a folder `DOMAIN` of them for each of SITES and REST, whatever kinds of text
        these are; None: from installed packages. Raises SamplesError naming what is missing, CorpusError for what is no text.
        """
        sides = {
            domain: _sides(_documents(domain) if folder is None else _given(folder, domain))
            for domain in (*SITES, *REST)
        }
        train = {d: _corpus(d, sides[d][0], sides[d][1]) for d in SITES}
        test = {d: _corpus(d, sides[d][0], sides[d][2]) for d in SITES}
        rest = _corpus("rest", _dealt([sides[d][0] for d in REST]), _dealt([sides[d][1] for d in REST]))
        kin = _corpus("kin", _dealt([sides[d][3] for d in SITES]), _dealt([sides[d][1] for d in SITES]))
        probe = {d: np.frombuffer(b"".join(x + _END for x in sides[d][3]), np.uint8) for d in SITES}
        return cls(train, test, rest, kin, probe)

    def pooled(self) -> Source:
        """All domains in equal parts of every batch."""
        share = 1 / len(self.train)
        return Mixture(tuple((_named(c, c.name, c.train), share) for c in self.train.values()))

    def public(self) -> Source:
        """The public text as a site trains on it."""
        return _named(self.rest, "public", self.rest.train)

    def sites(self, count: int) -> dict[str, tuple[str, Source]]:
        """Site -> its domain and text; with 8 sites two share a domain, each with documents of its own."""
        if count == len(SITES):
            return {domain: (domain, _named(c, domain, c.train)) for domain, c in self.train.items()}
        assert count == 2 * len(SITES), "four sites or eight"
        halves: dict[str, tuple[str, Source]] = {}
        for domain, corpus in self.train.items():
            middle = int(np.flatnonzero(corpus.train[: len(corpus.train) // 2] == 0)[-1]) + 1
            for number, part in enumerate((corpus.train[:middle], corpus.train[middle:])):
                halves[f"{domain}-{number}"] = (domain, _named(corpus, f"{domain}-{number}", part))
        return halves

    def alike(self, count: int) -> dict[str, tuple[str, Source]]:
        """`count` sites that all draw from every domain (IID)."""
        return {
            f"site-{n}": ("all", self._drawn(str(n), dict.fromkeys(self.train, 1.0))) for n in range(count)
        }

    def mixed(self, own: float) -> dict[str, tuple[str, Source]]:
        """A site for each domain, which draws the share `own` from it and the rest from all others alike."""
        others = (1 - own) / (len(SITES) - 1)
        return {
            site: (site, self._drawn(site, {d: own if d == site else others for d in self.train}))
            for site in self.train
        }

    def _drawn(self, site: str, shares: Mapping[str, float]) -> Mixture:
        total = sum(shares.values())
        return Mixture(
            tuple(
                (_named(self.train[d], f"{d}/{site}", self.train[d].train), s / total)
                for d, s in shares.items()
            )
        )

    def digest(self) -> str:
        """Over every side of every text: which texts a result was measured on."""
        found = hashlib.sha256()
        for corpus in (*self.train.values(), *self.test.values(), self.rest, self.kin):
            found.update(corpus.digest.encode())
        return "sha256:" + found.hexdigest()


def _documents(domain: str) -> list[bytes]:
    """In the order of their hash, at most SITE_BYTES of them."""
    try:
        read = list(DOMAINS[domain][1]())
    except (OSError, ImportError, LookupError, ValueError) as missing:
        raise SamplesError(
            f"the text {domain!r} cannot be had here: {missing}; pip install hansa[samples]"
        ) from missing
    cleaned = {d.replace("\f", "\n").replace("\0", "").strip().encode() for d in read} - {b""}
    kept, size = [], 0
    for document in sorted(cleaned, key=_place):
        if size + len(document) <= SITE_BYTES:
            kept.append(document)
            size += len(document)
    return kept


def _given(folder: Path, domain: str) -> list[bytes]:
    """In the order of their hash."""
    found = next((p for p in (folder / domain, folder / f"{domain}.txt") if p.exists()), None)
    if found is None:
        raise SamplesError(f"{folder} has neither {domain}.txt nor a folder {domain}; put one there")
    return sorted(set(read_documents(found)), key=_place)


def _place(document: bytes) -> bytes:
    return hashlib.sha256(document).digest()


def _sides(documents: Sequence[bytes]) -> tuple[list[bytes], list[bytes], list[bytes], list[bytes]]:
    """Train, validation, test and kin: in the order given, whole documents until a side has its share."""
    total = sum(map(len, documents))
    sides: tuple[list[bytes], ...] = ([], [], [])
    left = list(documents)
    for side, share in zip(sides, (_TEST, _VALIDATION, _KIN), strict=True):
        while left and sum(map(len, side)) < share * total:
            side.append(left.pop(0))
    test, validation, kin = sides
    return left, validation, test, kin


def _dealt(texts: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Documents of several texts in the order of their hash, of each text as many bytes as the shortest has."""
    least = min(sum(map(len, documents)) for documents in texts)
    kept: list[bytes] = []
    for documents in texts:
        size = 0
        for document in documents:
            if size < least:
                kept.append(document)
                size += len(document)
    return sorted(kept, key=_place)


def _corpus(name: str, train: Sequence[bytes], held_out: Sequence[bytes]) -> Corpus:
    sides = [np.frombuffer(b"".join(d + _END for d in side), np.uint8) for side in (train, held_out)]
    for side in sides:
        if len(side) < LEAST_BYTES:
            raise SamplesError(f"a side of the text {name!r} has {len(side)} bytes, {LEAST_BYTES} are needed")
    return Corpus(
        name=name,
        train=sides[0],
        held_out=sides[1],
        documents=len(train) + len(held_out),
        held_out_documents=len(held_out),
        bytes=sum(map(len, (*train, *held_out))),
        digest=Digest("sha256:" + hashlib.sha256(sides[0].tobytes() + sides[1].tobytes()).hexdigest()),
    )


def _named(corpus: Corpus, name: str, train: NDArray[np.uint8]) -> Corpus:
    """With little held out: a trainer evaluates it every round, and these runs are scored elsewhere."""
    return replace(corpus, name=name, train=train, held_out=corpus.held_out[:_SHORT])
