"""Before a round is closed: the sites measure its new state on the probe, and a harmful update is left out.

Shadow evaluation: what is judged is no site's base yet, so nothing has to be undone. Sites that have handed in are asked for
one state after the other (`Probing`), answer by signed notes, and what follows is decided by `commons.verdict` from
the notes in the journal alone. A coordinator that dies anywhere combines the same bytes again and asks for what is missing.
Under secure aggregation nobody can be left out of a sum, so the whole round is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.map import ExpertMap
from commons.names import Digest, RunId, SiteId
from commons.notes import NoteError, Verifier, open_note
from commons.records import Kind, Record
from commons.verdict import Word, change, change_of_part, culprit, dragging_still, limit
from commons.work import AssignmentNote, ProbeNote
from orchestrator.appraising import Appraisal, Key, due, silent, updates_of
from orchestrator.combine import Combined
from orchestrator.desk import Desk
from orchestrator.facts import rejection_fact, verdict_fact
from orchestrator.plan import probing
from orchestrator.progress import RoundState, RunState

log = logging.getLogger("hansa.coordinator")


@dataclass(frozen=True)
class Verdict:
    state: Digest
    word: Word
    change_ppm: int | None = None
    limit_ppm: int | None = None
    without: tuple[tuple[Key, Digest], ...] = field(default=())
    """Update -> the state without it, where that was looked at."""

    def fact(self, now_ms: int, run: RunId, found: RoundState) -> Record:
        return verdict_fact(
            now_ms,
            run=run,
            number=found.number,
            base=found.base,
            state=self.state,
            word=self.word,
            change_ppm=self.change_ppm,
            limit_ppm=self.limit_ppm,
            without={f"{site}/{number}": state for (site, number), state in self.without},
        )


@dataclass(frozen=True)
class Judged:
    """What the round is closed with."""

    combined: Combined
    verdict: Verdict | None = None
    """None under a charter without a probe."""
    appraisal: Appraisal | None = None
    """In rounds in which the charter asks for one."""

    def records(self, now_ms: int, run: RunState, found: RoundState, charter: Charter) -> list[Record]:
        """What is written down right before the round's CLOSE."""
        said = [self.verdict.fact(now_ms, RunId(run.run), found)] if self.verdict else []
        if self.appraisal:
            said.append(self.appraisal.fact(now_ms, run, found, charter, self.combined.state))
        return said


Without = Callable[[Key], Combined | None]
"""Combines the round without one of its updates; None when it is gone."""


def judge(desk: Desk, run: RunId, combined: Combined, without: Without) -> Judged | None:
    """See the new state measured and decide; None when another set of updates is to be combined, or the round is gone.

    Raises StoreError as combining does.
    """
    with desk.consortium.lock:
        found = desk.open_round(run)
        if found is None:
            return None
        charter = desk.consortium.members.charters[found[1].charter_version]
    if not charter.probe.text:
        return Judged(combined)
    try:
        return _judge(desk, run, charter, combined, without)
    finally:
        desk.probing.ask(run, ())


def _judge(desk: Desk, run: RunId, charter: Charter, combined: Combined, without: Without) -> Judged | None:
    if not _measured(desk, run, charter, combined, (combined.state,)):
        return None
    with desk.consortium.lock:
        found = desk.open_round(run)
        if found is None:
            return None
        first = weighed(found[0], found[1], charter, combined.state)
        may = leavable(found[0], found[1], charter)
        appraised = updates_of(found[0], found[1]) if due(charter, found[1].number) else []
        expert_map = desk.expert_map(found[1].charter_version)
    if first.word in ("good", "measured") and due(charter, found[1].number):
        appraisal = _appraisal(desk, charter, combined, appraised, expert_map, without)
        wanted = (combined.state, *appraisal.states) if appraisal else ()
        if appraisal is None or not _measured(desk, run, charter, combined, wanted):
            return None
        return _leave_out(desk, run, charter, Judged(combined, first, appraisal), dict(appraisal.updates))
    if first.word != "harmful":
        return Judged(combined, first)
    states = {}
    for key in may:
        left = without(key)
        if left is None:
            return None
        states[key] = left.state
    if states and not _measured(desk, run, charter, combined, (combined.state, *states.values())):
        return None
    return _leave_out(desk, run, charter, Judged(combined, first), states)


def _appraisal(
    desk: Desk,
    charter: Charter,
    combined: Combined,
    updates: list[Key],
    expert_map: ExpertMap,
    without: Without,
) -> Appraisal | None:
    """The states without each; None when the round is gone meanwhile."""
    left = [(key, without(key)) for key in updates]
    found = [(key, one.state) for key, one in left if one is not None]
    if len(found) < len(updates):
        return None
    experts = expert_map.experts if charter.learning.routing == "joint" else ()
    quiet = [(e, silent(desk.store, combined.state, expert_map, e)) for e in experts]
    return Appraisal(tuple(found), tuple(quiet))


