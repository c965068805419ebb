"""An auditor who trusts nobody: recomputes the books from the journal's raw records and the promises made.

Written from the invariants, not from the ledger: it shares no code with `governance`, and reads facts as JSON and
notes as lines of text. Rounds and promises are here, money is in `money`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from commons.records import Kind, Record
from tests.simulation.money import Money
from tests.simulation.values import Where, sha


@dataclass
class Books:
    """What the journal says, added up by hand."""

    money: Money = field(default_factory=Money)
    admitted: dict[Where, int] = field(default_factory=dict)
    """(run, round, site) -> journal index of the update."""
    rejected: set[Where] = field(default_factory=set)
    """Of any attempt at the round."""
    waiting: set[Where] = field(default_factory=set)
    """Assigned in the last attempt at a round, neither admitted nor rejected."""
    at_work: set[Where] = field(default_factory=set)
    """Assigned in a round that has closed, neither admitted nor rejected since."""
    untaken: set[Where] = field(default_factory=set)
    """Admitted after their round had closed, not yet combined."""
    taken: dict[Where, int] = field(default_factory=dict)
    """Late update -> the round that combined it."""
    late_rounds: dict[tuple[str, int], int] = field(default_factory=dict)
    """(run, round) -> how late an update may be that it takes."""
    combined: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    notes: dict[bytes, int] = field(default_factory=dict)
    """The bytes of every note -> its journal index."""

    @property
    def charged_for(self) -> Counter[Where]:
        """Number of charges for accepted work; a top-up's belongs to the charge it tops up."""
        return self._charges(accepted=True)

    @property
    def charged_rejected(self) -> Counter[Where]:
        return self._charges(accepted=False)

    def _charges(self, *, accepted: bool) -> Counter[Where]:
        return Counter(
            (h.facts["run"], h.facts["round"], h.facts["site"])
            for h in self.money.holds.values()
            if h.end == "settle" and not h.facts.get("tops") and h.settle["accepted"] is accepted
        )


def audit(records: Iterable[Record]) -> Books:
    """Add everything up; an AssertionError names the first record that breaks an invariant."""
    books = Books()
    for index, record in enumerate(records):
        try:
            assert record.at_ms >= books.money.last_ms, "it is dated before its predecessor"
            books.money.begin(index, record.at_ms)
            _take(books, index, record)
        except (AssertionError, KeyError, ValueError, StopIteration) as wrong:
            kind = json.loads(record.body).get("type", "") if record.kind is Kind.TRANSFER else ""
            raise AssertionError(f"record {index} ({record.kind} {kind}): {wrong!r}") from wrong
    books.money.finish()
    return books


def _take(books: Books, index: int, record: Record) -> None:
    money = books.money
    match record.kind:
        case Kind.CHARTER:
            money.charter(json.loads(record.body))
        case Kind.TRANSFER:
            money.transfer(json.loads(record.body), record.at_ms)
        case Kind.REFUSED:
            money.failed.add(json.loads(record.body)["id"])
        case Kind.PERIOD:
            money.period(json.loads(record.body), record.at_ms)
        case Kind.UPDATE:
            text, said = _words(record)
            key = (said["run"], int(said["round"]), said["site"])
            assert key not in books.admitted, f"a second update of {key}"
            assert key in books.waiting | books.at_work, f"nobody waits for an update of {key}"
            assert (key[:2] in books.combined) == (key in books.at_work), "the round is closed"
            if key in books.at_work:
                books.at_work.remove(key)
                books.untaken.add(key)
            books.waiting.discard(key)
            books.admitted[key] = index
        case Kind.USAGE:
            text, said = _words(record)
            money.usage((said["run"], int(said["round"]), said["site"]), text, said)
        case Kind.PLEDGE:
            text, said = _words(record)
            money.pledges.promised[sha(text).removeprefix("sha256:")[:32]] = said
        case Kind.PROPOSAL:
            text, said = _words(record)
            money.pledges.needs[sha(text)] = int(said.get("needs_micro", 0))
        case Kind.EXECUTION:
            money.pledges.executed.add(json.loads(record.body)["proposal"])
        case Kind.DISPUTE:
            money.dispute_notes.add(sha(_words(record)[0]))
        case Kind.REJECTION:
            facts = json.loads(record.body)
            key = (facts["run"], facts["round"], facts["site"])
            books.rejected.add(key)
            for expected in (books.waiting, books.at_work):
                expected.discard(key)
        case Kind.ROUND:
            facts = json.loads(record.body)
            _open_late(books, facts)
            opened = {(facts["run"], facts["round"], site) for site in facts["holds"]}
            assert not opened & books.admitted.keys(), "it waits for what it has"
            books.waiting = {
                key for key in books.waiting if key[:2] != (facts["run"], facts["round"])
            } | opened
        case Kind.CLOSE:
            facts = json.loads(record.body)
            closed = (facts["run"], facts["round"])
            assert closed not in books.combined, f"{closed} was closed before"
            books.combined[closed] = tuple(facts["contributors"])
            _close_late(books, facts, record.at_ms)
        case Kind.FINISH:
            facts = json.loads(record.body)
            assert facts["phase"] == "stopped" or not books.untaken, f"{books.untaken} are lost"
            books.finished.add(facts["run"])
    if record.body.startswith(b"hansa-"):
        assert record.body not in books.notes, f"the note stands already, at {books.notes[record.body]}"
        books.notes[record.body] = index


