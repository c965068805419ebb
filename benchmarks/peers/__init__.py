"""Other systems beside Hansa at the same work: a round in which every site adds a little noise to a model and returns it.

Nothing here is part of Hansa's own install: `make peers` creates each peer's environment from its own requirements.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

from benchmarks.measure import Sampler


@dataclass(frozen=True)
class PeerRun:
    """What one system needed for `rounds` rounds of `sites` sites with a model of `mb` MB (fp32, 16 tensors).

    1 MB is 10^6 bytes. Figures per round are of the rounds after the first, when there are more than one: the first
    also warms up. A round lasts from the end of the one before.
    """

    system: str
    version: str
    configuration: str
    """How it was set up, in a few words: transport, encryption, options that save memory."""
    sites: int
    mb: float
    rounds: int
    wall_s_min: float
    wall_s_median: float
    cpu_s_per_round: float
    """Of all processes, server and sites."""
    foreign_cpu_s_per_round: float
    """What other programs used of the same cores: wall time is an upper bound where this is large."""
    wire_mb_per_round: float | None
    """Between sites and server, both ways, headers included; None when it could not be told from the rest."""
    loopback_mb_per_round: float | None
    """Between any two processes over loopback; None outside a private network."""
    server_peak_rss_mb: float
    """Highest sum of resident memory over the processes of the server's side."""
    server_idle_rss_mb: float
    """The same with all sites connected, before any work is there."""
    total_peak_rss_mb: float
    """The same over all processes; pages they share are counted in each."""
    submit_to_done_s: float
    start_to_done_s: float
    """From the start of the first process to the end of the last round."""
    notes: tuple[str, ...] = ()

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> PeerRun:
        """Raises TypeError or ValueError for anything else than `as_json` gave."""
        found = json.loads(line)
        return cls(**{**found, "notes": tuple(found["notes"])})


@dataclass(frozen=True)
class Rounds:
    """The figures of a `PeerRun` that follow from samples and the times of its rounds, told the same way for everyone."""

    wall_s_min: float
    wall_s_median: float
    cpu_s_per_round: float
    foreign_cpu_s_per_round: float
    loopback_mb_per_round: float
    wire_mb_per_round: float
    server_peak_rss_mb: float
    total_peak_rss_mb: float
    begin: float
    """Of the counted rounds, `time.time()`."""
    end: float
    counted: int


def rounds_of(sampler: Sampler, spans: Sequence[tuple[float, float]], server: Collection[str]) -> Rounds:
    """From the (start, end) of every round in order, `time.time()`, and the roles on the server's side.

    Raises ValueError without a round.
    """
    if not spans:
        raise ValueError("no round was completed")
    marks = [end for _, end in spans] if len(spans) > 1 else list(spans[0])
    lasted = [after - before for before, after in itertools.pairwise(marks)]
    steady = sampler.window(marks[0], marks[-1])
    whole = sampler.window(spans[0][0], marks[-1])
    sampled = max(
        sum(mb for role, mb in moment.rss_mb.items() if role in server) for moment in sampler.moments
    )
    # The kernel's mark also knows peaks between two samples, but of one process only.
    marked = max((mb for role, mb in sampler.high_water_mb().items() if role in server), default=0.0)
    return Rounds(
        wall_s_min=round(min(lasted), 3),
        wall_s_median=round(statistics.median(lasted), 3),
        cpu_s_per_round=round(steady.cpu_s / len(lasted), 3),
        foreign_cpu_s_per_round=round(steady.foreign_cpu_s / len(lasted), 3),
        loopback_mb_per_round=round(steady.loopback_bytes / 1e6 / len(lasted), 3),
        wire_mb_per_round=round(steady.link_bytes / 1e6 / len(lasted), 3),
        server_peak_rss_mb=round(max(sampled, marked), 1),
        total_peak_rss_mb=round(whole.peak_rss_mb, 1),
        begin=marks[0],
        end=marks[-1],
        counted=len(lasted),
    )
