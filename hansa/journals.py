"""What `hansa journal` does: prove one record in one file, check such a file far from here, publish the journal.

A proof is checked with nothing but the file and a key or a policy: no journal, no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import tomlkit
import tomlkit.exceptions

from commons import merkle
from commons.errors import Code, HansaError, Refusal, Refused, StoreError
from commons.identity import read_file
from commons.log import Checkpoint, open_proof_file, proof_text
from commons.merkle import ProofError
from commons.notes import NoteError, Verifier, parse
from commons.records import Kind, Record
from commons.tiles import TileFolder, level_tiles, published
from commons.witness_policy import Policy

if TYPE_CHECKING:
    from governance.journal.store import JournalReader
    from governance.journal.tiles import Published

PROOF_SUFFIX = ".tlog-proof"


@dataclass(frozen=True)
class Proven:
    """A record and the file that proves it."""

    origin: str
    index: int
    size: int
    """Of the checkpoint that the proof leads to."""
    record: Record
    text: str


@dataclass(frozen=True)
class Checked:
    """What a proof file proves, and by whose word."""

    origin: str
    index: int
    size: int
    root: str
    record: Record
    witnesses: dict[str, int]
    """Witness by the policy's name -> when it cosigned (Unix seconds); empty without a policy."""


@dataclass(frozen=True)
class _Source:
    """Where a proof is made from: a store or its published tiles."""

    name: str
    checkpoints: tuple[bytes, ...]
    """Notes, the one to prefer first."""
    leaf: Callable[[int], bytes]
    path: Callable[[int, int], list[bytes]]
    leaves: Callable[[], Iterator[bytes]]


def prove(home: Path, store: str, tiles: Path | None, *, index: int | None, transfer: str) -> Proven:
    """One record with its proof, from the tiles in a folder, else from the journal; by index or by a transfer's id.

    The checkpoint is the newest with cosignatures where it covers the record. Raises HansaError when there is no such
    record, StoreError when the source does not prove its own record.
    """
    if (index is None) == (not transfer):
        raise HansaError("name one record: by its INDEX, or by --transfer ID")
    with _source(home, store, tiles) as source:
        found = _find_transfer(source, transfer) if index is None else index
        note, checkpoint = _covering(source, found)
        leaf, path = source.leaf(found), source.path(found, checkpoint.size)
        try:
            merkle.verify_inclusion(merkle.leaf_hash(leaf), found, checkpoint.size, path, checkpoint.root)
        except ProofError as wrong:
            raise StoreError(f"{source.name} does not prove its own record {found}: {wrong}") from wrong
        text = proof_text(found, path, note, extra=leaf)
        return Proven(checkpoint.origin, found, checkpoint.size, Record.parse(leaf), text)


def check(file: Path, *, key: str, seat: Path | None, policy: Path | None) -> Checked:
    """Check a proof file against a log's key (text or file), a seat's log key, a policy file; each where given.

    Raises Refused (proof_invalid) when the file proves nothing, HansaError when a file cannot be read.
    """
    rules = _policy(policy) if policy else None
    verifier = seat_key(seat) if seat else log_key(key) if key else None
    if verifier is None and rules is None:
        raise HansaError(
            "whose journal? Give its log key (--key), a seat that knows it (--seat), or --policy FILE"
        )
    text = read_file(file, "give the file that `hansa journal prove` wrote").decode(
        "utf-8", "surrogateescape"
    )
    try:
        proof, leaf = open_proof_file(text, verifier, rules)
        record = Record.parse(leaf)
        witnesses = rules.witnessed(proof.note)[1] if rules else {}
    except (NoteError, ProofError, ValueError) as wrong:
        raise Refused(
            Refusal(
                Code.PROOF_INVALID,
                f"{file} proves nothing: {wrong}; whoever gave it to you must send another",
            )
        ) from wrong
    checkpoint = proof.checkpoint
    return Checked(checkpoint.origin, proof.index, checkpoint.size, checkpoint.root.hex(), record, witnesses)


def publish_tiles(home: Path, store: str, folder: Path, *, entries: bool) -> Published:
    """Bring a folder of tiles up to date: to the newest checkpoint with cosignatures, unless the folder is ahead of it."""
    from governance.journal.store import open_readonly
    from governance.journal.tiles import publish

    journal = open_readonly(store or home)
    try:
        return publish(journal, folder, entries=entries, checkpoint=_to_publish(journal, folder))
    finally:
        journal.close()


def write_proof(proven: Proven, out: Path | None) -> Path:
    """Write the file, by default ``<origin>-<index>.tlog-proof`` here. Raises StoreError."""
    from commons.identity import write_file

    path = out or Path(f"{proven.origin.replace('/', '-')}-{proven.index}{PROOF_SUFFIX}")
    write_file(path, proven.text.encode())
    return path


