"""A consortium that masks in memory: every message of an attempt is at hand, to be lost, changed or shown twice."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from commons.codec import FRAME
from commons.errors import Refusal
from commons.masking import (
    Attempt,
    Bound,
    Deal,
    FixedPoint,
    Reveal,
    RoundMasking,
    SiteMasking,
    Step,
    Unmasker,
    add_words,
    to_bytes,
)
from commons.notes import Signer
from commons.privacy.terms import SecAgg

ATTEMPT = Attempt(
    consortium="hansa-test",
    run="run-1",
    round=3,
    attempt=1,
    charter="sha256:" + hashlib.sha256(b"c").hexdigest(),
)
LOG = Signer("coordinator", b"\x63" * 32)
SIZES = (1000, 37)
"""Elements of the slices that are masked."""

T = TypeVar("T")


def good(answer: T | Refusal) -> T:
    """The answer, which is no refusal."""
    assert not isinstance(answer, Refusal), str(answer)
    return answer


def name(number: int) -> str:
    return f"site-{number:02d}"


def signer_of(site: str) -> Signer:
    return Signer(site, hashlib.sha256(b"signs" + site.encode()).digest())


def secret_of(site: str) -> bytes:
    return hashlib.sha256(b"keeps" + site.encode()).digest()


def update_of(site: str, sizes: Sequence[int]) -> list[NDArray[np.float32]]:
    seed = int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "big")
    draw = np.random.Generator(np.random.PCG64(seed))
    return [draw.normal(0, 0.3, size).astype(np.float32) for size in sizes]


@dataclass
class Crowd:
    """Sites `site-01`.. and their coordinator in one attempt. Methods walk the honest way, `without` some sites."""

    count: int = 5
    attempt: Attempt = ATTEMPT
    sizes: Sequence[int] = SIZES
    terms: SecAgg = field(default_factory=SecAgg)
    coordinator: RoundMasking = field(init=False)
    sites: dict[str, SiteMasking] = field(init=False)
    masked: dict[str, list[bytes]] = field(init=False, default_factory=dict)
    """Site -> its frames, in order."""
    roster: tuple[bytes, ...] = ()
    dealt: tuple[Deal, ...] = ()
    survivors: bytes = b""
    agreements: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        self.names = [name(number) for number in range(1, self.count + 1)]
        self.keys = {site: signer_of(site).verifier for site in self.names}
        self.coordinator = RoundMasking(self.attempt, terms=self.terms, log=LOG, sites=self.keys)
        self.fixed_point = FixedPoint.of(self.terms, self.count)
        self.sites = {site: self.site(site) for site in self.names}

    def site(self, site: str, *, bound: Bound | None = None, attempt: Attempt | None = None) -> SiteMasking:
        return good(self.begin(site, bound=bound, attempt=attempt))

    def begin(
        self, site: str, *, bound: Bound | None = None, attempt: Attempt | None = None
    ) -> SiteMasking | Refusal:
        return SiteMasking.begin(
            attempt or self.attempt,
            site=site,
            signer=signer_of(site),
            secret=secret_of(site),
            sites=self.keys,
            log=LOG.verifier,
            terms=self.terms,
            bound=bound,
        )

    def announce(self, without: Collection[str] = ()) -> Crowd:
        for site in self.names:
            if site not in without:
                assert self.coordinator.take_keys(self.sites[site].keys()) is None
        self.roster = good(self.coordinator.close_keys())
        return self

    def deal(self, without: Collection[str] = ()) -> Crowd:
        for site in self.names:
            if site not in without:
                assert self.coordinator.take_deal(good(self.sites[site].deal(self.roster))) is None
        self.dealt = good(self.coordinator.close_deals())
        return self

    def words(self, site: str) -> list[NDArray[np.uint32]]:
        """The site's update as words, unmasked."""
        made = []
        for values in update_of(site, self.sizes):
            words = np.empty(values.size, np.uint32)
            self.fixed_point.quantise(values, np.zeros_like(values), words)
            made.append(words)
        return made

    def mask(self, without: Collection[str] = ()) -> Crowd:
        for site in self.names:
            if site not in without:
                masker = good(self.sites[site].masker(self.dealt))
                self.masked[site] = []
                for number, words in enumerate(self.words(site)):
                    for frame, start in enumerate(range(0, words.size, FRAME)):
                        part = words[start : start + FRAME]
                        masker.frame(part, number, frame)
                        self.masked[site].append(to_bytes(part))
                assert self.coordinator.take_masked(site, self.sites[site].bound.deals or "") is None
        self.survivors = good(self.coordinator.close_masked())
        return self

    def agree(self, without: Collection[str] = ()) -> Crowd:
        for site in self.masked:
            if site not in without:
                assert self.coordinator.take_agreement(good(self.sites[site].agree(self.survivors))) is None
        self.agreements = good(self.coordinator.close_agreements())
        return self

    def revealed(self, site: str) -> Reveal:
        return good(self.sites[site].reveal(self.survivors, self.agreements))

    def reveal(self, without: Collection[str] = ()) -> Crowd:
        for site in self.masked:
            if site not in without:
                assert self.coordinator.take_reveal(self.revealed(site)) is None
        return self

    def total(self, unmasker: Unmasker) -> list[NDArray[np.uint32]]:
        """The sum of the survivors' words, slice by slice, unmasked."""
        found = []
        frames = [
            (number, frame, min(FRAME, size - start))
            for number, size in enumerate(self.sizes)
            for frame, start in enumerate(range(0, size, FRAME))
        ]
        for position, (number, frame, count) in enumerate(frames):
            total = np.zeros(count, np.uint32)
            for site in self.masked:
                add_words(total, self.masked[site][position])
            unmasker.frame(total, number, frame)
            found.append(total)
        return [
            np.concatenate([part for part, (of, _, _) in zip(found, frames, strict=True) if of == number])
            for number in range(len(self.sizes))
        ]

    def plain_total(self, sites: Collection[str]) -> list[NDArray[np.uint32]]:
        """What the sum must be: the words of `sites` added without any mask."""
        words = [self.words(site) for site in sites]
        return [np.sum([w[n] for w in words], axis=0, dtype=np.uint32) for n in range(len(self.sizes))]

    def check_sum(self) -> None:
        """The coordinator finds the survivors' sum, to the last bit."""
        found = self.total(good(self.coordinator.unmasker()))
        for one, other in zip(found, self.plain_total(self.masked), strict=True):
            np.testing.assert_array_equal(one, other)


def upto(step: Step, crowd: Crowd | None = None) -> Crowd:
    """A crowd in which everything before `step` went well for everybody."""
    crowd = crowd or Crowd()
    walk = (crowd.announce, crowd.deal, crowd.mask, crowd.agree, crowd.reveal)
    for method in walk[: list(Step).index(step)]:
        method()
    return crowd


def later(crowd: Crowd, *, rounds: int = 0, attempts: int = 1) -> Attempt:
    return replace(
        crowd.attempt,
        round=crowd.attempt.round + rounds,
        attempt=1 if rounds else crowd.attempt.attempt + attempts,
    )
