"""The chamber on the wire: proposals and ballots in, views and proofs out. Roles: member, site, operator.

Translates between messages and the consortium; every rule is elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import grpc

from commons import charter_file, notes
from commons.anchors import Anchor, Shown, entries_digest
from commons.ballots import kind
from commons.certificates import Subject
from commons.chain import Wanted
from commons.claims import CountersignNote
from commons.errors import Code, Refusal
from commons.lodging import Lodged
from commons.log import Checkpoint
from commons.motions import Pause
from commons.notes import Note, NoteError
from commons.pledging import Pledge
from commons.records import Record
from commons.views import BudgetsView, CharterView, JournalView, ProposalsView, ProposalView, View
from commons.wire.channel import caller, refuse
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import ChamberServicer
from governance.archive import archive_readers
from governance.bills import own_part, readable
from governance.budgets import budgets_view
from governance.claims import disputes_view
from governance.consortium import Consortium
from governance.evidence import evidence_readers
from governance.ledger import CLAIMS, decide_claim
from governance.lodging import decide_lodged
from governance.moments import LOOK_S, Moments
from governance.pledging import decide_pledge
from governance.proof import Entry, Witnessed, chain_bundle, covering
from governance.proposals import NOTES
from governance.statements.issuing import Statements

WATCHERS_MAX = 64
"""Each watcher holds a thread of the server."""
WATCH_PAUSE_S = 0.25
WITNESSES_WAIT_S = 2.0
"""How long an answer about the chain waits for cosignatures that are still on their way."""
_CHAINS_WAITING_MAX = 32

Reader = Callable[[str], View | Refusal]
"""A view for a key; called while holding the consortium's lock."""
Taker = Callable[[Note, int], list[Record] | Refusal]
"""(a note of its kind, now in ms) -> what it adds to the journal; nothing for a repeat."""


