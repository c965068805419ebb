"""Issuing statements: from the book and the journal to signed notes, pages of lines, proofs, and countersignatures.

A statement of a closed period follows from the journal up to its PERIOD record and from nothing else. The note is
made while holding the consortium's lock; lines and proofs are read from the journal without it, which only grows.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from commons.certificates import Subject
from commons.claims import CountersignNote
from commons.errors import Code, Refusal
from commons.log import Checkpoint, proof_text
from commons.notes import Note, NoteError, Signer, Verifier
from commons.records import Kind, Record
from commons.signed import open_signed
from commons.statement import AccountLine, Counters, Line, LinesDigest, StatementNote, differences
from commons.statement_proof import (
    LEFT_OUT,
    LINES_PROVEN_MAX,
    LinesView,
    Opening,
    ProofView,
    StatementView,
    pack_hashes,
)
from commons.views import View
from governance.bills import readable
from governance.consortium import Consortium
from governance.ledger.accounts import budget_account
from governance.ledger.periods import Period, balance_lines
from governance.statements.balances import BalanceTree
from governance.statements.closing import decide_close

PAGE_LINES_MAX = 4000
PAGE_CHARS_MAX = 2**21
"""Of one page's leaves; JSON on the wire may be several times that, a message holds 16 MiB."""

PersonalReader = Callable[[Subject, str], View | Refusal]
"""A view for a caller and a key. Takes the consortium's lock itself, where it needs it."""


