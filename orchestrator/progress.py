"""Where every run stands: the view that folds the journal's run records.

Reads the facts RUN, ROUND, REJECTION, VERDICT, WORTH, CLOSE, REMADE and FINISH (`orchestrator.facts` writes them) and the sites' notes. Pure:
no clock, no disk. Rebuilt from the journal, it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from commons.errors import Code, Refusal
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.notes import digest, parse
from commons.records import Kind, Record
from commons.verdict import Said, changes_of, remembering
from commons.work import EvaluationNote, ProbeNote, UpdateNote, UsageNote
from governance.noised import Noised
from orchestrator.measured import Measured
from orchestrator.usages import Usages


@dataclass(frozen=True)
class Admitted:
    """An update that is durable at the coordinator and will be combined."""

    index: int
    update: UpdateNote
    usage: UsageNote | None = None
    at_ms: int = 0


@dataclass(frozen=True)
class Rejected:
    code: str
    message: str
    at_ms: int = 0


@dataclass
class RoundState:
    number: RoundNumber
    attempt: int
    """From 1; one more each time all leases ended without a quorum."""
    base: Digest
    charter_version: int
    charter: Digest
    expert_map: Digest
    quorum: int
    opened_ms: int
    lease_until_ms: int
    holds: dict[SiteId, Micro]
    """Assigned sites and what is held for each; sites admitted in an earlier attempt stay."""
    attempts: dict[SiteId, int] = field(default_factory=dict)
    """The attempt in which each site was assigned."""
    assigned_ms: dict[SiteId, int] = field(default_factory=dict)
    before_ms: int = 0
    """When the round before was opened, or this one where it is the first."""
    left_out: dict[SiteId, Rejected] = field(default_factory=dict)
    rejected: dict[SiteId, Rejected] = field(default_factory=dict)
    rejected_usages: dict[SiteId, UsageNote] = field(default_factory=dict)
    """What rejected updates of this attempt took, where the charter charges for them."""
    admitted: dict[SiteId, Admitted] = field(default_factory=dict)
    late: dict[SiteId, Admitted] = field(default_factory=dict)
    """Updates of this round that were admitted after it had closed, into a later one."""
    takes: dict[SiteId, RoundNumber] = field(default_factory=dict)
    """Once it is closed: late updates that are in its state -> the round they are of."""
    quorum_ms: int | None = None
    """When the quorum-th update was admitted; late ones are none of the quorum."""
    last_ms: int = 0
    """When something last happened in it."""
    state: Digest | None = None
    shared: str = ""
    """Under secure aggregation: `masked`, or `unmoved` where the sum was lost."""
    missing: tuple[SiteId, ...] = ()
    carried: tuple[SiteId, ...] = ()
    """Those of the missing that stayed at work."""
    bytes_down: int = 0
    closed_ms: int | None = None
    verdict: str = ""
    """Its last one, where its state was measured (`commons.verdict`)."""
    change_ppm: int | None = None
    probe_loss: float | None = None
    """Of its state, by the median of the sites."""
    worth_ppm: dict[str, int] = field(default_factory=dict)
    """``site/round`` of an update -> what the probe loss rises by without it, in rounds that were appraised."""
    experts_ppm: dict[str, int] = field(default_factory=dict)
    """The same of experts."""

    @property
    def waiting(self) -> list[SiteId]:
        """Assigned, neither admitted nor rejected, in order of name."""
        return sorted(s for s in self.holds if s not in self.admitted and s not in self.rejected)

    def update(self, site: SiteId) -> Admitted | None:
        """The site's admitted update of this round, in time or late."""
        return self.admitted.get(site) or self.late.get(site)

    def usage(self, site: SiteId) -> UsageNote | None:
        """What the site's part took, admitted or rejected."""
        admitted = self.update(site)
        return admitted.usage if admitted else self.rejected_usages.get(site)

    def hold_id(self, run: RunId, site: SiteId) -> str:
        return hold_id(run, self.number, site, self.attempts[site])

    def lease(self, run: RunId, site: SiteId) -> str:
        return f"lease/{run}/{self.number}/{site}/{self.attempts[site]}"


