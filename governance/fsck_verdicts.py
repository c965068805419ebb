"""The auditor's reading of measurements and verdicts: each follows from the sites' notes before it, and is kept to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from commons.charter import Charter
from commons.records import Kind, Record
from commons.verdict import change, culprit, limit
from commons.work import ProbeNote
from governance.fsck_findings import Findings, Rule
from governance.fsck_late import Round, Run


@dataclass
class _Judged:
    """Of one run."""

    losses: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """(probe, state) -> site -> loss."""
    changes: list[int] = field(default_factory=list)
    harmful: dict[str, int] = field(default_factory=dict)
    """Site -> round of its last update that was left out."""
    last: dict[str, Any] | None = None
    """The open round's last verdict."""
    named: tuple[str, int] | None = None
    """The update that the verdict before this record names, until it is rejected."""


class Verdicts:
    """Told by `governance.fsck_rounds`."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._runs: dict[str, _Judged] = {}
        self._due: str = ""
        """The run whose last record is a harmful verdict."""

    def follows(self, record: Record) -> None:
        """The rejection of the update that it names stands right behind a harmful verdict."""
        due, self._due = self._due, ""
        if due and record.kind is not Kind.REJECTION:
            self._of(due).named = None

    def open(self, index: int, run: Run, opened: Round, assigned: Collection[str]) -> None:
        """A site in quarantine is assigned only where the others are too few."""
        judged, rules = self._of(run.name), opened.charter.rollback
        apart = {
            s
            for s, last in judged.harmful.items()
            if rules.on and opened.number - last <= rules.quarantine_rounds
        }
        early, others = sorted(apart & set(assigned)), set(assigned) - apart
        right = not early or len(others) < opened.quorum
        what = f"assigns {', '.join(early)} in round {opened.number}, in the middle of a quarantine"
        self._findings.require(right, Rule.VERDICT, index, what)

    def measure(self, index: int, opened: Round, said: ProbeNote) -> None:
        need, probe = self._findings.require, opened.charter.probe.text
        need(
            said.probe == probe,
            Rule.VERDICT,
            index,
            f"is a measurement by site {said.site} on another probe than the charter's",
        )
        losses = self._of(said.run).losses.setdefault((said.probe, said.state), {})
        what = f"is a second measurement of one state by site {said.site}"
        need(said.site not in losses, Rule.VERDICT, index, what)
        losses.setdefault(said.site, said.loss)

    def judge(self, index: int, run: Run, facts: Mapping[str, Any]) -> None:
        need, opened, judged = self._findings.require, run.round, self._of(run.name)
        if opened is None or (opened.number, opened.base) != (facts["round"], facts["base"]):
            self._findings.add(Rule.VERDICT, index, f"judges round {facts['round']}, which is not open")
            return
        charter, change_ppm = opened.charter, facts["change_ppm"]
        found = self._change(judged, charter, opened.base, facts["state"])
        what = f"states a change of {change_ppm} ppm in round {opened.number}, the measurements before it say {found}"
        need(change_ppm == found, Rule.VERDICT, index, what)
        most = limit(judged.changes, charter.rollback) if charter.rollback.on and found is not None else None
        what = f"states a limit of {facts['limit_ppm']} ppm in round {opened.number}, the charter's rule gives {most}"
        need(facts["limit_ppm"] == most, Rule.VERDICT, index, what)
        harm = most is not None and found is not None and found > most
        words = ("harmful", "rolled-back") if harm else (_unharmed(found, charter),)
        what = f"calls round {opened.number} {facts['verdict']!r}, it is {' or '.join(words)}"
        need(facts["verdict"] in words, Rule.VERDICT, index, what)
        if harm and found is not None:
            self._name(index, run, judged, charter, facts, found)
        judged.last = dict(facts)
        if facts["verdict"] in ("good", "measured") and change_ppm is not None:
            judged.changes.append(change_ppm)

    def reject(self, index: int, run: Run, facts: Mapping[str, Any]) -> None:
        judged = self._of(run.name)
        named, judged.named = judged.named, None
        site, number = facts["site"], facts["round"]
        what = f"leaves out the update of site {site} for harm that the verdict before it does not lay on it"
        self._findings.require(named == (site, number), Rule.VERDICT, index, what)
        judged.harmful[site] = max(number, judged.harmful.get(site, number))

    def close(self, index: int, run: Run, opened: Round, facts: Mapping[str, Any]) -> None:
        """The round's state is the one that was judged, or the one it began from."""
        judged = self._of(run.name)
        last, judged.last = judged.last, None
        judged.losses = {key: by for key, by in judged.losses.items() if key[1] == facts["state"]}
        if not opened.charter.probe.text:
            return
        need = self._findings.require
        if last is None:
            self._findings.add(Rule.VERDICT, index, f"closes round {opened.number} without a verdict")
            return
        wanted = opened.base if last["verdict"] == "rolled-back" else last["state"]
        what = (
            f"closes round {opened.number} with another state than its verdict, {last['verdict']!r}, leaves"
        )
        need(last["verdict"] != "harmful" and facts["state"] == wanted, Rule.VERDICT, index, what)

    def _name(
        self, index: int, run: Run, judged: _Judged, charter: Charter, facts: Mapping[str, Any], rise: int
    ) -> None:
        """Who is left out follows from the measurements of the states without each; nobody where none helps."""
        worth = {}
        for key, state in facts.get("without", {}).items():
            site, _, number = key.rpartition("/")
            if (found := self._change(judged, charter, facts["base"], state)) is not None:
                worth[site, int(number)] = found
        judged.named = culprit(rise, worth)
        self._due = run.name
        said = facts["verdict"] == "harmful"
        what = f"calls round {facts['round']} {facts['verdict']!r}, leaving out {judged.named or 'nobody'} would take the harm away"
        self._findings.require(said == (judged.named is not None), Rule.VERDICT, index, what)

    def _change(self, judged: _Judged, charter: Charter, base: str, state: str) -> int | None:
        probe = charter.probe.text
        return change(judged.losses.get((probe, base), {}), judged.losses.get((probe, state), {}))

    def _of(self, run: str) -> _Judged:
        return self._runs.setdefault(run, _Judged())


def _unharmed(change_ppm: int | None, charter: Charter) -> str:
    if change_ppm is None:
        return "unmeasured"
    return "good" if charter.rollback.on else "measured"
