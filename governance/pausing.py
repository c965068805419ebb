"""Whether rounds are paused: by the charter, which the members change, or for a while by a safety officer's word.

A view of the journal. An officer's pause lapses; the next one may only begin when as much time has passed again, so that
officers can never stop a consortium for good without its members.
"""

from __future__ import annotations

from commons import notes
from commons.charter import Charter
from commons.delegating import unlawful_pause
from commons.errors import Code, Refusal
from commons.motions import Pause
from commons.names import Digest
from commons.notes import Note, NoteError
from commons.records import Kind, Record
from commons.signed import text_digest


class Pauses:
    """Changes only by `apply`."""

    def __init__(self) -> None:
        self._length_ms = 0
        self._until_ms, self._again_ms = 0, 0
        self._notes: dict[Digest, int] = {}

    def apply(self, index: int, record: Record) -> None:
        match record.kind:
            case Kind.CHARTER:
                charter = record.facts
                self._length_ms = 1000 * int(charter["voting"].get("pause_s", 0))
            case Kind.PAUSE:
                self._notes[text_digest(notes.parse(record.body))] = index
                self._until_ms = record.at_ms + self._length_ms
                self._again_ms = self._until_ms + self._length_ms
            case _:
                pass

    def until_ms(self, charter: Charter, now_ms: int) -> int | None:
        """When rounds go on as it stands: now or later; None: when the members vote for it."""
        return None if charter.rounds.paused else max(self._until_ms, now_ms)

    def find(self, note: bytes) -> int | None:
        """Journal index of a pause with the very same text, if it was recorded before."""
        try:
            return self._notes.get(text_digest(notes.parse(note)))
        except NoteError:
            return None

    def decide_pause(self, note: Note, charter: Charter, now_ms: int) -> list[Record] | Refusal:
        """The PAUSE record of an officer's word; [] for a repeat. Refused: note_malformed, not_authorised,
        signature_invalid, proposal_closed (a pause is on, or was not long ago)."""
        try:
            pause = Pause.from_note(note)
        except NoteError as error:
            return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")
        if wrong := unlawful_pause(pause, note, charter):
            return wrong
        if text_digest(note) in self._notes:
            return []
        if now_ms < self._again_ms:
            return Refusal(
                Code.PROPOSAL_CLOSED,
                f"rounds were paused by an officer until {self._until_ms} ms; the next pause may begin at {self._again_ms} ms, "
                "or the members vote for one: hansa proposal open pause",
            )
        return [Record(Kind.PAUSE, now_ms, note.data)]