def _open_late(books: Books, facts: Mapping[str, Any]) -> None:
    run, number = facts["run"], facts["round"]
    [charter] = [c for c in books.money.charters if c["version"] == facts["charter_version"]]
    books.late_rounds[run, number] = charter["rounds"].get("late_rounds", 0)
    for _, of, site in books.at_work:
        assert site not in facts["holds"], f"{site} is still at work on round {of}"
        assert number - of <= books.late_rounds[run, number], f"{site} is at work on round {of} in vain"


def _close_late(books: Books, facts: Mapping[str, Any], at_ms: int) -> None:
    run, number = facts["run"], facts["round"]
    taken = {(run, of, site) for site, of in facts.get("late", {}).items()}
    assert taken == books.untaken, f"{taken} are taken, {books.untaken} were admitted"
    for key in taken:
        assert 1 <= number - key[1] <= books.late_rounds[run, number], f"{key} is too late for round {number}"
        assert key not in books.taken, f"{key} was taken by round {books.taken.get(key)}"
        books.taken[key] = number
    books.untaken = set()
    stay = {(run, number, site) for site in facts.get("carried", ())}
    assert stay <= books.waiting, "who stays at work was at work"
    assert not stay or books.late_rounds[run, number], "its charter takes no late updates"
    books.at_work |= stay


def _words(note: Record) -> tuple[str, dict[str, str]]:
    """The signed text and its fields."""
    text = note.body.decode().split("\n\n")[0] + "\n"
    lines = (line.split(" ", 1) for line in text.splitlines()[1:])
    return text, {key.replace("-", "_"): value for key, value in lines}


def check_promises(books: Books, acknowledged: Mapping[Where, int]) -> None:
    """What partners were told holds: no update lost, none charged twice, none charged that was not combined."""
    charged = books.charged_for
    for key, index in acknowledged.items():
        assert books.admitted.get(key) == index, f"update of {key} was acknowledged as {index} and is lost"
    for run, number, site in books.admitted:
        if (run, number) in books.combined:
            late = {(run, number, site)} <= books.taken.keys() | books.untaken
            in_time = site in books.combined[run, number]
            assert in_time != late, f"{site} was admitted to round {number} and left out, or taken twice"
            times = charged[run, number, site]
            assert times == 1, f"{site} was charged {times} times for round {number}"
    for key, times in charged.items():
        assert times == 1 and key in books.admitted, f"{key}: charged {times} times, and it was not admitted"
    for key in books.charged_rejected:
        assert key in books.rejected, f"{key} was charged as rejected, and was not"
    for (run, number), sites in books.combined.items():
        assert all((run, number, site) in books.admitted for site in sites), f"round {number} of {run}"
    if books.finished:
        assert not books.money.open_holds, f"every hold ends with its run: {list(books.money.open_holds)}"


def count_votes(records: Sequence[Record]) -> dict[str, tuple[int, int, int]]:
    """Proposal -> (for, against, abstain), one vote each, counted from the ballots' texts alone: a voter's last one."""
    choices: dict[str, dict[str, str]] = {}
    for record in records:
        if record.kind is Kind.BALLOT:
            _, said = _words(record)
            choices.setdefault(said["proposal"], {})[said["voter"]] = said["choice"]
    return {
        proposal: tuple(list(of.values()).count(c) for c in ("for", "against", "abstain"))  # type: ignore[misc]
        for proposal, of in choices.items()
    }
