"""A statement as one file that anybody can check offline, with the log's key and nothing else.

Owns the bundle's fields and the checks: who signed, which lines, what they add up to, that the balances at both ends
of the period are the journal's, and that every line stands in the journal. A bundle has one writing, so that a changed
byte anywhere is found. Whether each charge was priced right is `governance.statements`' to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from pydantic import ConfigDict, ValidationError

from commons import merkle, notes
from commons.claims import CountersignNote
from commons.errors import Refusal
from commons.log import Proof, hash_text, open_proof_file, read_hash
from commons.merkle import HASH_BYTES, ProofError, verify_inclusion
from commons.merkle_multi import verify_multi
from commons.notes import NoteError, Verifier, base64_bytes, base64_text
from commons.records import Kind, Record, canonical_json
from commons.signed import open_signed
from commons.statement import AccountLine, Line, LinesDigest, StatementNote, Sums, differences
from commons.views import View

LINES_PROVEN_MAX = 20_000
"""Records, lines and earlier ones together, up to which a bundle proves each to be in the journal."""
LEFT_OUT = f"left out: more than {LINES_PROVEN_MAX} records"
"""Stands for the proof in a larger bundle."""


class _Part(View):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Balances(_Part):
    """Account lines and, for each, its place in the period's balance tree."""

    lines: tuple[str, ...]
    indices: tuple[int, ...]
    paths: tuple[tuple[str, ...], ...]


class Opening(_Part):
    """What the period before closed with."""

    period: str
    """Its PERIOD record as a tlog-proof."""
    balances: Balances


class StatementView(_Part):
    """A statement without its lines: the coordinator's answer to the view `statement`."""

    statement: str
    """The signed note."""
    balances: Balances
    opening: Opening | None
    """None: the books began with this period."""
    period: str | None
    """The PERIOD record as a tlog-proof; None: the period is open."""
    countersign: str | None
    """The partner's COUNTERSIGN record as a tlog-proof."""


class LinesView(_Part):
    """One page of the lines, or of the earlier records: the answer to the view `statement-lines`."""

    lines: tuple[Line, ...]
    following: int | None
    """Where the next page begins; None: this was the last."""


class ProofView(_Part):
    """The answer to the view `statement-proof`."""

    proof: str


class Bundle(StatementView):
    """The whole file."""

    format: Literal["hansa-statement-bundle/v1"]
    lines: tuple[Line, ...]
    earlier: tuple[Line, ...]
    proof: str
    """That all lines and earlier records are in the journal (`commons.merkle_multi`), or `LEFT_OUT`."""

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return canonical_json(self.model_dump()) + b"\n"

    @property
    def note(self) -> StatementNote:
        """What the statement says; who signed it is for `verify`. Raises NoteError."""
        return StatementNote.from_note(notes.parse(self.statement.encode()))

    @classmethod
    def read(cls, data: bytes) -> Bundle:
        """Raises ValueError when it is none, or another writing of one."""
        try:
            bundle = cls.model_validate_json(data)
            same = bundle.data == data
        except (ValidationError, UnicodeError, RecursionError) as wrong:
            raise ValueError(f"the file is no statement bundle: {_first(wrong)}") from wrong
        if not same:
            raise ValueError("the file is not written as `hansa budget statement` writes it: it was changed")
        return bundle


class Check(NamedTuple):
    what: str
    problem: str = ""
    """Empty: it holds."""


@dataclass(frozen=True)
class PeriodFacts:
    """A PERIOD record, proven to be in the journal."""

    period: str
    begin_ms: int
    end_ms: int
    records: int
    balances: str
    accounts: int
    index: int


class _Wrong(Exception):
    """A check does not hold; the text says why."""


def verify(bundle: Bundle, log: Verifier) -> Iterator[Check]:
    """Every check in order; after the first that does not hold there are no more."""
    checks = (
        _signature,
        _digests,
        _sums,
        _balances,
        _period,
        _opening,
        _journal,
        _countersign,
    )
    for check in checks:
        try:
            yield Check(check(bundle, log))
        except (_Wrong, NoteError, ProofError, ValueError, KeyError, TypeError) as wrong:
            what = (check.__doc__ or "").strip()
            yield Check(what, str(wrong) if not isinstance(wrong, KeyError) else f"a record has no {wrong}")
            return


def _signature(bundle: Bundle, log: Verifier) -> str:
    """the statement is signed by the consortium's log key"""
    found = notes.parse(bundle.statement.encode())
    refusal = open_signed(found, log, "the coordinator")
    if isinstance(refusal, Refusal):
        raise _Wrong(refusal.message)
    note = StatementNote.from_note(found)
    if note.consortium != log.name:
        raise _Wrong(f"the key is {log.name}'s, the statement is one of {note.consortium}")
    if not note.begin_ms < note.end_ms:
        raise _Wrong(
            f"the period ends at {note.end_ms} ms, which is not after it begins at {note.begin_ms} ms"
        )
    return f"signed by {log.vkey.rpartition('+')[0]}: {note.partner}, {note.period}"


