"""An audit of a whole journal that trusts nobody: not the disk, and not the coordinator that holds the log key.

Read-only. First the store: every hash again, up to the signed checkpoint, and published tiles against it. Then the
rules, replayed from the raw records: law and signatures, rounds and work, money to the last micro, corrections and
periods. Written from what a journal promises and not from the code that writes it; the readers share no line with
the coordinator's views and ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from commons import merkle
from commons.errors import StoreError
from commons.lodging import LodgedBallot
from commons.log import Checkpoint
from commons.merkle import ProofError
from commons.notes import NoteError, Verifier
from commons.records import Record
from commons.states import StateStore
from commons.tiles import TileFolder, level_tiles, verify_folder
from governance.fsck_claims import Claims
from governance.fsck_findings import ACTS, Finding, Findings, Rule
from governance.fsck_lodged import check_lodged
from governance.fsck_money import Money
from governance.fsck_rounds import Rounds
from governance.fsck_votes import Votes
from governance.journal import open_readonly
from governance.journal.store import JournalReader

__all__ = ["Finding", "FsckReport", "Progress", "Rule", "fsck"]

Progress = Callable[[str, int, int], None]
"""(what is being checked, records done, records in all)"""
_EVERY = 4096
_NOT_UNDERSTOOD = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)
"""What a record written by somebody else can make its reader raise."""


@dataclass(frozen=True)
class FsckReport:
    location: str
    records: int
    """In the store."""
    judged: int
    """To how many of them the rules were applied; fewer than `records` when one cannot be read."""
    tiles: int | None
    """Records that the tiles' checkpoint signs for; None when no tiles were looked at or it cannot be trusted."""
    findings: tuple[Finding, ...]
    """By index of the first record concerned."""
    remade: int = 0
    """Re-made states that were computed again."""

    @property
    def clean(self) -> bool:
        return not self.findings


def fsck(
    url: str | Path,
    *,
    tiles: Path | None = None,
    states: StateStore | None = None,
    lodged: Sequence[LodgedBallot] = (),
    progress: Progress | None = None,
) -> FsckReport:
    """Audit the journal at `url`, beside a running coordinator or without one; `tiles`: a folder published from it.
    `states`: model states, to compute again those that were re-made. `lodged`: ballots that sites keep.

    Judges the records that are there when it begins. Raises StoreError when there is no journal to read.
    """
    reader = open_readonly(url)
    try:
        findings = Findings()
        size = reader.size
        tell = progress or _in_silence
        for broken in reader.inspect(lambda done: tell("hashes", min(done, size), size)):
            findings.put(Finding(Rule.TREE, broken.index, broken.what, broken.act))
        audit = _Audit(findings, states, lodged)
        judged = audit.read(reader, size, tell)
        log = audit.votes.log
        published = None
        if log is not None:
            _check_checkpoints(reader, log, findings)
            published = _check_tiles(reader, tiles, log, findings) if tiles else None
        return FsckReport(reader.location, size, judged, published, findings.all(), audit.remade)
    finally:
        reader.close()


def judge(records: list[Record], lodged: Sequence[LodgedBallot] = ()) -> tuple[Finding, ...]:
    """Only the rules, over records from wherever they come."""
    audit = _Audit(Findings(), lodged=lodged)
    for index, record in enumerate(records):
        audit.take(index, record)
    audit.finish(len(records))
    return audit.findings.all()


class _Audit:
    """The readers of one journal. Each record goes through all of them, in order."""

    def __init__(
        self, findings: Findings, states: StateStore | None = None, lodged: Sequence[LodgedBallot] = ()
    ) -> None:
        self.findings, self._lodged = findings, lodged
        self.votes = Votes(findings)
        self._money = Money(findings, self.votes)
        self._rounds = Rounds(findings, self.votes, self._money.held, states)
        self._money.attend(self._rounds)
        self._claims = Claims(findings, self.votes, self._money)

    @property
    def remade(self) -> int:
        return self._rounds.remade.computed

    def read(self, reader: JournalReader, size: int, tell: Progress) -> int:
        """How many records could be read."""
        done = 0
        try:
            for record in reader.records(stop=size):
                self.take(done, record)
                done += 1
                if done % _EVERY == 0 or done == size:
                    tell("rules", done, size)
        except StoreError:
            return done  # the tree's finding names the record
        self.finish(size)
        return done

    def take(self, index: int, record: Record) -> None:
        try:
            self._claims.turn(index, record.at_ms)
            for reader in (self.votes, self._money, self._claims, self._rounds):
                reader.take(index, record)
        except _NOT_UNDERSTOOD as wrong:
            what = f"is a {record.kind} record that cannot be: {type(wrong).__name__}: {str(wrong)[:300]}"
            self.findings.add(Rule.FORM, index, what)

    def finish(self, size: int) -> None:
        for reader in (self.votes, self._money, self._claims, self._rounds):
            reader.finish(size)
        if self._lodged:
            check_lodged(self.findings, self.votes, self._lodged, size)


def _check_checkpoints(reader: JournalReader, log: Verifier, findings: Findings) -> None:
    """The signed and the published checkpoint are by the founders' log key, and of this very tree."""
    for name, note in (("last signed", reader.checkpoint()), ("last published", reader.published())):
        if not note:
            continue
        try:
            signed = Checkpoint.open(note, log)
        except NoteError as wrong:
            what = f"the {name} checkpoint is not by the log key in the founding charter: {wrong}"
            findings.put(Finding(Rule.CHECKPOINT, 0, what, ACTS[Rule.CHECKPOINT]))
            continue
        if wrong_root := _contradiction(reader, signed):
            what = f"the {name} checkpoint, over {signed.size} records, is not of this journal: {wrong_root}"
            findings.put(Finding(Rule.CHECKPOINT, max(0, signed.size - 1), what, ACTS[Rule.CHECKPOINT]))


def _contradiction(reader: JournalReader, signed: Checkpoint) -> str:
    """Why the store does not extend what was signed; empty when it does."""
    try:
        root = reader.root_at(signed.size)
    except (ProofError, StoreError) as wrong:
        return str(wrong)
    return "" if root == signed.root else f"root {root.hex()[:16]}, signed is {signed.root.hex()[:16]}"


def _check_tiles(reader: JournalReader, folder: Path, log: Verifier, findings: Findings) -> int | None:
    """The files are whole, and the same tree as the store's."""
    signed, problems = verify_folder(folder, log)
    act = ACTS[Rule.TILES]
    for problem in problems:
        findings.put(Finding(Rule.TILES, 0, problem, act))
    if signed is None:
        return None
    if wrong := _contradiction(reader, signed):
        index = _first_difference(reader, TileFolder(folder, signed.size))
        what = (
            f"record {index} in the tiles in {folder} is not the one in the store, under one log key: {wrong}"
        )
        findings.put(Finding(Rule.TILES, index, what, act))
    return signed.size


def _first_difference(reader: JournalReader, folder: TileFolder) -> int:
    """The first record whose hash differs, or that only one of them has."""
    index = 0
    with suppress(StoreError):  # what cannot be read has its own finding
        records = reader.records(stop=min(reader.size, folder.size))
        for tile in level_tiles(0, folder.size):
            for published, record in zip(folder.hashes(tile), records, strict=False):
                if published != merkle.leaf_hash(record.leaf):
                    return index
                index += 1
    return index


def _in_silence(_what: str, _done: int, _size: int) -> None:
    """Nobody watches."""