@dataclass
class RunState:
    run: RunId
    rounds: int
    state: Digest
    """The last combined state; the seed model before the first round is closed."""
    momentum: Digest | None
    opened_ms: int
    charter_version: int
    map_version: int = 1
    """Charter version whose experts the state has."""
    remade: int = 1
    """The first round of a state with these experts."""
    history: list[RoundState] = field(default_factory=list)
    """Every round, the open one last."""
    carried: dict[SiteId, RoundNumber] = field(default_factory=dict)
    """Sites still at work on a round that has closed -> that round. None of them has a part in the open one."""
    late: dict[SiteId, RoundNumber] = field(default_factory=dict)
    """Updates that were admitted after their round had closed -> that round, until the next close takes them."""
    evaluations: dict[SiteId, tuple[int, EvaluationNote]] = field(default_factory=dict)
    """Of the final state: journal index and note."""
    measured: Measured = field(default_factory=Measured)
    """Of states on the probe."""
    dragging: frozenset[SiteId] = frozenset()
    """Sites whose update held the others up the last time it was appraised."""
    appraised: Mapping[str, tuple[Said, ...]] = field(default_factory=dict)
    """Site -> what its last appraisals said of its updates, oldest first."""
    harmful: dict[SiteId, RoundNumber] = field(default_factory=dict)
    """Sites whose update was left out for the harm it did -> the last such round."""
    finished: str | None = None
    """`finished` or `stopped`; None while it goes on."""
    reason: str = ""

    @property
    def open_round(self) -> RoundState | None:
        return self.history[-1] if self.history and self.history[-1].closed_ms is None else None

    @property
    def closed(self) -> int:
        """Number of the last closed round; 0 before the first."""
        return len(self.history) - (self.open_round is not None)

    @property
    def next(self) -> RoundNumber:
        """The round that is open, or opens next: what is admitted now counts in it."""
        return RoundNumber(self.closed + 1)

    def last_usage(self, site: SiteId) -> UsageNote | None:
        """What the site's part took the last time it had one in this run."""
        return next((u for r in reversed(self.history) if (u := r.usage(site))), None)

    @property
    def phase(self) -> str:
        """training | evaluating | finished | stopped"""
        return self.finished or ("training" if self.closed < self.rounds else "evaluating")

    @property
    def last_ms(self) -> int:
        """When its last round closed, or it opened."""
        return next((r.closed_ms for r in reversed(self.history) if r.closed_ms), self.opened_ms)