def _digests(bundle: Bundle, log: Verifier) -> str:
    """the lines are the ones that were signed"""
    note = bundle.note
    parts = (
        ("lines", bundle.lines, note.lines, note.lines_digest),
        ("earlier records", bundle.earlier, note.earlier, note.earlier_digest),
    )
    for what, lines, count, digest in parts:
        found = LinesDigest(lines).digest
        if (len(lines), found) != (count, digest):
            raise _Wrong(f"{len(lines)} {what} with digest {found}; signed are {count} with {digest}")
        if any(first[0] >= second[0] for first, second in pairwise(lines)):
            raise _Wrong(f"the {what} do not stand in the journal's order")
    return f"{note.lines} lines, {note.earlier} earlier records: the signed ones"


def _sums(bundle: Bundle, log: Verifier) -> str:
    """the lines add up to the statement"""
    note, sums = bundle.note, _sums_of(bundle)
    for name, found in sums.stated().items():
        if (stated := getattr(note, name)) != found:
            raise _Wrong(
                f"{name.replace('_micro', '')}: the lines give {found} micro, the statement says {stated}"
            )
    if not note.adds_up:
        raise _Wrong("opening + granted + refunded + converted is not expired + charged + closing")
    return f"charged {note.charged_micro}, closing {note.closing_micro} micro: the lines add up"


def _balances(bundle: Bundle, log: Verifier) -> str:
    """the account balances are the signed ones"""
    note = bundle.note
    accounts = _account_lines(bundle.balances, note.balances_root, note.accounts, note.partner)
    budget = {line.account: line.counters for line in accounts}.get(f"partner/{note.partner}/budget")
    if budget is None:
        raise _Wrong(f"there is no balance of partner/{note.partner}/budget")
    closing = budget.credits_posted - budget.debits_posted
    if (closing, budget.debits_pending) != (note.closing_micro, note.held_micro):
        raise _Wrong(
            f"the budget's balance is {closing} micro, {budget.debits_pending} held; the statement says "
            f"{note.closing_micro} and {note.held_micro}"
        )
    return f"{len(accounts)} accounts in the balance tree {note.balances_root[:16]}"


def _period(bundle: Bundle, log: Verifier) -> str:
    """the period is closed in the journal with these balances"""
    note = bundle.note
    if bundle.period is None:
        if note.closed == "yes":
            raise _Wrong("the statement says that its period is closed, the PERIOD record is missing")
        return f"{note.period} is open: signed as of record {note.journal_size}, not sealed"
    sealed = _sealed(bundle.period, note, log)
    same = ("period", "begin_ms", "end_ms", "accounts")
    if note.closed != "yes" or any(getattr(sealed, name) != getattr(note, name) for name in same):
        raise _Wrong(f"the PERIOD record closes {sealed.period}, the statement is of {note.period}")
    if sealed.balances != note.balances_root:
        raise _Wrong(f"the journal sealed balances {sealed.balances}, the statement has {note.balances_root}")
    if sealed.index + 1 != note.journal_size or (bundle.lines and bundle.lines[-1][0] >= sealed.records):
        raise _Wrong(f"the period was closed over {sealed.records} records by record {sealed.index}")
    return f"{note.period} sealed by record {sealed.index}"


def _opening(bundle: Bundle, log: Verifier) -> str:
    """opening balances and lines give the closing balances, nothing is missing"""
    note, before, begin = bundle.note, bundle.opening, 0
    accounts: list[AccountLine] = []
    if before is not None:
        sealed = _sealed(before.period, note, log)
        if sealed.end_ms > note.begin_ms:
            raise _Wrong(f"the opening balances are of {sealed.period}, which is no earlier period")
        accounts = _account_lines(before.balances, sealed.balances, sealed.accounts, note.partner)
        begin = sealed.records
    if bundle.lines and bundle.lines[0][0] < begin:
        raise _Wrong(f"line {bundle.lines[0][0]} belongs to an earlier period, which ended at record {begin}")
    budget = {line.account: line.counters for line in accounts}.get(f"partner/{note.partner}/budget")
    opening = budget.credits_posted - budget.debits_posted if budget else 0
    if opening != note.opening_micro:
        raise _Wrong(
            f"the earlier period closed with {opening} micro, this one opens with {note.opening_micro}"
        )
    closing = [AccountLine.parse(line) for line in bundle.balances.lines]
    if wrong := differences(accounts, _sums_of(bundle), closing):
        raise _Wrong("; ".join(wrong))
    return f"opening {note.opening_micro} micro and the lines give every closing balance: none is missing"