def weighed(run: RunState, found: RoundState, charter: Charter, state: Digest) -> Verdict:
    """What the measurements so far say of `state` against the round's base."""
    probe, rules = charter.probe.text, charter.rollback
    rise = change(run.measured.losses(found.base, probe), run.measured.losses(state, probe))
    if rise is None:
        return Verdict(state, "unmeasured")
    if not rules.on:
        return Verdict(state, "measured", rise)
    most = limit(run.measured.changes, rules)
    return Verdict(state, "harmful" if rise > most else "good", rise, most)


def leavable(run: RunState, found: RoundState, charter: Charter) -> list[Key]:
    """Updates that the round could be combined without: none in a masked sum, and none that its quorum needs."""
    if charter.privacy.mode == "secagg":
        return []
    late = [(site, number) for site, number in sorted(run.late.items())]
    if len(found.admitted) <= found.quorum:
        return late
    return [*((site, found.number) for site in sorted(found.admitted)), *late]


def stands(desk: Desk, run: RunId, judged: Judged) -> bool:
    """Whether a verdict is still what the journal says. Call it inside the commit that writes it down."""
    found = desk.open_round(run)
    if judged.verdict is None or found is None:
        return found is not None
    charter = desk.consortium.members.charters[found[1].charter_version]
    now = weighed(found[0], found[1], charter, judged.verdict.state)
    looked = dict(judged.appraisal.updates if judged.appraisal else judged.verdict.without)
    if accused(found[0], found[1], charter, now, looked) is not None:
        return False
    if judged.verdict.word == "rolled-back":
        now = replace(now, word="rolled-back" if now.word == "harmful" else now.word)
    return now == replace(judged.verdict, without=())


def _leave_out(
    desk: Desk, run: RunId, charter: Charter, judged: Judged, states: dict[Key, Digest]
) -> Judged | None:
    """Reject the update that does the harm. Where there is harm and none is found, the round ends with the state it began
    from; where there is none, as `judged`."""
    combined, closing = judged.combined, list[Judged]()

    def decide(now_ms: int) -> list[Record]:
        found = desk.open_round(run)
        if found is None or not _same(found[0], found[1], combined):
            return []
        state, opened = found
        verdict = weighed(state, opened, charter, combined.state)
        named = accused(state, opened, charter, verdict, states)
        told = replace(verdict, word="harmful", without=tuple(states.items()))
        if named is not None:
            return [told.fact(now_ms, run, opened), _rejection(now_ms, charter, state, opened, *named)]
        if verdict.word == "harmful":
            back = replace(combined, state=opened.base, momentum=state.momentum, moved=False)
            closing.append(Judged(back, replace(told, word="rolled-back")))
        else:
            closing.append(replace(judged, verdict=verdict))
        return []

    desk.consortium.commit(decide)
    return closing[0] if closing else None


def accused(
    run: RunState, found: RoundState, charter: Charter, verdict: Verdict, states: Mapping[Key, Digest]
) -> tuple[Key, str] | None:
    """The update to be left out, and what the measurements say against it. `states`: those without each update that was looked
    at: where there is no harm, all of the round's."""
    probe, rules = charter.probe.text, charter.rollback
    if not rules.on or verdict.change_ppm is None:
        return None
    harm = verdict.word == "harmful"
    whole = run.measured.losses(verdict.state, probe)
    before = run.measured.losses(found.base, probe) if harm else whole
    looked = {key: run.measured.losses(state, probe) for key, state in states.items()}
    worth = {key: ppm for key, losses in looked.items() if (ppm := change(before, losses)) is not None}
    own = {key: change_of_part(whole, looked[key], charter.part_of(key[0])) or 0 for key in worth}
    if harm:
        named = culprit(verdict.change_ppm, worth, own)
    else:
        may = dragging_still(worth, own, rules, run.appraised, run.dragging)
        may = [key for key in may if key in leavable(run, found, charter)]
        named = min(may, key=lambda key: (worth[key], key), default=None)
    if named is None:
        return None
    if harm:
        with_it, left = _percent(verdict.change_ppm), _percent(worth[named])
        return named, f"with its update the loss on the probe changes by {with_it}, without it by {left}"
    better, most = _percent(worth[named]), _percent(own[named])
    earlier = "summed over its appraisals" if rules.drag_memory else "the last time it was appraised"
    return named, (
        f"without its update the loss of the new state on the probe changes by {better}, and on its own kind of text by "
        f"{most}; it was so {earlier} too"
    )