class Statements:
    """Safe to call from any thread. `signer` is the log key."""

    def __init__(self, consortium: Consortium, signer: Signer) -> None:
        self._consortium, self._book, self._signer = consortium, consortium.book, signer
        self.readers: Mapping[str, PersonalReader] = {
            "statement": self.read,
            "statement-lines": self.read_lines,
            "statement-proof": self.read_proof,
        }

    def read(self, caller: Subject, key: str) -> StatementView | Refusal:
        """`PARTNER/PERIOD`: the statement without its lines. PERIOD may be `current` or `last`.

        Refuses: not_authorised (a partner reads its own; the charter may open them), account_not_found, request_invalid (no such period).
        """
        with self._consortium.lock:
            self._consortium.commit(lambda now_ms: decide_close(self._consortium.ledger, now_ms))
            found = self._find(caller, key)
            if isinstance(found, Refusal):
                return found
            return self._statement(*found)

    def read_lines(self, caller: Subject, key: str) -> LinesView | Refusal:
        """`PARTNER/PERIOD/SIZE/lines|earlier/FROM`: a page of what stood in the first SIZE records.

        Refuses as `read` does.
        """
        parts = self._parts(caller, key, 5)
        if isinstance(parts, Refusal):
            return parts
        partner, period, size, (kind, start) = parts
        first = _number(start)
        if kind not in ("lines", "earlier") or first is None:
            return _unreadable("statement-lines", key)
        with self._consortium.lock:
            indices = (
                self._lines(partner, period, size)
                if kind == "lines"
                else self._earlier(partner, period, size)
            )
        low = min(first, len(indices))
        lines: list[Line] = []
        room = PAGE_CHARS_MAX
        wanted = indices[low : low + PAGE_LINES_MAX]
        for index, leaf in zip(wanted, self._consortium.journal.leaves(wanted), strict=True):
            room -= len(leaf)
            if lines and room < 0:
                break
            lines.append((index, leaf.decode()))
        following = low + len(lines)
        return LinesView(lines=tuple(lines), following=following if following < len(indices) else None)

    def read_proof(self, caller: Subject, key: str) -> ProofView | Refusal:
        """`PARTNER/PERIOD/SIZE`: that all lines and earlier records stand in the first SIZE records.

        Refuses as `read` does.
        """
        parts = self._parts(caller, key, 3)
        if isinstance(parts, Refusal):
            return parts
        partner, period, size, _ = parts
        with self._consortium.lock:
            indices = [*self._lines(partner, period, size), *self._earlier(partner, period, size)]
        if len(indices) > LINES_PROVEN_MAX:
            return ProofView(proof=LEFT_OUT)
        hashes = self._consortium.journal.multi_proof(sorted(indices), size)
        return ProofView(proof=pack_hashes(hashes))

    def decide_countersign(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        """The partner's agreement with its statement of a closed period. Handed in twice: nothing.

        Refuses: note_malformed, request_invalid (another consortium's, an unknown or open period), not_authorised,
        signature_invalid, statement_mismatch (it is about another statement than this coordinator's). Call it while
        holding the consortium's lock.
        """
        try:
            claim = CountersignNote.from_note(note)
        except NoteError as error:
            return Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")
        charter = self._consortium.charter
        if claim.consortium != charter.consortium.name:
            message = f"the note is for consortium {claim.consortium!r}, this is {charter.consortium.name!r}"
            return Refusal(Code.REQUEST_INVALID, message)
        member = charter.member(claim.partner)
        if member is None:
            return Refusal(Code.NOT_AUTHORISED, f"{claim.partner!r} is no member of the consortium")
        if wrong := open_signed(note, Verifier.from_vkey(member.key), member.name):
            return wrong
        if claim.period not in self._book.sealed:
            what = "goes on" if claim.period in self._book.periods else "has no books here"
            message = f"period {claim.period} {what}: only a statement of a closed period is countersigned"
            return Refusal(Code.REQUEST_INVALID, message)
        known = self._book.countersigned.get((claim.partner, claim.period))
        ours = self.note(claim.partner, self._book.periods[claim.period])
        if claim.statement != ours.digest:
            message = (
                f"{claim.partner} countersigns statement {claim.statement}, the one of {claim.period} is "
                f"{ours.digest}; read it again with `hansa budget statement {claim.partner} --period {claim.period}`"
            )
            return Refusal(Code.STATEMENT_MISMATCH, message)
        return [] if known else [Record(Kind.COUNTERSIGN, now_ms, note.data)]

    def note(self, partner: str, period: Period) -> StatementNote:
        """What the statement says. Call it while holding the consortium's lock."""
        size, root = self._journal_of(period)
        page, card = self._book.page(partner, period.name), self._book.cards(period)[-1]
        tree, opening = self._tree(period), self._opening_lines(partner, period)
        earlier = self._earlier(partner, period, size)
        leaves = self._consortium.journal.leaves(earlier)
        told = LinesDigest((i, leaf.decode()) for i, leaf in zip(earlier, leaves, strict=True))
        closing = [AccountLine.parse(line) for line in tree.of(partner)]
        wrong = differences(opening, page.sums, closing)
        assert not wrong, f"lines of {partner} in {period.name}: {wrong}"
        end, begin = _budget(partner, closing), _budget(partner, opening)
        note = StatementNote(
            consortium=self._book.consortium,
            partner=partner,
            period=period.name,
            begin_ms=period.begin_ms,
            end_ms=period.end_ms,
            currency=card.currency,
            opening_micro=begin.credits_posted - begin.debits_posted,
            closing_micro=end.credits_posted - end.debits_posted,
            held_micro=end.debits_pending,
            **page.sums.stated(),
            lines=len(page.indices),
            lines_digest=page.digest.digest,
            earlier=len(earlier),
            earlier_digest=told.digest,
            rate_card=card.digest,
            rate_card_since_ms=card.since_ms,
            rate_cards=len(self._book.cards(period)),
            journal_size=size,
            journal_root=root.hex(),
            balances_root=tree.root.hex(),
            accounts=len(tree.lines),
            closed="yes" if period.name in self._book.sealed else "no",
        )
        assert note.adds_up, f"the statement of {partner} for {period.name} does not add up"
        return note

    def lines(self, partner: str, period: str) -> tuple[list[int], list[int]]:
        """(its lines, the earlier records they refer to) of a statement. Call it while holding the consortium's lock."""
        found = self._book.periods[period]
        size, _ = self._journal_of(found)
        return list(self._lines(partner, found, size)), self._earlier(partner, found, size)

    def _statement(self, partner: str, period: Period) -> StatementView:
        note = self.note(partner, period)
        sealed, before = self._book.sealed.get(period.name), self._book.before(period.name)
        countersigned = self._book.countersigned.get((partner, period.name))
        opening = None
        if before is not None:
            proven = self._proof(self._book.sealed[before.name], note.journal_size)
            opening = Opening(period=proven, balances=self._tree(before).prove(partner))
        return StatementView(
            statement=self._signer.sign(note.text).decode(),
            balances=self._tree(period).prove(partner),
            opening=opening,
            period=None if sealed is None else self._proof(sealed, note.journal_size),
            countersign=self._proof(countersigned[0], countersigned[0] + 1) if countersigned else None,
        )

    def _journal_of(self, period: Period) -> tuple[int, bytes]:
        """(size, root) that a statement of the period is made from."""
        journal = self._consortium.journal
        if (sealed := self._book.sealed.get(period.name)) is None:
            return journal.size, journal.root()
        return sealed + 1, journal.root_at(sealed + 1)

    def _tree(self, period: Period) -> BalanceTree:
        ledger = self._consortium.ledger
        if period.name in ledger.boundaries:
            return BalanceTree(ledger.boundaries[period.name][2])
        return BalanceTree(balance_lines(ledger.accounts))

    def _opening_lines(self, partner: str, period: Period) -> list[AccountLine]:
        before = self._book.before(period.name)
        return [AccountLine.parse(line) for line in self._tree(before).of(partner)] if before else []

    def _proof(self, index: int, size: int) -> str:
        """The record with its place in the journal of `size` records, as a file of its own."""
        journal = self._consortium.journal
        checkpoint = Checkpoint(self._signer.name, size, journal.root_at(size)).sign(self._signer)
        return proof_text(index, journal.inclusion(index, size), checkpoint, journal.record(index).leaf)

    def _lines(self, partner: str, period: Period, size: int) -> array[int]:
        indices = self._book.page(partner, period.name).indices
        return indices[: bisect_left(indices, size)]

    def _earlier(self, partner: str, period: Period, size: int) -> list[int]:
        """Records before the lines that they refer to, as of the first `size` records."""
        page = self._book.page(partner, period.name)
        cards = {card.index for card in self._book.cards(period) if card.index < size}
        cards |= {self._book.card_index(digest) for digest, line in page.cards.items() if line < size}
        settles = {settle for line, settle in page.corrects if line < size}
        return sorted({*page.earlier, *cards, *self._settles(settles, period)})

    def _settles(self, settles: set[str], period: Period) -> Iterator[int]:
        """Where those of the charges stand that are older than the period."""
        for settle in settles:
            hold = self._consortium.ledger.settled(settle)
            assert hold is not None, f"{settle} was corrected"
            if hold.ended_ms < period.begin_ms:
                wanted = self._book.candidates(hold.request.payer, hold.ended_ms)
                leaves = self._consortium.journal.leaves(wanted)
                yield next(
                    index
                    for index, leaf in zip(wanted, leaves, strict=True)
                    if Record.parse(leaf).facts["id"] == settle
                )

    def _parts(self, caller: Subject, key: str, count: int) -> tuple[str, Period, int, list[str]] | Refusal:
        """Partner, period, size and the rest of a key that names a size."""
        parts = key.split("/")
        size = _number(parts[2]) if len(parts) == count else None
        if size is None:
            return _unreadable("statement-lines" if count > 3 else "statement-proof", key)
        with self._consortium.lock:
            found = self._find(caller, "/".join(parts[:2]))
            if isinstance(found, Refusal):
                return found
            if not 0 < size <= self._consortium.size:
                return _unreadable("a statement", key)
            return *found, size, parts[3:]

    def _find(self, caller: Subject, key: str) -> tuple[str, Period] | Refusal:
        partner, _, name = key.partition("/")
        if not readable(self._consortium.charter, "statements", partner, caller):
            message = (
                f"{caller} may read the statements of {caller.partner or 'nobody'}, not of {partner[:40]!r}"
            )
            return Refusal(Code.NOT_AUTHORISED, message)
        if partner not in self._consortium.ledger.purses:
            return Refusal(Code.ACCOUNT_NOT_FOUND, f"there is no partner {partner[:40]!r} in this journal")
        names = list(self._book.periods)
        if name in ("current", "last"):
            name = names[-1] if name == "current" else (names[-2] if len(names) > 1 else "")
        if name not in self._book.periods:
            message = f"there are no books for {name[:20] or 'an earlier period'!r}; there are {', '.join(names[-12:])}"
            return Refusal(Code.REQUEST_INVALID, message)
        return partner, self._book.periods[name]


def _budget(partner: str, lines: list[AccountLine]) -> Counters:
    return next((line.counters for line in lines if line.account == budget_account(partner)), Counters())


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def _unreadable(what: str, key: str) -> Refusal:
    return Refusal(Code.REQUEST_INVALID, f"{key[:80]!r} is no key of {what}")
