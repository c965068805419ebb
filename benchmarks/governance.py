"""Governance: what proving a much-amended charter costs a site, whether votes are lost when all vote at once, and whether
MLflow shows what the journal says after a hundred kills.

The kills take about an hour on two cores and are measured with ``--long``; without it what was measured before is shown again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, measured_before, save
from benchmarks.governance_parts.branches import Branches, cover
from benchmarks.governance_parts.edge import Edge, edge_check
from benchmarks.governance_parts.mirror import MirrorKills, Outage, kill_mirror, measure_outage
from benchmarks.governance_parts.storm import Storm, vote_at_once

COMMAND, LONG = "hansa bench governance", "hansa bench governance --long"
EDGE_MS, EDGE_KB = 200, 200
KILLS = 100
NOTES = (
    (
        "The chain: a founding charter of 20 members with a site each, 1,000 proposals that all 20 voted for and that became "
        "law one after the other. Anchored: two thirds of the members vouch for the charter of four votes ago, these four are "
        "recounted ballot by ballot; best of five fresh processes, from the file on disk, without the start of Python and its "
        "imports. Whole: all 20,000 ballots. What each proves is in docs/governance.md."
    ),
    (
        "The storm: 30 members with a certificate and a connection each cast one ballot on each of 20 proposals, all "
        "beginning at one moment, against a coordinator in one process with SQLite (WAL, synchronous=FULL). Every receipt is "
        "looked up in the journal; outcomes are compared with a count that reads the ballots' texts and shares no code with "
        "`commons.tally`."
    ),
    (
        "Branches: the unit tests of votes under coverage.py, statements and branches of the modules named in "
        "`benchmarks/governance_parts/branches.py`: what counts, what may be proposed, pledged, carried out and proven."
    ),
    (
        "The mirror: SIGKILL to a real coordinator or to MLflow's own server (one worker, SQLite) at seeded moments, a third of "
        "them while the victim is starting, while runs of three sites, votes and releases go on over real gRPC; the sites send "
        "made-up updates. At the end `hansa mirror verify` compares every run, tag, parameter, point, file, version and alias. "
        "The outage: MLflow's server is down for a whole run."
    ),
)


def main(work: Path, *, long: bool = False) -> list[Figure]:
    """Measure what is not yet in `work`, write `results/governance.json`, answer the figures."""
    edge = Edge(**_kept(work / "edge.json", lambda: asdict(edge_check(work))))
    storm = Storm(**_kept(work / "storm.json", lambda: asdict(vote_at_once(work / "storm"))))
    branches = Branches(**_kept(work / "branches.json", lambda: asdict(cover(work / "branches"))))
    figures = [*_edge(edge), *_storm(storm), *_branches(branches)]
    if long:
        kills = _kept(work / "mirror.json", lambda: asdict(kill_mirror(work / "mirror", KILLS)))
        outage = _kept(work / "outage.json", lambda: asdict(measure_outage(work / "outage")))
        figures += [*_mirror(MirrorKills(**kills)), *_outage(Outage(**outage))]
    else:
        figures += measured_before("governance", LONG)
    save("governance", figures, notes=NOTES)
    return figures


def _edge(edge: Edge) -> list[Figure]:
    of = f"charter after {edge.votes:,} proposals x {edge.voters} voters"
    kilobytes = round(edge.anchored_bytes / 1000)
    return [
        Figure(
            f"{of}, anchored: proven in", round(edge.anchored_ms), "ms", f"< {EDGE_MS}",
            edge.anchored_ms < EDGE_MS, COMMAND,
        ),
        Figure(f"{of}, anchored: size of the proof", kilobytes, "kB", f"< {EDGE_KB}", kilobytes < EDGE_KB, COMMAND),
        Figure(f"{of}, one more vote for a site that was there", round(edge.next_ms), "ms", "", None, COMMAND),
        Figure(f"{of}, every ballot recounted", round(edge.whole_ms / 1000, 1), "s", "", None, COMMAND),
        Figure(f"{of}, size of the whole proof", round(edge.whole_bytes / 1e6, 1), "MB", "", None, COMMAND),
    ]  # fmt: skip


def _storm(storm: Storm) -> list[Figure]:
    of = f"{storm.partners} partners on {storm.proposals} proposals at once"
    return [
        Figure(f"{of}: ballots lost", storm.lost, "", "0", storm.lost == 0, COMMAND),
        Figure(
            f"{of}: outcomes that an independent count contradicts", storm.differing, "", "0",
            storm.differing == 0, COMMAND,
        ),
        Figure(f"{of}: ballots a second", round(storm.ballots / storm.seconds), "1/s", "", None, COMMAND),
    ]  # fmt: skip


def _branches(found: Branches) -> list[Figure]:
    of = f"tally, rules and execution of votes ({found.statements:,} statements, {found.branches} branches)"
    return [
        Figure(f"{of}: gone through by their tests", found.percent, "%", "100", found.missed == 0, COMMAND),
    ]


def _mirror(found: MirrorKills) -> list[Figure]:
    of = f"MLflow after {found.kills} kills"
    wrong = {"missing": found.missing, "duplicate": found.duplicate, "different": found.different}
    shown = f"{found.runs:,} runs, {found.points:,} points, {found.files:,} files, {found.versions} versions"
    return [
        *(Figure(f"{of}: {name}", count, "", "0", count == 0, LONG) for name, count in wrong.items()),
        Figure(f"{of}: what it shows of {found.records:,} records", shown, "", "", None, LONG),
        Figure(f"{of}: of these, kills of the coordinator", found.coordinator, "", "", None, LONG),
    ]


def _outage(found: Outage) -> list[Figure]:
    of = f"a run of {found.rounds} rounds with MLflow's server down"
    return [
        Figure(f"{of}: rounds finished", found.finished, "", f"{found.rounds}", found.finished == found.rounds, LONG),
        Figure(f"{of}: wrong or missing in MLflow later", found.wrong, "", "0", found.wrong == 0, LONG),
        Figure(f"{of}: took", round(found.run_s, 1), "s", "", None, LONG),
        Figure(f"{of}: the one before it, with the server up", round(found.with_mlflow_s, 1), "s", "", None, LONG),
        Figure(f"{of}: {found.behind} records caught up in", round(found.caught_up_s, 1), "s", "", None, LONG),
    ]  # fmt: skip


def _kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured before, or is measured now."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measure()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found
