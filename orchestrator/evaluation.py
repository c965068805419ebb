"""The end of a run: sites evaluate the final state on their own held-out text, then the run is finished."""

from __future__ import annotations

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import RunId, SiteId
from commons.notes import NoteError, Verifier, open_note
from commons.records import Kind, Record
from commons.work import EvaluationNote
from orchestrator.desk import Desk
from orchestrator.plan import Verdict, evaluated
from orchestrator.progress import Runs
from orchestrator.round import finishing_records


def finish_run(desk: Desk, run: RunId) -> None:
    """Wait for the evaluations of a run whose rounds are over, then end it. Asked again: nothing more happens."""
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        present = desk.live.present()
        with desk.consortium.lock:
            found = desk.runs.by_id[run]
            if found.finished:
                return
            refusing = desk.live.refusing(run, found.closed)
            answer = evaluated(desk.consortium.charter, found, present, refusing, desk.consortium.now_ms())
        if answer.verdict is Verdict.CLOSE:
            desk.consortium.commit(lambda now_ms: _decide_finish(desk, run, now_ms))
            return
        desk.bell.wait_beyond(strokes, answer.wait_ms / 1000)


def decide_evaluation(
    runs: Runs, charter: Charter, site: SiteId, verifier: Verifier | None, data: bytes, now_ms: int
) -> list[Record] | Refusal | int:
    """The EVALUATION record of a site's note, the index of the same note recorded before, or a refusal."""
    if verifier is None:
        return Refusal(Code.SIGNATURE_INVALID, f"site {site} has no enrolled key; its partner joins it first")
    try:
        note = EvaluationNote.from_note(open_note(data, [verifier]))
    except NoteError as error:
        return Refusal(Code.NOTE_MALFORMED, f"evaluation of site {site}: {error}")
    run = runs.by_id.get(RunId(note.run))
    entry = charter.site(site)
    if run is None:
        return Refusal(Code.RUN_UNKNOWN, f"there is no run {note.run[:64]!r} here")
    if note.site != site or entry is None or note.domain != entry.domain:
        return Refusal(Code.NOT_AUTHORISED, f"site {site} evaluates its own domain, for itself")
    known = run.evaluations.get(site)
    if known is not None:
        same = known[1] == note
        return (
            known[0] if same else Refusal(Code.REQUEST_INVALID, f"site {site} has stated another loss before")
        )
    if run.phase != "evaluating":
        return Refusal(Code.ROUND_CLOSED, f"run {run.run} is {run.phase}; no evaluation is wanted now")
    if note.state != run.state:
        return Refusal(
            Code.STALE_BASE, f"site {site} evaluated {note.state[:80]}, the final state is {run.state}"
        )
    return [Record(Kind.EVALUATION, now_ms, data)]


def _decide_finish(desk: Desk, run: RunId, now_ms: int) -> list[Record]:
    found = desk.runs.by_id[run]
    if found.finished:
        return []
    return finishing_records(desk, found, "finished", f"all {found.rounds} rounds are done", now_ms)