class Chamber(ChamberServicer):
    """`more` are views of other parts of the coordinator by name; `moments` says when any view may have changed."""

    def __init__(
        self,
        consortium: Consortium,
        moments: Moments,
        stopping: threading.Event,
        more: Mapping[str, Reader],
        witnessed: Witnessed,
        statements: Statements,
    ) -> None:
        self._consortium, self._moments, self._stopping = consortium, moments, stopping
        self._witnessed = witnessed
        self._personal = {**statements.readers, **archive_readers(consortium), **evidence_readers(consortium)}
        self._seats = threading.BoundedSemaphore(WATCHERS_MAX)
        self._waiting = threading.BoundedSemaphore(_CHAINS_WAITING_MAX)
        self._readers: dict[str, Reader] = {
            "budgets": self._budgets,
            "disputes": self._disputes,
            "proposals": self._proposals,
            "proposal": self._proposal,
            "journal": self._journal,
            "charter": self._charter,
            **more,
        }
        self._finders = (consortium.proposals, consortium.claims, consortium.pauses, consortium.members)
        self._takers: dict[str, Taker] = {
            **dict.fromkeys(NOTES, self._vote),
            Pause.KIND: self._pause,
            Pledge.KIND: self._pledge,
            Lodged.KIND: self._lodged,
            Anchor.KIND: consortium.members.decide_anchor,
            **dict.fromkeys(CLAIMS, self._claim),
            CountersignNote.KIND: statements.decide_countersign,
        }

    def Submit(self, request: wire.NoteRequest, context: grpc.ServicerContext) -> wire.Receipt:
        with self._consortium.lock:
            index = self._take(request.note)
            if isinstance(index, Refusal):
                refuse(context, index)
            receipt = self._consortium.receipt(index)
        return wire.Receipt(**vars(receipt))

    def _take(self, data: bytes) -> int | Refusal:
        """Journal index of the note, recorded now or before."""
        consortium = self._consortium
        try:
            note = notes.parse(data)
        except NoteError as error:
            return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")
        taker = self._takers.get(kind(note))
        if taker is None:
            known = ", ".join(sorted(self._takers))
            message = f"the note is a {kind(note)[:60]!r}, the chamber takes {known}"
            return Refusal(Code.NOTE_MALFORMED, message)
        done = consortium.commit(lambda now_ms: taker(note, now_ms))
        if isinstance(done, Refusal):
            return done
        consortium.commit(consortium.proposals.decide_close)
        if done:
            return done[0]
        before = (view.find(data) for view in self._finders)
        known_at = next((index for index in before if index is not None), None)
        message = "what this note asks for has come about by another record: nothing was added"
        return Refusal(Code.EXISTS_WITH_DIFFERENT_FIELDS, message) if known_at is None else known_at

    def _vote(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        consortium = self._consortium
        return consortium.proposals.decide_submit(note.data, consortium.charter, now_ms)

    def _pledge(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        consortium = self._consortium
        return decide_pledge(consortium.ledger, consortium.proposals, note, consortium.charter, now_ms)

    def _lodged(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        consortium = self._consortium
        return decide_lodged(consortium.proposals, consortium.members, note, consortium.charter, now_ms)

    def _pause(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        return self._consortium.pauses.decide_pause(note, self._consortium.charter, now_ms)

    def _claim(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        return decide_claim(self._consortium.ledger, note, self._consortium.charter, now_ms)

    def Read(self, request: wire.ReadRequest, context: grpc.ServicerContext) -> wire.ViewReply:
        if personal := self._personal.get(request.view):
            found = personal(caller(context), request.key)
            view = found if isinstance(found, Refusal) else _json(found)
        else:
            view = self._view(request, caller(context))
        if isinstance(view, Refusal):
            refuse(context, view)
        return wire.ViewReply(json=view)

    def Watch(self, request: wire.ReadRequest, context: grpc.ServicerContext) -> Iterator[wire.ViewReply]:
        if not self._seats.acquire(blocking=False):
            message = f"{WATCHERS_MAX} watchers are here already; one of them has to leave first"
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        bell = self._moments.bell(request.view)
        context.add_callback(bell.ring)
        try:
            who, shown, moment = caller(context), b"", None
            while context.is_active() and not self._stopping.is_set():
                strokes, now = bell.strokes, self._moments.of(request.view)
                if now != moment:
                    moment, view = now, self._view(request, who)
                    if isinstance(view, Refusal):
                        refuse(context, view)
                    if view != shown:
                        shown = view
                        yield wire.ViewReply(json=view)
                    time.sleep(WATCH_PAUSE_S)
                bell.wait_beyond(strokes, LOOK_S)
        finally:
            self._seats.release()

    def Chain(self, request: wire.ChainRequest, context: grpc.ServicerContext) -> wire.ChainBundle:
        wanted = Wanted(request.have_size, request.known_version or 1, request.whole)
        self._await_witnesses(wanted)
        bundle = chain_bundle(self._consortium, wanted, self._witnessed)
        if isinstance(bundle, Refusal):
            refuse(context, bundle)
        checkpoint, entries, consistency = bundle
        return wire.ChainBundle(
            checkpoint=checkpoint,
            entries=[wire.ChainEntry(index=i, leaf=leaf, path=path) for i, leaf, path in entries],
            consistency=consistency,
            shown=self._shown(checkpoint, entries),
        )

    def _shown(self, checkpoint: bytes, entries: Sequence[Entry]) -> bytes:
        """What the answer commits the coordinator to: one that proves nothing is evidence against it."""
        last = [leaf for _, leaf, _ in entries if leaf.startswith(b"charter ")][-1]
        charter = charter_file.from_canonical(Record.parse(last).body)
        note = Shown(
            consortium=charter.consortium.name,
            size=Checkpoint.read(notes.parse(checkpoint)).size,
            charter_version=charter.version,
            charter=charter_file.digest(charter),
            entries=entries_digest([(index, leaf) for index, leaf, _ in entries]),
        )
        return self._consortium.journal.sign(note.text)

    def _await_witnesses(self, wanted: Wanted) -> None:
        """Give the cosignatures of the newest records a moment; when too many wait already, go on without."""
        if not self._consortium.charter.witnesses.quorum or not self._waiting.acquire(blocking=False):
            return
        try:
            least = min(covering(self._consortium, wanted), self._consortium.size)
            self._witnessed.wait_published(least, WITNESSES_WAIT_S)
        finally:
            self._waiting.release()

    def _view(self, request: wire.ReadRequest, who: Subject) -> bytes | Refusal:
        reader = self._readers.get(request.view)
        if request.view in self._personal:
            return Refusal(Code.REQUEST_INVALID, f"the view {request.view!r} is read, not watched")
        if reader is None:
            known = ", ".join(sorted([*self._readers, *self._personal]))
            return Refusal(Code.REQUEST_INVALID, f"there is no view {request.view[:40]!r}; there are {known}")
        with self._consortium.lock:
            view = reader(request.key)
            if isinstance(view, BudgetsView) and not readable(self._consortium.charter, "budgets", "", who):
                view = own_part(view, who.partner)
        return view if isinstance(view, Refusal) else _json(view)

    def _budgets(self, key: str) -> View:
        return budgets_view(self._consortium.ledger, self._consortium.charter.rate_card.currency)

    def _disputes(self, key: str) -> View:
        """Those whose digest begins with the key; the latest ones for an empty key."""
        consortium = self._consortium
        currency = consortium.charter.rate_card.currency
        return disputes_view(consortium.claims, consortium.ledger, currency, key)

    def _proposals(self, key: str) -> View:
        return ProposalsView(proposals=tuple(self._consortium.proposals.views(self._consortium.now_ms())))

    def _proposal(self, key: str) -> ProposalView | Refusal:
        """By id, number or P-number; the latest one for an empty key."""
        views = self._consortium.proposals.views(self._consortium.now_ms())
        found: ProposalView | None = views[-1] if views and not key else None
        for view in views:
            if key in (view.id, str(view.number), f"P-{view.number:04d}"):
                found = view
        return found or Refusal(Code.PROPOSAL_UNKNOWN, f"there is no proposal {key[:80]!r} in this journal")

    def _journal(self, key: str) -> View:
        journal = self._consortium.journal
        return JournalView(
            size=journal.size,
            root=journal.root().hex(),
            checkpoint=journal.checkpoint().decode(),
            published=(self._witnessed.published(1) or b"").decode(),
            last_ms=self._consortium.last_ms,
            unwitnessed_since_ms=self._witnessed.unwitnessed_since_ms(),
        )

    def _charter(self, key: str) -> View | Refusal:
        """By version; the one in force for an empty key."""
        charters = self._consortium.members.charters
        if key and (not key.isdecimal() or int(key) not in charters):
            return Refusal(Code.REQUEST_INVALID, f"there is no charter version {key[:20]!r}")
        charter = charters[int(key)] if key else self._consortium.charter
        digest, text = charter_file.digest(charter), charter_file.canonical(charter).decode()
        return CharterView(version=charter.version, digest=digest, text=text)


def _json(view: View) -> bytes:
    return view.model_dump_json().encode()
