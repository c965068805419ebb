"""The auditor's reading of the work: runs, rounds in order, updates and usage by those who were asked.

Knows what the journal says was done, so that the money can be compared with it (`governance.fsck_money`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from commons import charter_file, notes
from commons.charter import Charter
from commons.errors import Code
from commons.records import Kind, Record
from commons.signed import text_digest
from commons.states import StateStore
from commons.work import EvaluationNote, ProbeNote, UpdateNote, UsageNote
from governance.fsck_devices import Devices
from governance.fsck_epsilon import Epsilon
from governance.fsck_experts import Remade, check_opened, take_remade
from governance.fsck_findings import Findings, Rule
from governance.fsck_late import LateUpdates, Round, Run
from governance.fsck_releases import check_release
from governance.fsck_verdicts import Verdicts
from governance.fsck_votes import Votes

Key = tuple[str, int, str]
"""(run, round, site)"""
CLOCK_SLACK_MS = 300_000
"""How far a site's clock may be off before its usage record is refused."""


@dataclass(frozen=True)
class Work:
    """What one site did in one round, as it signed it."""

    usage: UsageNote
    digest: str
    """Of the usage note's text: what a charge must name."""
    index: int
    accepted: bool
    charter: Charter
    """Of the round."""


class Rounds:
    """Reads RUN, ROUND, UPDATE, USAGE, REJECTION, PROBE, VERDICT, WORTH, CLOSE, REMADE, EVALUATION, FINISH, RELEASE."""

    def __init__(
        self, findings: Findings, votes: Votes, held: Mapping[str, int], states: StateStore | None = None
    ) -> None:
        """`held`: hold id -> amount of every hold that is open now, as the money has it. `states`: for `Remade`."""
        self.remade = Remade(findings, votes, states)
        self._findings, self._votes, self._held = findings, votes, held
        self._runs: dict[str, Run] = {}
        self._last: Run | None = None
        self._update: tuple[int, Key, UpdateNote] | None = None
        self._usage: tuple[int, Key] | None = None
        self._devices, self._late = Devices(findings), LateUpdates(findings, votes)
        self._epsilon, self._verdicts = Epsilon(findings), Verdicts(findings)
        self.work: dict[Key, Work] = {}
        """What is to be paid and was not yet paid."""

    def take(self, index: int, record: Record) -> None:
        self._follows(record.kind)
        self._verdicts.follows(record)
        match record.kind:
            case Kind.RUN:
                self._run(index, record.facts)
            case Kind.ROUND:
                self._open(index, record.at_ms, record.facts)
            case Kind.UPDATE:
                self._admit(index, record)
            case Kind.USAGE:
                self._measure(index, record)
            case Kind.REJECTION:
                self._reject(index, record.facts)
            case Kind.PROBE:
                self._probe(index, record)
            case Kind.VERDICT | Kind.WORTH:
                run = self._active(index, record.facts["run"])
                self._verdicts.take(index, record.kind, run, record.facts)
            case Kind.CLOSE:
                self._close(index, record.at_ms, record.facts)
            case Kind.REMADE:
                run = self._active(index, record.facts["run"])
                take_remade(self._findings, index, run, record.facts, self._votes.charter)
                self.remade.take(index, record.facts)
            case Kind.EVALUATION:
                self._evaluate(index, record)
            case Kind.FINISH:
                self._finish(index, record.facts)
            case Kind.RELEASE:
                check_release(self._findings, self._votes, self._runs, index, record.body)
            case Kind.EXECUTION:
                running = self._last is not None and self._last.round is not None and not self._last.finished
                need = self._findings.require
                need(not running, Rule.ROUND, index, "carries a vote out in the middle of a round")

    def finish(self, size: int) -> None:
        """After the last record."""
        self._follows(None)

    def charter(self, run: str, number: int, site: str) -> Charter | None:
        """Of that round, if it is open or the site is still at work on it."""
        found = self._runs.get(run)
        part = found.part(number, site) if found else None
        return part.charter if part else None

    def _follows(self, kind: Kind | None) -> None:
        """An update stands before its usage, the usage of a rejected one before the rejection."""
        if self._update is not None and kind is not Kind.USAGE:
            self._findings.add(Rule.USAGE, self._update[0], "admits an update without what it took")
            self._update = None
        if self._usage is not None and kind is not Kind.REJECTION:
            self._findings.add(Rule.USAGE, self._usage[0], "is a usage record of no update and no rejection")
            self._usage = None

    def _run(self, index: int, facts: Mapping[str, Any]) -> None:
        need, charter = self._findings.require, self._votes.charter
        need(facts["run"] not in self._runs, Rule.RUN, index, f"starts run {facts['run']} a second time")
        alone = self._last is None or self._last.finished
        need(alone, Rule.RUN, index, f"starts run {facts['run']} while another goes on")
        ours = (facts["charter_version"], facts["rounds"]) == (charter.version, charter.learning.rounds)
        need(ours, Rule.RUN, index, "starts a run by another charter than the one in force")
        self._last = self._runs[facts["run"]] = Run(facts["run"], facts["rounds"], facts["state"], charter)

    def _active(self, index: int, name: str) -> Run:
        """Raises ValueError for a run that was never started."""
        run = self._runs.get(name)
        if run is None:
            raise ValueError(f"there is no run {name!r}")
        self._findings.require(not run.finished, Rule.RUN, index, f"belongs to run {name}, which is over")
        return run

    def _open(self, index: int, at_ms: int, facts: Mapping[str, Any]) -> None:
        run = self._active(index, facts["run"])
        need, before, number = self._findings.require, run.round, facts["round"]
        wanted = (before.number, before.attempt + 1) if before else (run.closed + 1, 1)
        what = f"opens round {number} (attempt {facts['attempt']}), due was round {wanted[0]} (attempt {wanted[1]})"
        need((number, facts["attempt"]) == wanted, Rule.ROUND, index, what)
        need(run.closed < run.rounds, Rule.ROUND, index, f"opens round {number} of {run.rounds}")
        charter = before.charter if before else self._votes.charter
        ours = (facts["charter_version"], facts["charter"]) == (charter.version, charter_file.digest(charter))
        need(
            ours,
            Rule.ROUND,
            index,
            f"opens round {number} under another charter than version {charter.version}",
        )
        check_opened(self._findings, index, run, number, charter)
        need(
            facts["base"] == run.state,
            Rule.ROUND,
            index,
            f"does not start round {number} from the last state",
        )
        need(
            facts["quorum"] == charter.rounds.quorum, Rule.ROUND, index, "has another quorum than the charter"
        )
        longest = at_ms + 1000 * charter.rounds.lease_s
        need(facts["lease_until_ms"] <= longest, Rule.ROUND, index, "gives longer leases than the charter")
        strangers = [s for s in facts["holds"] if charter.site(s) is None]
        need(
            not strangers,
            Rule.ROUND,
            index,
            f"assigns {', '.join(strangers)}, which the charter does not name",
        )
        opened_ms = before.opened_ms if before else at_ms
        overlaps = charter.learning.overlap_steps > 0 and run.opened_ms > 0
        opened = Round(
            number=number,
            attempt=facts["attempt"],
            charter=charter,
            base=facts["base"],
            quorum=facts["quorum"],
            opened_ms=opened_ms,
            earliest_ms=before.earliest_ms if before else run.opened_ms if overlaps else at_ms,
            lease_until_ms=facts["lease_until_ms"],
            holds=dict(facts["holds"]),
            attempts=dict.fromkeys(facts["holds"], facts["attempt"]),
        )
        if before:
            opened.admitted = before.admitted
            opened.holds |= {s: before.holds[s] for s in before.admitted}
            opened.attempts |= {s: before.attempts[s] for s in before.admitted}
            for site in before.rejected:  # what it took was paid with the attempt it was for
                self.work.pop((run.name, number, site), None)
        self._late.open(index, run, opened, facts["holds"])
        self._epsilon.open(index, charter, facts["holds"])
        self._verdicts.open(index, run, opened, facts["holds"])
        run.round, run.opened_ms = opened, opened_ms
        self._check_holds(index, run, opened)

    def _check_holds(self, index: int, run: Run, opened: Round) -> None:
        """Exactly the round's own holds are open: each site's, and of an earlier round none but those that may last."""
        need = self._findings.require
        own = {opened.hold_id(run.name, site): amount for site, amount in opened.holds.items()}
        for name, amount in own.items():
            what = f"assigns work for {amount} micro, but {name} holds {self._held.get(name, 'nothing')}"
            need(self._held.get(name) == amount, Rule.HOLD, index, what)
        right = own.keys() | run.lasting
        odd = [n for n in self._held if n.split("/")[1] == run.name and n.partition("/top")[0] not in right]
        need(
            not odd,
            Rule.ENDING,
            index,
            f"opens round {opened.number} while {', '.join(odd[:3])} is still held",
        )

    def _round(self, index: int, key: Key, rule: Rule, what: str) -> Round | None:
        """The round that `key` is about, open or waiting for the site, if its site has a part in it."""
        opened = self._active(index, key[0]).part(key[1], key[2])
        if opened is None:
            self._findings.add(rule, index, f"{what} in round {key[1]} of run {key[0]}, which is not open")
            return None
        if key[2] not in opened.holds:
            self._findings.add(rule, index, f"{what} by site {key[2]}, which has no part in round {key[1]}")
            return None
        return opened

    def _admit(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        update = UpdateNote.from_note(note)
        key = (update.run, update.round, update.site)
        self._update = (index, key, update)
        if not self._votes.signed(index, note, self._votes.key(update.site), update.site):
            return
        opened = self._round(index, key, Rule.UPDATE, "admits an update")
        if opened is None:
            return
        need, name = self._findings.require, f"an update of site {update.site}"
        again = update.site in opened.admitted
        need(
            not again,
            Rule.UPDATE,
            index,
            f"admits a second update of site {update.site} in round {update.round}",
        )
        need(
            update.site not in opened.rejected, Rule.UPDATE, index, f"admits {name} that was rejected before"
        )
        need(update.base == opened.base, Rule.UPDATE, index, f"admits {name} that starts from another state")
        ours = update.consortium == opened.charter.consortium.name
        need(ours, Rule.UPDATE, index, f"admits {name} of another consortium")
        need(record.at_ms <= opened.lease_until_ms, Rule.UPDATE, index, f"admits {name} after its lease")
        self._epsilon.sent(opened.charter, *key, update.digest)
        opened.admitted.add(update.site)
        run = self._runs[update.run]
        if opened is not run.round:
            self._late.admit(index, run, opened, update.site)

    def _measure(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        usage = UsageNote.from_note(note)
        key = (usage.run, usage.round, usage.site)
        update, self._update = self._update, None
        if update is not None and update[1] != key:
            self._findings.add(Rule.USAGE, index, "measures other work than the update it stands behind")
            update = None
        if update is None:
            self._usage = (index, key)
        if not self._votes.signed(index, note, self._votes.key(usage.site), usage.site):
            return
        opened = self._round(index, key, Rule.USAGE, "takes usage")
        if opened is None:
            return
        need, name = self._findings.require, f"usage of site {usage.site}"
        if update is not None:
            same = (usage.update, usage.steps, usage.tokens) == (
                update[2].payload,
                update[2].steps,
                update[2].tokens,
            )
            need(same, Rule.USAGE, index, f"is {name} for another update than the one it stands behind")
        lease = f"lease/{usage.run}/{usage.round}/{usage.site}/{opened.attempts[usage.site]}"
        need(
            usage.lease == lease,
            Rule.USAGE,
            index,
            f"is {name} under {usage.lease[:60]}, its lease was {lease}",
        )
        earliest, latest = opened.earliest_ms - CLOCK_SLACK_MS, opened.lease_until_ms + CLOCK_SLACK_MS
        inside = earliest <= usage.started_ms <= usage.ended_ms <= latest
        need(inside, Rule.USAGE, index, f"is {name} for time outside its lease")
        site = opened.charter.site(usage.site)
        own = site is not None and site.device == usage.device
        need(
            own,
            Rule.USAGE,
            index,
            f"is {name} on {usage.device[:40]}, which is not its device in the charter",
        )
        self._devices.use(index, usage)
        self.work[key] = Work(usage, text_digest(note), index, update is not None, opened.charter)

    def _reject(self, index: int, facts: Mapping[str, Any]) -> None:
        key = (facts["run"], facts["round"], facts["site"])
        usage, self._usage = self._usage, None
        if usage is not None and usage[1] != key:
            self._findings.add(Rule.USAGE, usage[0], "is a usage record of no update and no rejection")
        run = self._active(index, key[0])
        opened = run.part(key[1], key[2])
        if opened is None:
            self._findings.add(
                Rule.ROUND, index, f"rejects in round {key[1]} of run {key[0]}, which is not open"
            )
        elif key[2] in opened.holds:
            if facts["update"]:
                self._epsilon.sent(opened.charter, *key, facts["update"])
            if facts["code"] == Code.UPDATE_HARMFUL:
                self._verdicts.reject(index, run, facts)
            if facts["code"] in (Code.UPDATE_NORM, Code.UPDATE_HARMFUL) and key[2] in opened.admitted:
                # It was admitted by itself; what is wrong with it shows beside the others.
                opened.admitted.remove(key[2])
                if key in self.work:
                    self.work[key] = replace(self.work[key], accepted=False)
            late = key[2] in opened.admitted | opened.rejected
            what = f"rejects site {key[2]}, whose update of round {key[1]} is admitted or rejected"
            self._findings.require(not late, Rule.UPDATE, index, what)
            opened.rejected.add(key[2])
            run.leave(opened, key[2])
        else:
            again = key[2] in opened.left_out
            what = f"leaves site {key[2]} out of round {key[1]} a second time"
            self._findings.require(not again, Rule.ROUND, index, what)
            opened.left_out.add(key[2])

    def _close(self, index: int, at_ms: int, facts: Mapping[str, Any]) -> None:
        run = self._active(index, facts["run"])
        need, opened = self._findings.require, run.round
        if opened is None or opened.number != facts["round"]:
            self._findings.add(Rule.ROUND, index, f"closes round {facts['round']}, which is not open")
            return
        number = opened.number
        all_in = facts["contributors"] == sorted(opened.admitted)
        what = f"combines {', '.join(facts['contributors']) or 'nothing'} in round {number}, admitted were"
        need(all_in, Rule.ROUND, index, f"{what} {', '.join(sorted(opened.admitted)) or 'none'}")
        masked = opened.charter.privacy.mode == "secagg"
        what = f"says of shared slices {facts.get('shared', '')!r}, which does not go with its charter's privacy mode"
        need(facts.get("shared", "") in (("masked", "unmoved") if masked else ("",)), Rule.ROUND, index, what)
        # Masked updates are of one attempt: where a crowd never came the round ends with those that did.
        lost = masked and facts.get("shared") == "unmoved" and facts["contributors"]
        enough = lost or len(facts["contributors"]) >= opened.quorum
        need(enough, Rule.ROUND, index, f"closes round {number} below its quorum of {opened.quorum}")
        waiting = sorted(set(opened.holds) - opened.admitted - opened.rejected)
        need(
            facts["missing"] == waiting,
            Rule.ROUND,
            index,
            f"names others as missing from round {number} than were",
        )
        need(facts["base"] == opened.base, Rule.ROUND, index, f"closes round {number} on another base")
        self._verdicts.close(index, run, opened, facts)
        run.round, run.closed, run.state, run.momentum = None, number, facts["state"], facts["momentum"]
        run.licences[facts["state"], number] = opened.charter.release.licence
        self._late.close(index, at_ms, run, opened, facts)

    def _probe(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        said = ProbeNote.from_note(note)
        if not self._votes.signed(index, note, self._votes.key(said.site), said.site):
            return
        opened = self._round(index, (said.run, said.round, said.site), Rule.VERDICT, "takes a measurement")
        if opened is not None:
            self._verdicts.measure(index, opened, said)

    def _evaluate(self, index: int, record: Record) -> None:
        note = notes.parse(record.body)
        said = EvaluationNote.from_note(note)
        if not self._votes.signed(index, note, self._votes.key(said.site), said.site):
            return
        run, need = self._active(index, said.run), self._findings.require
        need(
            run.closed == run.rounds,
            Rule.ROUND,
            index,
            f"evaluates run {said.run} before its last round is closed",
        )
        need(said.state == run.state, Rule.ROUND, index, "evaluates another state than the run's last one")
        need(said.site not in run.evaluated, Rule.ROUND, index, f"is a second evaluation by site {said.site}")
        run.evaluated.add(said.site)

    def _finish(self, index: int, facts: Mapping[str, Any]) -> None:
        run, need = self._active(index, facts["run"]), self._findings.require
        whole = facts["phase"] != "finished" or run.closed == run.rounds
        need(
            whole,
            Rule.ROUND,
            index,
            f"calls run {run.name} finished after {run.closed} of {run.rounds} rounds",
        )
        same = (facts["round"], facts["state"]) == (run.closed, run.state)
        need(same, Rule.ROUND, index, f"ends run {run.name} with another round or state than its last")
        left = [name for name in self._held if name.split("/")[1] == run.name]
        need(not left, Rule.ENDING, index, f"ends run {run.name} while {', '.join(left[:3])} is still held")
        run.finished = True
