"""The journal's store: durable append, proofs, and what to do when the disk disagrees.

Owns the tables of `governance.journal.schema`. Knows nothing of what the records mean. One process writes
(`Journal`), any number read (`open_readonly`). The right edge of the tree is kept in memory, so that an append
hashes and inserts but never reads the tree.
"""

from __future__ import annotations

import contextlib
import copy
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, func, insert, inspect, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from commons import merkle
from commons.clock import Clock
from commons.errors import StoreError
from commons.log import Checkpoint
from commons.merkle_multi import multi_nodes, multi_proof
from commons.notes import NoteError, Signer
from commons.records import Record
from governance.journal.audit import Broken, Progress, audit, broken
from governance.journal.engine import WriterLock, describe, engine_for, resolve
from governance.journal.lookup import read_hashes, read_leaves
from governance.journal.migrate import back_up, check_schema, count_opening, is_older
from governance.journal.rows import Row, insert_rows
from governance.journal.schema import checkpoints, nodes, read_meta, records, set_meta

APPEND_RECORDS_MAX = 10_000
"""Records of one append; a limit against mistakes, far above any round."""
_PAGE = 1000


class JournalReader:
    """What anyone may ask of a journal. All answers are about whole, committed records."""

    def __init__(self, url: URL, engine: Engine) -> None:
        self.location = describe(url)
        self._engine = engine
        self._hash_at = lru_cache(maxsize=65_536)(self._read_hash)

    @property
    def size(self) -> int:
        with self._reading() as connection:
            return _stored_size(connection)

    def root(self) -> bytes:
        """Root hash of all records (RFC 6962), 32 bytes."""
        return merkle.Frontier.load(self.size, self._hash_at).root()

    def checkpoint(self) -> bytes:
        """The last checkpoint this journal signed, as a note; covers all records. Empty when there is none yet."""
        with self._reading() as connection:
            return read_meta(connection).get("checkpoint", "").encode()

    def published(self) -> bytes:
        """The newest checkpoint that was stored with its cosignatures, as a note. Empty when there is none."""
        with self._reading() as connection:
            if not inspect(connection).has_table(checkpoints.name):  # schema 1, read as it is
                return b""
            newest = select(checkpoints.c.note).order_by(checkpoints.c.size.desc()).limit(1)
            return (connection.execute(newest).scalar() or "").encode()

    def record(self, i: int) -> Record:
        """The record at index `i`. Raises IndexError beyond the end, StoreError when it was changed on disk."""
        if i < 0:
            raise IndexError(f"no record {i}")
        found = next(self.records(i, stop=i + 1), None)
        if found is None:
            raise IndexError(f"no record {i} in a journal of {self.size}")
        return found

    def records(self, start: int = 0, *, stop: int | None = None) -> Iterator[Record]:
        """Records from `start` in order, read in pages, each checked against its leaf hash.

        Raises StoreError naming the index of a record that is missing or was changed on disk.
        """
        stop = self.size if stop is None else stop
        while start < stop:
            query = select(records).where(records.c.idx >= start, records.c.idx < min(start + _PAGE, stop))
            with self._reading() as connection:
                page = connection.execute(query.order_by(records.c.idx)).all()
            if not page:
                return
            for idx, leaf, leaf_hash in page:
                if idx != start or merkle.leaf_hash(leaf) != leaf_hash:
                    what = "is missing" if idx != start else "was changed on disk"
                    raise StoreError(broken(self.location, start, what))
                yield _parse(self.location, idx, leaf)
                start += 1

    def leaves(self, indices: Sequence[int]) -> list[bytes]:
        """The leaves of many records, in the order of `indices`. Raises StoreError as `records` does."""
        with self._reading() as connection:
            found = read_leaves(connection, indices)
        for i in indices:
            if i not in found:
                raise StoreError(broken(self.location, i, "is missing or was changed on disk"))
        return [found[i] for i in indices]

    def root_at(self, size: int) -> bytes:
        """Root hash of the first `size` records. Raises ProofError when there are not so many."""
        self._check_size(size)
        return merkle.Frontier.load(size, self._hash_at).root()

    def multi_proof(self, indices: Sequence[int], size: int) -> list[bytes]:
        """One proof of many records in the tree of the first `size` (`commons.merkle_multi`). Raises ProofError."""
        self._check_size(size)
        with self._reading() as connection:
            found = read_hashes(connection, multi_nodes(indices, size))
        return multi_proof(
            indices, size, lambda level, at: found.get((level, at)) or self._hash_at(level, at)
        )

    def inclusion(self, i: int, size: int) -> list[bytes]:
        """Path that shows record `i` in the tree of the first `size` records. Raises ProofError when it has none."""
        self._check_size(size)
        return merkle.inclusion_proof(i, size, self._hash_at)

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Path that shows the first `new` records extend the first `old`. Raises ProofError for impossible sizes."""
        self._check_size(new)
        return merkle.consistency_proof(old, new, self._hash_at)

    def verify(self) -> list[str]:
        """Read and hash everything again, against leaf hashes, nodes and the signed checkpoint.

        Every problem in a sentence, with the record's index and what to do; empty when all is well.
        """
        return [str(found) for found in self.inspect()]

    def inspect(self, progress: Progress | None = None) -> list[Broken]:
        """What `verify` finds, taken apart. `progress` is told how many records were read."""
        with self._reading() as connection:
            if connection.dialect.name == "postgresql":  # one snapshot, however much is appended meanwhile
                connection.execution_options(isolation_level="REPEATABLE READ")
            return audit(connection, self.location, progress)

    def close(self) -> None:
        self._engine.dispose()

    def _check_size(self, size: int) -> None:
        if size > self.size:
            raise merkle.ProofError(f"the journal has {self.size} records, not {size}")

    def _read_hash(self, level: int, index: int) -> bytes:
        if level == 0:
            query = select(records.c.leaf_hash).where(records.c.idx == index)
        else:
            query = select(nodes.c.hash).where(nodes.c.level == level, nodes.c.idx == index)
        with self._reading() as connection:
            found = connection.execute(query).scalar()
        if found is None:
            low, high = index << level, (index + 1) << level
            raise StoreError(
                broken(self.location, low, f"(or one up to {high - 1}) lost its place in the tree")
            )
        return bytes(found)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _as_store_error(self.location), self._engine.connect() as connection:
            yield connection


class Journal(JournalReader):
    """The one writer. Safe to share between threads; appends are one after the other."""

    @classmethod
    def open(cls, url: str | Path, *, signer: Signer, clock: Clock) -> Journal:
        """Open the journal at `url` for writing, creating it when there is none.

        Raises StoreError, with nothing changed: another process holds it, a newer version of the program wrote
        it, it belongs to another log key, or its last records are not the ones last signed.
        """
        resolved = resolve(url)
        if resolved.get_backend_name() == "sqlite":
            with _as_store_error(describe(resolved)):
                Path(str(resolved.database)).parent.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(resolved, now_ms=clock.now_ms())
        engine = engine_for(resolved, readonly=False)
        try:
            return cls(resolved, engine, lock, signer)
        except BaseException:
            engine.dispose()
            lock.release()
            raise

    def __init__(self, url: URL, engine: Engine, lock: WriterLock, signer: Signer) -> None:
        super().__init__(url, engine)
        self._lock = lock
        self._signer = signer
        self._mutex = threading.Lock()
        self._in_doubt = ""
        with _as_store_error(self.location):
            self._writer = engine.connect().execution_options(writes=True)
        try:
            self._enter()
        except BaseException:
            self._writer.close()
            raise

    def _enter(self) -> None:
        """Take the lock, check or create the tables, count the opening, load the right edge of the tree."""
        with _as_store_error(self.location):
            self._lock.take_session(self._writer)
            older = is_older(self._writer, self.location, self._signer)
            self._writer.rollback()
            if older:
                self._load_edge()  # what is broken is not migrated
                back_up(self._writer, self.location)
            with self._writer.begin():
                self.epoch = count_opening(self._writer, self.location, self._signer)
        self._load_edge()
        self._checkpoint = self._sign(self._frontier)

    def _load_edge(self) -> None:
        self._frontier = merkle.Frontier.load(super().size, self._hash_at)
        self._check_signed(super().checkpoint())

    @property
    def size(self) -> int:
        return self._frontier.size

    def root(self) -> bytes:
        return self._frontier.root()

    def checkpoint(self) -> bytes:
        """The signed checkpoint over all records (also over none)."""
        return self._checkpoint

    def append(self, batch: Sequence[Record]) -> list[int]:
        """Add records in one durable transaction; their indices. On return they survive a power cut.

        All or nothing: on StoreError (disk full, disk broken, session lost) journal and memory are as before.
        When even that cannot be made sure of, the journal refuses every later append until it is opened again.
        """
        assert len(batch) <= APPEND_RECORDS_MAX, f"{len(batch)} records in one append"
        if not batch:
            return []
        with self._mutex:
            if self._in_doubt:
                raise StoreError(self._in_doubt)
            first = self._frontier.size
            frontier = copy.deepcopy(self._frontier)
            leaves: list[Row] = []
            above: list[Row] = []
            for record in batch:
                leaf = record.leaf
                (_, idx, leaf_hash), *rest = frontier.append(merkle.leaf_hash(leaf))
                leaves.append((idx, leaf, leaf_hash))
                above += rest
            checkpoint = self._sign(frontier)
            try:
                self._commit(leaves, above, checkpoint)
            except SQLAlchemyError as wrong:
                self._settle_doubt(first)
                raise _explain(
                    wrong, self.location, f"nothing was written, all {first} records are intact"
                ) from wrong
            self._frontier, self._checkpoint = frontier, checkpoint
            return list(range(first, frontier.size))

    def publish(self, size: int, note: bytes) -> None:
        """Store a cosigned checkpoint of `size` records for good; a second one of that size changes nothing.

        Raises StoreError as `append` does.
        """
        with self._mutex:
            if self._in_doubt:
                raise StoreError(self._in_doubt)
            try:
                with self._writer.begin():
                    self._check_epoch()
                    known = select(checkpoints.c.size).where(checkpoints.c.size == size)
                    if self._writer.execute(known).scalar() is None:
                        self._writer.execute(insert(checkpoints).values(size=size, note=note.decode()))
            except SQLAlchemyError as wrong:
                self._settle_doubt(self._frontier.size)
                raise _explain(wrong, self.location, "the checkpoint was not stored") from wrong

    def close(self) -> None:
        """Let go of the store. Asked twice: nothing more happens."""
        with self._mutex:
            self._in_doubt = self._in_doubt or f"the journal {self.location} is closed"
            self._writer.close()
            super().close()
            self._lock.release()

    def _commit(self, leaves: Sequence[Row], above: Sequence[Row], checkpoint: bytes) -> None:
        with self._writer.begin():
            self._check_epoch()
            insert_rows(self._writer, records, leaves)
            insert_rows(self._writer, nodes, above)
            set_meta(self._writer, "checkpoint", checkpoint.decode())

    def _check_epoch(self) -> None:
        if read_meta(self._writer).get("epoch") != str(self.epoch):
            raise StoreError(
                f"the journal {self.location} was opened by another coordinator; this one must stop"
            )

    def _settle_doubt(self, first: int) -> None:
        """After a failed commit: are the stored records the ones in memory, and may this session go on?"""
        restart = f"the journal {self.location} could not be read back after a failed append; start the coordinator again"
        try:
            if self._writer.invalidated or super().size != first:
                self._in_doubt = restart
        except StoreError:
            self._in_doubt = restart

    def sign(self, text: str) -> bytes:
        """A note by the log key. The caller promises that what it says is so."""
        return self._signer.sign(text)

    def _sign(self, frontier: merkle.Frontier) -> bytes:
        return Checkpoint(self._signer.name, frontier.size, frontier.root()).sign(self._signer)

    def _check_signed(self, note: bytes) -> None:
        signed = None
        with contextlib.suppress(NoteError):
            signed = Checkpoint.open(note, self._signer.verifier)
        if signed is None and not note and self._frontier.size == 0:
            return
        if signed is None or (signed.size, signed.root) != (self._frontier.size, self._frontier.root()):
            problems = self.verify() or [
                broken(self.location, self._frontier.size - 1, "is not what was signed")
            ]
            raise StoreError("\n".join(problems))


def open_readonly(url: str | Path) -> JournalReader:
    """Open an existing journal for reading, beside a running coordinator or without one.

    Raises StoreError when there is none at `url`, or a newer version of the program wrote it.
    """
    resolved = resolve(url)
    location = describe(resolved)
    if resolved.get_backend_name() == "sqlite" and not Path(str(resolved.database)).is_file():
        raise StoreError(f"there is no journal at {location}; give the coordinator's home or its store URL")
    engine = engine_for(resolved, readonly=True)
    try:
        with _as_store_error(location), engine.connect() as connection:
            if not inspect(connection).has_table("meta"):
                raise StoreError(f"{location} holds no journal")
            check_schema(read_meta(connection), location)
    except BaseException:
        engine.dispose()
        raise
    return JournalReader(resolved, engine)


def _stored_size(connection: Connection) -> int:
    last = connection.execute(select(func.max(records.c.idx))).scalar()
    return 0 if last is None else int(last) + 1


def _parse(location: str, idx: int, leaf: bytes) -> Record:
    try:
        return Record.parse(leaf)
    except ValueError as wrong:
        raise StoreError(
            f"record {idx} of the journal {location} cannot be read ({wrong}); update Hansa"
        ) from wrong


@contextlib.contextmanager
def _as_store_error(location: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as wrong:
        raise _explain(wrong, location, "nothing was changed") from wrong


def _explain(wrong: Exception, location: str, state: str) -> StoreError:
    cause = str(wrong.orig if isinstance(wrong, DBAPIError) else wrong).strip().partition("\n")[0]
    full = "disk is full" in cause or "No space left" in cause or "could not extend file" in cause
    act = (
        "the disk is full; free some space and try again" if full else "check the disk or the database server"
    )
    return StoreError(f"the journal {location} cannot be used: {cause}; {state}: {act}")