def _journal(bundle: Bundle, log: Verifier) -> str:
    """every line is in the journal"""
    note = bundle.note
    together = sorted([*bundle.lines, *bundle.earlier])
    if len(together) > LINES_PROVEN_MAX:
        if bundle.proof != LEFT_OUT:
            raise _Wrong(f"{len(together)} records are more than a file proves, yet it claims to")
        return f"not proven one by one: {len(together)} records are more than {LINES_PROVEN_MAX}"
    leaves = [(index, merkle.leaf_hash(leaf.encode())) for index, leaf in together]
    root = bytes.fromhex(note.journal_root)
    verify_multi(leaves, note.journal_size, _hashes(bundle.proof), root)
    return f"{len(together)} records in the journal of {note.journal_size}, root {note.journal_root[:16]}"


def _countersign(bundle: Bundle, log: Verifier) -> str:
    """the partner countersigned this statement"""
    note = bundle.note
    if bundle.countersign is None:
        return "not countersigned" if note.closed == "yes" else "an open period cannot be countersigned"
    proof, record = _in_journal(bundle.countersign, log, Kind.COUNTERSIGN)
    signed = CountersignNote.from_note(notes.parse(record.body))
    agreed = (signed.consortium, signed.partner, signed.period, signed.statement)
    if agreed != (note.consortium, note.partner, note.period, note.digest):
        raise _Wrong(f"record {proof.index} countersigns another statement, {signed.statement}")
    return f"countersigned by {note.partner} in record {proof.index}"


def _sums_of(bundle: Bundle) -> Sums:
    note = bundle.note
    sums = Sums(note.partner)
    for index, leaf in bundle.lines:
        record = Record.parse(leaf.encode())
        if record.kind is not Kind.TRANSFER or not note.begin_ms <= record.at_ms < note.end_ms:
            raise _Wrong(f"record {index} is no transfer of the period")
        sums.add(record.facts)
    return sums


def _account_lines(balances: Balances, root: str, size: int, partner: str) -> list[AccountLine]:
    if not len(balances.lines) == len(balances.indices) == len(balances.paths):
        raise _Wrong("an account has no place in the balance tree")
    found = []
    for text, index, path in zip(balances.lines, balances.indices, balances.paths, strict=True):
        hashes = [read_hash(h, "a hash of the balance proof") for h in path]
        verify_inclusion(merkle.leaf_hash(text.encode()), index, size, hashes, bytes.fromhex(root))
        line = AccountLine.parse(text)
        if not line.account.startswith(f"partner/{partner}/"):
            raise _Wrong(f"{line.account} is no account of {partner}")
        found.append(line)
    return found


def _sealed(text: str, note: StatementNote, log: Verifier) -> PeriodFacts:
    """A PERIOD record under the very root that the statement names."""
    proof, record = _in_journal(text, log, Kind.PERIOD)
    found = proof.checkpoint
    if (found.size, found.root.hex()) != (note.journal_size, note.journal_root):
        raise _Wrong(
            f"the period is proven for a journal of {found.size}, the statement is of {note.journal_size}"
        )
    names = ("period", "begin_ms", "end_ms", "records", "balances", "accounts")
    return PeriodFacts(**{name: record.facts[name] for name in names}, index=proof.index)


def _in_journal(text: str, log: Verifier, kind: Kind) -> tuple[Proof, Record]:
    proof, leaf = open_proof_file(text, log)
    record = Record.parse(leaf)
    if record.kind is not kind:
        raise _Wrong(f"record {proof.index} is {record.kind}, not {kind}")
    if len(notes.parse(proof.note).signatures) != 1:
        raise _Wrong("a checkpoint of the file has signatures that nobody checks")
    return proof, record


def pack_hashes(hashes: Sequence[bytes]) -> str:
    """How a bundle writes its proof: base64 of all hashes in a row."""
    return base64_text(b"".join(hashes))


def balances_of(lines: Sequence[tuple[int, str]], paths: Sequence[Sequence[bytes]]) -> Balances:
    """(index in the tree, account line) and the path of each."""
    return Balances(
        lines=tuple(line for _, line in lines),
        indices=tuple(index for index, _ in lines),
        paths=tuple(tuple(map(hash_text, path)) for path in paths),
    )


def _hashes(packed: str) -> list[bytes]:
    data = base64_bytes(packed, "the proof of the lines")
    if len(data) % HASH_BYTES:
        raise _Wrong(f"the proof of the lines has {len(data)} bytes, which are no hashes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _first(wrong: Exception) -> str:
    if isinstance(wrong, ValidationError):
        error = wrong.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, error['loc'])) or 'document'}: {error['msg']}"
    return str(wrong)