def _rejection(now_ms: int, charter: Charter, run: RunState, found: RoundState, key: Key, why: str) -> Record:
    site, number = key
    admitted = run.history[number - 1].update(site)
    assert admitted is not None, "only admitted updates are looked at"
    message = (
        f"{why}: it is left out of round {found.number}, and the site of the {charter.rollback.quarantine_rounds} that "
        "follow; its operator looks at its text and training"
    )
    log.warning("run %s round %d: site %s: %s", run.run, found.number, site, message)
    return rejection_fact(
        now_ms,
        run=run.run,
        number=number,
        site=site,
        code=Code.UPDATE_HARMFUL,
        message=message,
        update=admitted.update.digest,
    )


def _measured(
    desk: Desk, run: RunId, charter: Charter, combined: Combined, states: tuple[Digest, ...]
) -> bool:
    """Wait until the sites have measured the round's base and `states`, or their time is over.

    False when the round has other updates meanwhile, or is gone.
    """
    with desk.consortium.lock:
        found, until_ms = desk.open_round(run), desk.consortium.now_ms()
        if found is None:
            return False
        wanted = (found[1].base, *states)
        until_ms += 1000 * charter.probe.patience_s * len(wanted)
        desk.probing.ask(run, wanted)
    desk.bell.ring()  # so that streams show the order
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        with desk.consortium.lock:
            found, now_ms = desk.open_round(run), desk.consortium.now_ms()
            if found is None or not _same(found[0], found[1], combined):
                return False
            owed = [s for s in _asked(desk, run, found[1]) if _next(found[0], charter, s, wanted)]
        if not owed or now_ms >= until_ms:
            return True
        desk.bell.wait_beyond(strokes, (until_ms - now_ms) / 1000)
    return False


def _asked(desk: Desk, run: RunId, found: RoundState) -> list[SiteId]:
    """Assigned sites that are here and at no other work."""
    here, refusing = desk.live.present(), desk.live.refusing(run, found.number)
    return [s for s in sorted(found.holds) if s in here and s not in found.waiting and s not in refusing]


def _next(run: RunState, charter: Charter, site: SiteId, wanted: tuple[Digest, ...]) -> Digest | None:
    """The first state that the site has not measured yet."""
    return next((s for s in wanted if run.measured.note(s, charter.probe.text, site) is None), None)


def _same(run: RunState, found: RoundState, combined: Combined) -> bool:
    return found.admitted.keys() == combined.sites and run.late.keys() == combined.late


def order_to_measure(desk: Desk, run: RunState, found: RoundState, site: SiteId) -> AssignmentNote | None:
    """What the site shall measure now, if anything. Call it while holding the lock."""
    charter = desk.consortium.members.charters[found.charter_version]
    state = _next(run, charter, site, desk.probing.asked(run.run)) if site in found.holds else None
    return None if state is None else probing(charter, run, found, site, state)


def decide_measurement(
    desk: Desk, site: SiteId, verifier: Verifier | None, data: bytes, now_ms: int
) -> list[Record] | Refusal | int:
    """The PROBE record of a site's note, the index of the same note recorded before, or a refusal. Holding the lock."""
    if verifier is None:
        return Refusal(Code.SIGNATURE_INVALID, f"site {site} has no enrolled key; its partner joins it first")
    try:
        note = ProbeNote.from_note(open_note(data, [verifier]))
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"measurement of site {site}: {error}")
    if RunId(note.run) not in desk.runs.by_id:
        return Refusal(Code.RUN_UNKNOWN, f"there is no run {note.run[:64]!r} here")
    if note.site != site:
        return Refusal(Code.NOT_AUTHORISED, f"site {site} measures for itself")
    found = desk.open_round(RunId(note.run))
    if found is None or found[1].number != note.round:
        return Refusal(Code.ROUND_CLOSED, f"round {note.round} of run {note.run[:64]} is not open")
    run, opened = found
    charter = desk.consortium.members.charters[opened.charter_version]
    if (note.consortium, note.probe) != (charter.consortium.name, charter.probe.text):
        return Refusal(
            Code.REQUEST_INVALID,
            f"site {site} measured on {note.probe[:80]}, the probe is {charter.probe.text}",
        )
    if len(note.losses) != charter.probe.parts:
        message = (
            f"site {site} states losses of {len(note.losses)} parts, the probe has {charter.probe.parts}"
        )
        return Refusal(Code.REQUEST_INVALID, message)
    known = run.measured.note(Digest(note.state), note.probe, site)
    if known is not None:
        same = known[1].losses == note.losses
        return (
            known[0] if same else Refusal(Code.REQUEST_INVALID, f"site {site} has stated another loss before")
        )
    if site not in opened.holds or Digest(note.state) not in desk.probing.asked(run.run):
        return Refusal(Code.STALE_BASE, f"nobody asks site {site} to measure {note.state[:80]} now")
    return [Record(Kind.PROBE, now_ms, data)]


def _percent(ppm: int) -> str:
    return f"{ppm / 10_000:+.2f} %"
