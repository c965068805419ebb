"""Data plane: memory, seconds, CPU and bytes of a round without training, beside other systems; streams, codecs, combining.

Parts are measured one after the other, each in a process of its own, and kept in the work folder; interrupted, it goes on
with the next. Without ``--long`` it takes about five minutes and shows the long parts as they were measured last; with
it about an hour, and the peers are measured in the same run where `make peers` has installed them.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.dataplane_parts.apart import PartFailed, lacks_room, measured_apart
from benchmarks.figures import RESULTS, Figure, save
from benchmarks.peers import PeerRun
from benchmarks.peers.driving import PeerError
from benchmarks.peers.run import ENVIRONMENTS, ROOT, measure

EMPTY_RUNS = 3
SHORT, LONG = "hansa bench dataplane", "hansa bench dataplane --long"
PEERS_AT = Path(os.environ.get("HANSA_PEERS", ROOT / ENVIRONMENTS))
"""Where `make peers` has installed them."""
PEERS = ("nvflare", "nvflare-offload", "flower")
SMALL, LARGE, HUGE = ((3, 1), (8, 1)), ((3, 400), (8, 100)), (1, 2000)
ROUNDS = {(3, 1): 9, (8, 1): 9, (3, 400): 8, (8, 100): 8, (1, 2000): 2}
PEER_ROUNDS = {1: 3, 400: 4, 100: 4, 2000: 1}
MEMORY = [(mb, sites) for mb in (100, 400, 1000, 2000) for sites in (4, 8, 16)]
ABOVE_MB, SPREAD_PERCENT = 256, 5
MASKED_MB = 400

NOTES = (
    (
        "A round without training: the real coordinator and real sites (keys, certificates, proofs, heartbeats, witnesses, "
        "journal with fsync, outbox, spool, mutual TLS), and a stand-in that adds a little noise where training would be, as "
        "the peers' clients do. Peers keep states in memory and wait for no disk; Hansa's updates and states are on disk "
        "before they are acknowledged. All systems have the same cores, one after the other in one run."
    ),
    "Seconds of a round are from one close to the next, the median of all rounds but the first. 1 MB is 10^6 bytes.",
    (
        "Combining reads what the spool holds, from the page cache, in two threads, and hashes and writes the new state. Bytes "
        "read are those of all sites' payloads; the machine's copying is numpy's between two large arrays in one thread."
    ),
)
Row = tuple[str, float | str, str, str, bool | None]


def main(work: Path, *, long: bool = False) -> list[Figure]:
    """Measure what is not yet in `work`, write `results/dataplane.json`, answer the figures."""
    runs = _rounds(work, SMALL, peers=long)
    figures = [*_figures(SHORT, _small(runs)), *_figures(SHORT, _short(work))]
    tables = []
    if long:
        runs |= _rounds(work, (*LARGE, HUGE), peers=True)
        figures += _figures(LONG, _large(runs))
        figures += _figures(LONG, _long(work))
        tables = [_table(runs)]
    else:
        known = _known()
        figures += [Figure(**figure) for figure in known.get("figures", []) if figure["command"] == LONG]
        tables = known.get("tables", [])
    save("dataplane", figures, notes=NOTES, tables=tables)
    return figures


def _rounds(
    work: Path, sizes: tuple[tuple[int, int], ...], *, peers: bool
) -> dict[tuple[str, int, int], PeerRun | str]:
    """(system, sites, MB) -> what it took, or why that is not known."""
    found: dict[tuple[str, int, int], PeerRun | str] = {}
    for sites, mb in sizes:
        folder = (work / f"round-{sites}x{mb}").resolve()
        options = ("--sites", sites, "--mb", mb, "--rounds", ROUNDS[sites, mb])
        ours = _once(work, f"round-{sites}x{mb}", lambda: measured_apart("rounds", folder, *options))  # noqa: B023
        run = (
            ours
            if isinstance(ours, str)
            else PeerRun(**{**ours["run"], "notes": tuple(ours["run"]["notes"])})
        )
        found["hansa", sites, mb] = run
        for peer in PEERS if peers else ():
            try:
                found[peer, sites, mb] = measure(
                    peer, sites, mb, PEER_ROUNDS[mb], work=work / "peers", environments=PEERS_AT
                )
            except PeerError as error:
                found[peer, sites, mb] = f"not measured: {error}"
    return found


def _small(runs: dict[tuple[str, int, int], PeerRun | str]) -> Iterator[Row]:
    for (sites, mb), most in zip(SMALL, (0.3, 0.5), strict=True):
        yield _wall(runs["hansa", sites, mb], f"a round of {sites} x {mb} MB", most)


def _large(runs: dict[tuple[str, int, int], PeerRun | str]) -> Iterator[Row]:
    for sites, mb in LARGE:
        ours = runs["hansa", sites, mb]
        others = [r for p in PEERS if isinstance(r := runs[p, sites, mb], PeerRun)]
        name = f"a round of {sites} x {mb} MB in fp32"
        yield _wall(ours, name, None)
        for what, key in (("seconds", "wall_s_median"), ("CPU seconds", "cpu_s_per_round")):
            title, target = f"{name}, {what} against the better peer's", "<= 0.333"
            if isinstance(ours, str) or not others:
                yield (
                    title,
                    ours if isinstance(ours, str) else "not measured: no peer is installed",
                    "",
                    target,
                    False,
                )
                continue
            share = getattr(ours, key) / min(getattr(other, key) for other in others)
            yield title, round(share, 3), "", target, share <= 1 / 3
        if isinstance(ours, PeerRun):
            per_mb = 1000 * ours.cpu_s_per_round / (2 * sites * mb)
            yield (
                f"CPU per MB moved end to end, {sites} x {mb} MB",
                round(per_mb, 2),
                "ms",
                "<= 4 ms",
                per_mb <= 4,
            )
            above = ours.server_peak_rss_mb - ours.server_idle_rss_mb
            yield (
                f"coordinator above idle in a run of {sites} x {mb} MB",
                round(above),
                "MB",
                "<= 256 MiB",
                above <= 268,
            )
    sites, mb = HUGE
    ours = runs["hansa", sites, mb]
    title = "coordinator above idle in a run of a 2 GB state, 1 site"
    if isinstance(ours, str):
        yield title, ours, "", "<= 256 MiB", False
    else:
        above = ours.server_peak_rss_mb - ours.server_idle_rss_mb
        yield title, round(above), "MB", "<= 256 MiB", above <= 268


def _short(work: Path) -> Iterator[Row]:
    for ray, most in ((False, 6), (True, 10)):
        with_ray = "with Ray" if ray else "without Ray"
        part = f"empty-{'ray' if ray else 'bare'}"
        took = _once(work, part, lambda: _empty_s(work / part, *(["--ray"] if ray else [])))  # noqa: B023
        yield _most(f"empty run, start to finished, {with_ray}, median of {EMPTY_RUNS}", took, "s", most)
    streams = _once(work, "streams", lambda: measured_apart("streams"))
    for name, key in (
        ("up", "up"),
        ("down", "down"),
        ("up, two connections", "up_lines"),
        ("down, two", "down_lines"),
    ):
        title = f"stream {name}, TLS, of a bare TLS socket's rate"
        if isinstance(streams, str):
            yield title, streams, "", ">= 80 %", False
        else:
            share = 100 * streams[key]["mb_per_s"] / streams["socket"]["mb_per_s"]
            yield title, round(share), "%", ">= 80 %", share >= 80
    if not isinstance(streams, str):
        for what, key in (("a bare TLS socket", "socket"), ("a stream up", "up"), ("a stream down", "down")):
            title = f"CPU per MB of {what}, both ends, bytes dropped"
            yield title, streams[key]["cpu_ms_per_mb"], "ms", "", None
    codecs = _once(work, "codecs", _codecs)
    for operation in ("encode", "decode"):
        rate = codecs["int4"][operation]
        yield f"int4 {operation}, one core", round(rate, 2), "GB/s of fp32", ">= 1", rate >= 1
    for codec in ("fp32", "int8"):
        part = f"combining-16x200-{codec}"
        options = ("--mb", 200, "--sites", 16, "--codec", codec, "--apart", "--rounds", 5)
        found = _once(work, part, lambda: measured_apart("combining", work / part, *options))  # noqa: B023
        title = f"combining 16 x 200 MB of {codec}, bytes read against copying"
        if isinstance(found, str):
            yield title, found, "", ">= 50 %", False
        else:
            share = 100 * found["read_gb_per_s"] / found["copy_gb_per_s"]
            yield title, round(share), "%", ">= 50 %", share >= 50
    for routing in ("joint", "lean"):
        part = f"sharded-{routing}"
        moved = _once(work, part, lambda: measured_apart("sharded", work / part, "--routing", routing))  # noqa: B023
        title = f"bytes per site and round of the demo's model, int4 both ways, {routing}, of full replication in fp32"
        if isinstance(moved, str):
            yield title, moved, "", "<= 0.1", False
        else:
            yield title, round(moved["share"], 4), "", "<= 0.1", moved["share"] <= 0.1
    cuts = _once(work, "cuts", lambda: measured_apart("cuts", work / "cuts"))
    if isinstance(cuts, str):
        yield "400 MB up with the link cut 20 times, sent twice", cuts, "", "< 5 %", False
    else:
        yield _below("400 MB up with the link cut 20 times, sent twice", cuts["twice_percent"], "%", 5)


def _empty_s(folder: Path, *options: str) -> float:
    """The median of several runs."""
    return float(statistics.median(measured_apart("empty", folder, *options) for _ in range(EMPTY_RUNS)))


def _long(work: Path) -> Iterator[Row]:
    highest: dict[int, list[float]] = {}
    for mb, sites in MEMORY:
        part = f"memory-{mb}x{sites}"
        options = ("--mb", mb, "--sites", sites, "--durable")
        room = lacks_room(work, mb * 5 * 10**6)
        found = room or _once(work, part, lambda: measured_apart("combining", work / part, *options))  # noqa: B023
        title = f"memory above idle while {sites} x {mb} MB are combined"
        if isinstance(found, str):
            yield title, found, "", f"<= {ABOVE_MB} MiB", False
            continue
        highest.setdefault(mb, []).append(found["above_idle_mb"])
        yield (
            title,
            found["above_idle_mb"],
            "MB",
            f"<= {ABOVE_MB} MiB",
            found["above_idle_mb"] <= ABOVE_MB * 1.048,
        )
    for mb, seen in highest.items():
        spread = 100 * (max(seen) - min(seen)) / min(seen)
        title = f"the same from 4 to 16 sites of {mb} MB, spread"
        yield title, round(spread, 1), "%", f"<= {SPREAD_PERCENT} %", spread <= SPREAD_PERCENT
    yield from _twenty_gigabytes(work)
    yield from _masked(work)


def _twenty_gigabytes(work: Path) -> Iterator[Row]:
    title = "a state of 20 GB, 2 sites, int4 both ways: one round"
    room = lacks_room(work, 55 * 10**9)
    found = room or _once(work, "huge", lambda: measured_apart("huge", work / "huge"))
    if isinstance(found, str):
        yield title, found, "", "completes", False
        return
    yield title, round(found["round_s"]), "s", "completes", True
    above = found["server_peak_mb"] - found["server_idle_mb"]
    yield "coordinator above idle in it", round(above), "MB", "<= 256 MiB", above <= 268
    yield (
        "resident memory of a site in it, mapped files included",
        round(found["site_peak_mb"]),
        "MB",
        "",
        None,
    )


def _codecs() -> Any:
    from benchmarks.dataplane_parts import codecs

    return codecs.measure()


def _wall(run: PeerRun | str, name: str, most: float | None) -> Row:
    if isinstance(run, str):
        return name, run, "", f"<= {most} s" if most else "", False if most else None
    return _most(name, run.wall_s_median, "s", most) if most else (name, run.wall_s_median, "s", "", None)


def _most(name: str, value: float | str, unit: str, most: float) -> Row:
    if isinstance(value, str):
        return name, value, "", f"<= {most:g} {unit}", False
    return name, round(value, 3), unit, f"<= {most:g} {unit}", value <= most


def _below(name: str, value: float, unit: str, most: float) -> Row:
    return name, round(value, 2), unit, f"< {most:g} {unit}", value < most


def _figures(command: str, rows: Iterator[Row]) -> list[Figure]:
    return [Figure(name, value, unit, target, met, command) for name, value, unit, target, met in rows]


def _table(runs: dict[tuple[str, int, int], PeerRun | str]) -> str:
    """Every system at every size."""
    head = (
        "system",
        "sites x MB",
        "s",
        "CPU s",
        "other CPU s",
        "MB on the wire",
        "server RSS MB",
        "total RSS MB",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (system, sites, mb), run in sorted(
        runs.items(), key=lambda item: (item[0][2], item[0][1], item[0][0])
    ):
        if isinstance(run, str):
            lines.append(f"| {system} | {sites} x {mb} | {run} |" + " |" * (len(head) - 3))
            continue
        cells = (
            f"{system} {run.version}", f"{sites} x {mb}", f"{run.wall_s_median:.2f}", f"{run.cpu_s_per_round:.2f}",
            f"{run.foreign_cpu_s_per_round:.2f}", f"{run.wire_mb_per_round or 0:,.0f}",
            f"{run.server_peak_rss_mb:,.0f}", f"{run.total_peak_rss_mb:,.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _known() -> dict[str, Any]:
    path = RESULTS / "dataplane.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _once(work: Path, name: str, part: Callable[[], Any]) -> Any:
    """What `part` gave, as JSON; from the work folder when it was measured there before. A sentence when it failed."""
    path = work / f"{name}.json"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        try:
            found = part()
        except PartFailed as failed:
            return f"failed: {str(failed).strip().splitlines()[-1][:200]}"
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def _masked(work: Path) -> Iterator[Row]:
    title = "a masked round against a plain one, 10^8 parameters, 5 sites, 1 lost"
    room = lacks_room(work, MASKED_MB * 30 * 10**6)
    found = room or _once(
        work, "masked", lambda: measured_apart("masked", work / "masked", "--mb", MASKED_MB)
    )
    if isinstance(found, str):
        yield title, found, "", "<= 1.5", False
        return
    ratio = found["masked_s"] / found["plain_s"]
    yield title, round(ratio, 2), "", "<= 1.5", ratio <= 1.5 and found["shared"] == "masked"
