"""What the charter says of judging a round's state: the probe it is measured on, and what becomes of a harmful round.

The probe is a public text that lies at every site; the charter names it by digest, so that nobody can measure on another.
How measurements become a verdict is `commons.verdict`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from commons.section import Section

PARTS_MAX = 32


Domain = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]


class Probe(Section):
    """`[probe]`. Without a text nothing is measured."""

    text: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """SHA-256 of the file's bytes; empty: there is no probe."""
    bytes: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Size of the file."""
    domains: Annotated[tuple[Domain, ...], Field(strict=False, max_length=PARTS_MAX)] = ()
    """The file is cut into pieces of equal length, one for each of these domains of sites in this order, each measured by
    itself: so it is seen whether an update helps its own kind of text. Empty: it is one piece."""
    rows: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Windows of `learning.sequence_length` tokens that are read of it, evenly spread; of each part as many."""
    patience_s: Annotated[int, Field(ge=1, le=86_400)] = 120
    """How long a round waits for the sites' measurements of one state, at most."""

    @property
    def parts(self) -> int:
        return max(1, len(self.domains))

    def part_of(self, domain: str) -> int | None:
        """Which part is text of that domain."""
        return self.domains.index(domain) if domain in self.domains else None


class Rollback(Section):
    """`[rollback]`: a state that is much worse on the probe than the one before it is not taken."""

    LATER: ClassVar[frozenset[str]] = frozenset({"drag_memory"})

    on: bool = False
    rise_percent: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """A rise of the probe loss up to this is never harm."""
    sigmas: Annotated[float, Field(ge=0, le=100)] = 3.0
    """Nor is one within so many deviations of the changes that recent rounds made."""
    drag_percent: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """In rounds that are appraised, an update is left out like a harmful one if the new state is better by more than this
    without it and it helps no part of the probe. 0: none is."""
    drag_memory: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What stays of the sum of a site's earlier appraisals when it is appraised again: `drag_percent` is of that sum. 0: the
    last appraisal counts alone."""
    quarantine_rounds: Annotated[int, Field(ge=0, le=1000)] = 3
    """For how many rounds a site stays out whose update was found to do the harm."""


class Contribution(Section):
    """`[contribution]`: what single updates and experts are worth on the probe."""

    every: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Measured in every round whose number this divides; 0: never."""


def unjudgeable(
    probe: Probe, rollback: Rollback, contribution: Contribution, sequence_length: int, *, mode: str
) -> Iterator[str]:
    """Why no round can be judged on these terms. `mode`: the charter's privacy mode."""
    if bool(probe.text) != bool(probe.bytes):
        yield "probe.text and probe.bytes belong together: the digest and the size of one file"
    elif probe.text and probe.bytes // probe.parts <= sequence_length:
        window = f"{sequence_length + 1} (learning.sequence_length + 1)"
        yield f"probe.bytes is {probe.bytes}, one window takes {window} and {probe.parts} parts are measured"
    if len(set(probe.domains)) < len(probe.domains):
        yield "probe.domains names one twice"
    if probe.rows < probe.parts:
        yield f"probe.rows is {probe.rows}, each of {probe.parts} parts needs one"
    if not probe.text:
        for name, wanted in (("rollback.on", rollback.on), ("contribution.every", contribution.every)):
            if wanted:
                yield f"{name} is {str(wanted).lower()} but there is no probe to measure on (probe.text)"
    if contribution.every and mode == "secagg":
        yield (
            "contribution.every is set but privacy.mode is 'secagg': nobody sees a single update, so none can be left out"
        )
