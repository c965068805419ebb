"""The auditor's reading of releases: of a state that a round of the run has, once, under the licence of its charter."""

from __future__ import annotations

from collections.abc import Mapping

from commons import notes
from governance.fsck_findings import Findings, Rule
from governance.fsck_late import Run
from governance.fsck_votes import Votes

_RELEASE = ("hansa-release/v1", ("consortium", "run", "round", "state", "manifest", "licence"))


def check_release(findings: Findings, votes: Votes, runs: Mapping[str, Run], index: int, body: bytes) -> None:
    note = notes.parse(body)
    said = notes.read(note, *_RELEASE)
    if not votes.signed(index, note, votes.log, "the coordinator's log key"):
        return
    votes.once(index, note, Rule.ROUND, "is a release that stood before")
    run = runs.get(said["run"])
    licence = run.licences.get((said["state"], int(said["round"]))) if run else None
    what = f"releases state {said['state'][:23]} of run {said['run']}, which is no round's state under that licence"
    findings.require(licence == said["licence"], Rule.ROUND, index, what)