class Runs:
    """All runs of the journal, oldest first. At most one is not finished."""

    def __init__(self) -> None:
        self.by_id: dict[RunId, RunState] = {}
        self.usages, self.noised = Usages(), Noised()
        self.releases: dict[Digest, int] = {}
        """Digest of a release note -> its journal index."""

    @property
    def active(self) -> RunState | None:
        last = self.latest
        return last if last is not None and last.finished is None else None

    @property
    def latest(self) -> RunState | None:
        return next(reversed(self.by_id.values()), None)

    def find(self, run: str) -> RunState | Refusal:
        """The run of that name; the latest one for an empty name."""
        if not run:
            return self.latest or Refusal(Code.NO_RUN, "no run has been started; the operator starts one")
        found = self.by_id.get(RunId(run))
        return found or Refusal(Code.RUN_UNKNOWN, f"there is no run {run[:64]!r} here; see `hansa run watch`")

    def apply(self, index: int, record: Record) -> None:
        self.noised.apply(record)
        match record.kind:
            case Kind.RUN:
                self._open_run(record.at_ms, record.facts)
            case Kind.ROUND:
                self._open_round(record.at_ms, record.facts)
            case Kind.UPDATE:
                self._admit(index, record)
            case Kind.USAGE:
                self._take_usage(UsageNote.from_note(parse(record.body)))
            case Kind.REJECTION:
                self._reject(record.at_ms, record.facts)
            case Kind.PROBE:
                said = ProbeNote.from_note(parse(record.body))
                self.by_id[RunId(said.run)].measured.take(index, said)
            case Kind.VERDICT:
                self._judge(record.facts)
            case Kind.WORTH:
                self._appraise(record.facts)
            case Kind.CLOSE:
                self._close(record.at_ms, record.facts)
            case Kind.REMADE:
                self._remake(record.facts)
            case Kind.EVALUATION:
                note = EvaluationNote.from_note(parse(record.body))
                self.by_id[RunId(note.run)].evaluations[SiteId(note.site)] = (index, note)
            case Kind.RELEASE:
                self.releases[digest(record.body)] = index
            case Kind.FINISH:
                run = self.by_id[RunId(record.facts["run"])]
                run.finished, run.reason = record.facts["phase"], record.facts["reason"]
            case _:
                pass

    def _open_run(self, at_ms: int, facts: Mapping[str, Any]) -> None:
        run = RunId(facts["run"])
        self.by_id[run] = RunState(
            run=run,
            rounds=facts["rounds"],
            state=Digest(facts["state"]),
            momentum=None,
            opened_ms=at_ms,
            charter_version=facts["charter_version"],
            map_version=facts["charter_version"],
        )

    def _remake(self, facts: Mapping[str, Any]) -> None:
        run = self.by_id[RunId(facts["run"])]
        assert run.open_round is None and facts["base"] == run.state, "a state is re-made between two rounds"
        run.state, run.map_version = Digest(facts["state"]), facts["charter_version"]
        run.momentum = Digest(facts["momentum"]) if facts["momentum"] else None
        run.remade = facts["round"]

    def _open_round(self, at_ms: int, facts: Mapping[str, Any]) -> None:
        run = self.by_id[RunId(facts["run"])]
        attempt = facts["attempt"]
        holds = {SiteId(s): Micro(m) for s, m in facts["holds"].items()}
        opened = RoundState(
            number=RoundNumber(facts["round"]),
            attempt=attempt,
            base=Digest(facts["base"]),
            charter_version=facts["charter_version"],
            charter=Digest(facts["charter"]),
            expert_map=Digest(facts["expert_map"]),
            quorum=facts["quorum"],
            opened_ms=at_ms,
            lease_until_ms=facts["lease_until_ms"],
            holds=holds,
            attempts=dict.fromkeys(holds, attempt),
            assigned_ms=dict.fromkeys(holds, at_ms),
            before_ms=run.history[-1].opened_ms if run.history else at_ms,
            last_ms=at_ms,
        )
        before = run.open_round
        if before is not None:
            assert before.number == opened.number, (
                f"round {opened.number} opened while {before.number} is open"
            )
            opened.admitted = before.admitted
            for site in before.admitted:
                opened.holds[site], opened.attempts[site] = before.holds[site], before.attempts[site]
                opened.assigned_ms[site] = before.assigned_ms[site]
            opened.opened_ms, opened.quorum_ms = before.opened_ms, before.quorum_ms
            opened.before_ms = before.before_ms
            run.history.pop()
        else:
            began = (run.history[number - 1].opened_ms for number in run.carried.values())
            self.usages.forget_until(min((opened.before_ms, *began)))
        run.history.append(opened)
        run.charter_version = opened.charter_version

    def _admit(self, index: int, record: Record) -> None:
        update = UpdateNote.from_note(parse(record.body))
        found, site = self._round(update.run, update.round), SiteId(update.site)
        admitted = Admitted(index, update, at_ms=record.at_ms)
        if found.closed_ms is not None:
            run = self.by_id[RunId(update.run)]
            assert run.carried[site] == found.number, "nobody waits for it"
            found.late[site], run.late[site] = admitted, run.carried.pop(site)
            return
        found.admitted[site] = admitted
        found.last_ms = record.at_ms
        if len(found.admitted) == found.quorum:
            found.quorum_ms = record.at_ms

    def _take_usage(self, usage: UsageNote) -> None:
        """It follows the update it is for, or precedes that update's rejection."""
        found, site = self._round(usage.run, usage.round), SiteId(usage.site)
        admitted = found.update(site)
        if admitted is None:
            found.rejected_usages[site] = usage
        else:
            into = found.admitted if site in found.admitted else found.late
            into[site] = replace(admitted, usage=usage)
        self.usages.take(usage)

    def _reject(self, at_ms: int, facts: Mapping[str, Any]) -> None:
        run, found = self.by_id[RunId(facts["run"])], self._round(facts["run"], facts["round"])
        site = SiteId(facts["site"])
        for under_way in (run.carried, run.late):
            if under_way.get(site) == found.number:
                del under_way[site]
        if facts["code"] == Code.UPDATE_HARMFUL:
            run.harmful[site] = max(found.number, run.harmful.get(site, found.number))
        target = found.rejected if site in found.holds else found.left_out
        target[site] = Rejected(facts["code"], facts["message"], at_ms)
        admitted = found.admitted.pop(site, None) or found.late.pop(site, None)
        if admitted is not None:  # what is wrong with it showed beside the others
            if admitted.usage is not None:
                found.rejected_usages[site] = admitted.usage
            if len(found.admitted) < found.quorum:
                found.quorum_ms = None
        found.last_ms = at_ms

    def _judge(self, facts: Mapping[str, Any]) -> None:
        run, found = self.by_id[RunId(facts["run"])], self._round(facts["run"], facts["round"])
        found.verdict, found.change_ppm = facts["verdict"], facts["change_ppm"]
        found.probe_loss = run.measured.typical(Digest(facts["state"]))
        run.measured.judged(facts["verdict"], facts["change_ppm"])

    def _appraise(self, facts: Mapping[str, Any]) -> None:
        run, found = self.by_id[RunId(facts["run"])], self._round(facts["run"], facts["round"])
        found.worth_ppm = {name: ppm for name, (_, ppm, _) in facts["updates"].items()}
        found.experts_ppm = {name: ppm for name, (_, ppm, _) in facts["experts"].items()}
        looked, dragging = (
            {SiteId(name.rpartition("/")[0]) for name in names}
            for names in (facts["updates"], facts.get("dragging", ()))
        )
        run.dragging = run.dragging - looked | dragging
        run.appraised = remembering(run.appraised, *changes_of(facts["updates"]))

    def _close(self, at_ms: int, facts: Mapping[str, Any]) -> None:
        run = self.by_id[RunId(facts["run"])]
        closed = self._round(facts["run"], facts["round"])
        closed.state = run.state = Digest(facts["state"])
        run.measured.keep(run.state)
        run.momentum = Digest(facts["momentum"]) if facts["momentum"] else None
        closed.missing = tuple(SiteId(s) for s in facts["missing"])
        closed.takes = {SiteId(s): RoundNumber(n) for s, n in facts.get("late", {}).items()}
        for site in closed.takes:
            del run.late[site]
        closed.carried = tuple(SiteId(s) for s in facts.get("carried", ()))
        run.carried |= dict.fromkeys(closed.carried, closed.number)
        closed.shared = facts.get("shared", "")
        closed.bytes_down, closed.closed_ms = facts["bytes_down"], at_ms

    def _round(self, run: str, number: int) -> RoundState:
        return self.by_id[RunId(run)].history[number - 1]


def hold_id(run: RunId, number: int, site: SiteId, attempt: int) -> str:
    """Id of the hold for one site's round; a repeated attempt holds anew under its own id."""
    return f"hold/{run}/{number}/{site}" + (f"/{attempt}" if attempt > 1 else "")
