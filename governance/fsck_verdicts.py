"""The auditor's reading of measurements and verdicts: each follows from the sites' notes before it, and is kept to."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from commons.charter import Charter
from commons.records import Kind, Record
from commons.verdict import (
    Said,
    change,
    change_of_part,
    changes_of,
    culprit,
    dragging,
    dragging_still,
    limit,
    remembering,
)
from commons.work import ProbeNote
from governance.fsck_findings import Findings, Rule
from governance.fsck_late import Round, Run


@dataclass
class _Judged:
    """Of one run."""

    losses: dict[tuple[str, str], dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """(probe, state) -> site -> loss."""
    dragging: set[str] = field(default_factory=set)
    """Sites whose update held the others up the last time it was appraised."""
    appraised: Mapping[str, tuple[Said, ...]] = field(default_factory=dict)
    """Site -> what its appraisals said of it."""
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
        losses.setdefault(said.site, said.losses)

    def take(self, index: int, kind: Kind, run: Run, facts: Mapping[str, Any]) -> None:
        (self._judge if kind is Kind.VERDICT else self._appraise)(index, run, facts)

    def _judge(self, index: int, run: Run, facts: Mapping[str, Any]) -> None:
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
        named = self._named(run, judged, charter, facts, found if harm else None)
        judged.named, self._due = named, run.name
        words = (_unharmed(found, charter),) if named is None and not harm else ("harmful",)
        words = ("rolled-back",) if harm and named is None else words
        what = f"calls round {opened.number} {facts['verdict']!r}, it is {' or '.join(words)}"
        need(facts["verdict"] in words, Rule.VERDICT, index, what)
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

    def _appraise(self, index: int, run: Run, facts: Mapping[str, Any]) -> None:
        """What updates and experts are worth follows from the measurements, of the state that was judged."""
        opened, judged = run.round, self._of(run.name)
        need, last = self._findings.require, judged.last
        if opened is None or opened.number != facts["round"]:
            self._findings.add(Rule.VERDICT, index, f"appraises round {facts['round']}, which is not open")
            return
        right = last is not None and last["state"] == facts["state"]
        what = f"appraises another state of round {opened.number} than was judged"
        need(right, Rule.VERDICT, index, what)
        due = opened.charter.contribution.every and opened.number % opened.charter.contribution.every == 0
        need(
            bool(due),
            Rule.VERDICT,
            index,
            f"appraises round {opened.number}, which the charter does not ask for",
        )
        owners = {e: s.name for s in opened.charter.sites for e in s.experts}
        for name, (left, *said) in (*facts["updates"].items(), *facts["experts"].items()):
            site = owners.get(name, name.rpartition("/")[0])
            found = self._changes(judged, opened.charter, facts["state"], left, site)
            what = f"states that {name} is worth {said} ppm in round {opened.number}, the measurements say {found}"
            need(found is not None and said == [*found], Rule.VERDICT, index, what)
        self._bears(index, run, opened, judged, facts)
        strangers = [n for n in facts["experts"] if n not in opened.charter.experts]
        strangers += [n for n in facts["updates"] if not self._counts(run, opened, n)]
        what = f"appraises {', '.join(strangers[:3])}, which has no part in round {opened.number}"
        need(not strangers, Rule.VERDICT, index, what)

    def _bears(self, index: int, run: Run, opened: Round, judged: _Judged, facts: Mapping[str, Any]) -> None:
        """Which updates drag, and that none drags for the second time, where the quorum stands without it."""
        rules, before = opened.charter.rollback, judged.appraised
        worth, own = changes_of(facts["updates"])
        drags = dragging(worth, own, rules, before) if rules.on else []
        said = [f"{site}/{number}" for site, number in drags]
        what = f"names as dragging in round {opened.number} {facts.get('dragging', [])}, by the measurements {said} do"
        self._findings.require(facts.get("dragging", []) == said, Rule.VERDICT, index, what)
        still = dragging_still(worth, own, rules, before, judged.dragging) if rules.on else []
        again = [site for site, _ in still if self._leavable(run, site)]
        what = f"closes round {opened.number} with the update of {', '.join(again)}, which drags for the second time"
        self._findings.require(not again, Rule.VERDICT, index, what)
        judged.dragging = judged.dragging - {site for site, _ in worth} | {site for site, _ in drags}
        judged.appraised = remembering(before, worth, own)

    def _counts(self, run: Run, opened: Round, name: str) -> bool:
        site, _, number = name.rpartition("/")
        late = run.late.get(site)
        return (site in opened.admitted and number == str(opened.number)) or (
            late is not None and number == str(late.number)
        )

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

    def _named(
        self, run: Run, judged: _Judged, charter: Charter, facts: Mapping[str, Any], rise: int | None
    ) -> tuple[str, int] | None:
        """Who is left out, by the measurements of the states without each. `rise`: where there is harm."""
        rules, worth, best = charter.rollback, dict[tuple[str, int], int](), dict[tuple[str, int], int]()
        before = facts["state"] if rise is None else facts["base"]
        for key, state in facts.get("without", {}).items():
            site, _, number = key.rpartition("/")
            found = self._change(judged, charter, before, state)
            if found is not None:
                worth[site, int(number)] = found
                most = self._changes(judged, charter, facts["state"], state, site)
                best[site, int(number)] = most[1] if most else 0
        if not rules.on:
            return None
        if rise is not None:
            return culprit(rise, worth, best)
        again = dragging_still(worth, best, rules, judged.appraised, judged.dragging)
        again = [key for key in again if self._leavable(run, key[0])]
        return min(again, key=lambda key: (worth[key], key), default=None)

    def _leavable(self, run: Run, site: str) -> bool:
        """Whether the round's quorum stands without the site's update."""
        opened = run.round
        return site in run.late or (opened is not None and len(opened.admitted) > opened.quorum)

    def _change(self, judged: _Judged, charter: Charter, base: str, state: str) -> int | None:
        probe = charter.probe.text
        return change(judged.losses.get((probe, base), {}), judged.losses.get((probe, state), {}))

    def _changes(
        self, judged: _Judged, charter: Charter, before: str, after: str, site: str
    ) -> tuple[int, int] | None:
        """Over the whole probe, and of the part that is the site's kind of text."""
        pair = [judged.losses.get((charter.probe.text, state), {}) for state in (before, after)]
        whole, best = change(*pair), change_of_part(pair[0], pair[1], charter.part_of(site))
        return None if whole is None or best is None else (whole, best)

    def _of(self, run: str) -> _Judged:
        return self._runs.setdefault(run, _Judged())


def _unharmed(change_ppm: int | None, charter: Charter) -> str:
    if change_ppm is None:
        return "unmeasured"
    return "good" if charter.rollback.on else "measured"