def readable(record: Record) -> list[str]:
    """A record for a person: its kind and time, then its facts or its note, nothing invisible left invisible."""
    at = datetime.fromtimestamp(record.at_ms / 1000, timezone.utc)
    try:
        facts = json.loads(record.body)
        body = json.dumps(facts, indent=2, ensure_ascii=False)
    except ValueError:
        body = record.body.decode("utf-8", "backslashreplace").rstrip("\n")
    return [f"{record.kind}, {at:%Y-%m-%d %H:%M:%S} UTC", *map(_visible, body.split("\n"))]


def witnesses_text(names: Iterable[str]) -> str:
    """For a sentence: whose cosignatures hold."""
    return ", ".join(map(_visible, names)) or "no witness asked for"


def log_key(text: str) -> Verifier:
    """A log's verifier key, given as its text or as a file that holds it. Raises HansaError."""
    try:
        return Verifier.from_vkey(vkey_text(text))
    except NoteError as wrong:
        raise HansaError(f"no log key: {wrong}; the consortium's charter names it (log_key)") from wrong


def vkey_text(text: str) -> str:
    """A key as given on a command line: itself, or what the file of that name holds."""
    path = Path(text)
    return (
        read_file(path, "").decode("utf-8", "replace").strip() if "+" not in text or path.is_file() else text
    )


@contextmanager
def _source(home: Path, store: str, tiles: Path | None) -> Iterator[_Source]:
    if tiles is not None:
        yield _from_tiles(tiles)
        return
    from governance.journal.store import open_readonly

    journal = open_readonly(store or home)
    try:
        yield _Source(
            f"the journal {journal.location}",
            (journal.published(), journal.checkpoint()),
            lambda index: journal.record(index).leaf,
            journal.inclusion,
            lambda: (record.leaf for record in journal.records()),
        )
    finally:
        journal.close()


def _from_tiles(folder: Path) -> _Source:
    note = published(folder)
    if note is None:
        raise StoreError(
            f"{folder} holds no published journal; `hansa journal tiles {folder} --entries` makes one"
        )
    size = _read(note, str(folder)).size
    tiles = TileFolder(folder, size)
    if not tiles.has_entries:
        raise StoreError(f"{folder} holds no records, only hashes: publish it with --entries")
    return _Source(
        f"the folder {folder}",
        (note,),
        tiles.entry,
        lambda index, size: merkle.inclusion_proof(index, size, tiles.hash_at),
        lambda: (entry for tile in level_tiles(None, size) for entry in tiles.entries(tile)),
    )


def _covering(source: _Source, index: int) -> tuple[bytes, Checkpoint]:
    notes = [(note, _read(note, source.name)) for note in source.checkpoints if note]
    for note, checkpoint in notes:
        if 0 <= index < checkpoint.size:
            return note, checkpoint
    size = max((checkpoint.size for _, checkpoint in notes), default=0)
    raise HansaError(f"{source.name} has {size} records: there is none with index {index}")


def _find_transfer(source: _Source, transfer: str) -> int:
    wanted = transfer.encode()
    for index, leaf in enumerate(source.leaves()):
        if leaf.startswith(b"transfer ") and wanted in leaf:
            record = Record.parse(leaf)
            if record.kind is Kind.TRANSFER and record.facts.get("id") == transfer:
                return index
    raise HansaError(f"{source.name} has no transfer {transfer!r}; `hansa budget show` lists their ids")


def _to_publish(journal: JournalReader, folder: Path) -> bytes:
    cosigned, newest, before = journal.published(), journal.checkpoint(), published(folder)
    there = _read(before, str(folder)).size if before else 0
    return cosigned if cosigned and _read(cosigned, journal.location).size >= there else newest


def _policy(path: Path) -> Policy:
    try:
        return Policy.parse(read_file(path, "give a C2SP tlog-policy file"))
    except NoteError as wrong:
        raise HansaError(f"{path} is no trust policy: {wrong}") from wrong


def seat_key(folder: Path) -> Verifier:
    """The log key of a seat, also of one whose certificate has expired: the key has not."""
    data = read_file(folder / "seat.toml", "give the log's key with --key, or --policy FILE")
    try:
        return Verifier.from_vkey(str(tomlkit.parse(data.decode()).unwrap().get("log_key", "")))
    except (tomlkit.exceptions.TOMLKitError, ValueError) as wrong:
        raise HansaError(f"{folder / 'seat.toml'} names no log key: {wrong}") from wrong


def _read(note: bytes, where: str) -> Checkpoint:
    try:
        return Checkpoint.read(parse(note))
    except NoteError as wrong:
        raise StoreError(f"the checkpoint of {where} cannot be read: {wrong}") from wrong


def _visible(line: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
