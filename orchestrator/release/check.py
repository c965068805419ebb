"""Checking a release offline: every byte, every signature, and its place in the consortium's journal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from commons import charter_file
from commons.charter import Charter
from commons.errors import Refusal, StoreError
from commons.experts.map import ExpertMap
from commons.experts.own import PREFIX as OWN_LAYERS
from commons.experts.readers import PREFIX as READER
from commons.experts.stored import MODEL, OWN, READERS, weights_files
from commons.experts.tokenizer import FILE
from commons.founding import check_founding
from commons.log import open_proof
from commons.merkle import ProofError
from commons.notes import NoteError, Verifier, digest, digest_file, open_note, read
from commons.records import Kind, Record
from commons.states import read_manifest
from commons.states.naming import name_of
from orchestrator.release.layout import (
    CHARTER,
    FOUNDING,
    MANIFEST,
    NOTE,
    NOTE_KEYS,
    NOTE_KIND,
    PROOF,
    RECORD,
    SEED,
    STATE,
    UNLISTED,
    slices_in,
)


def verify(folder: Path) -> list[str]:
    """Everything that is wrong with a release, each in a sentence; empty when it is valid. Needs no network.

    1 every founder signed the founding charter 2 its log key signed the release 3 the signed manifest is the
    one here 4 every file is as listed, and no other is here 5 the files of weights hold the signed state, and the
    seed's the state that the manifest names, with the charter's tokenizer beside them 6 the journal recorded the release. Who the founders are is for the reader to know.
    """
    try:
        founded = charter_file.from_canonical((folder / FOUNDING / CHARTER).read_bytes())
        verifier = Verifier.from_vkey(founded.consortium.log_key)
        problems = list(_founding(folder, founded))
        note = open_note((folder / NOTE).read_bytes(), [verifier])
        said = read(note, NOTE_KIND, NOTE_KEYS)
        manifest_text = (folder / MANIFEST).read_bytes()
        if digest(manifest_text) != said["manifest"]:
            problems.append(f"{MANIFEST} is not the one that was signed")
        manifest = json.loads(manifest_text)
        problems += _files(folder, manifest)
        problems += _facts(folder, founded, manifest, said)
        problems += _record(folder, verifier, note.data)
    except OSError as error:
        return [f"{Path(error.filename or folder).name}: {error.strerror}; fetch the release again"]
    except (NoteError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"the release cannot be read: {error}"]
    return problems


def _founding(folder: Path, founded: Charter) -> Iterator[str]:
    named, signed = charter_file.digest(founded), set()
    for file in sorted((folder / FOUNDING).glob("*.note")):
        found = check_founding(file.read_bytes(), founded, named)
        if isinstance(found, Refusal):
            yield f"{FOUNDING}/{file.name}: {found.message}"
        else:
            signed.add(found)
    lacking = [m.name for m in founded.members if m.name not in signed]
    if lacking:
        yield f"{', '.join(lacking)} did not sign the founding charter"


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    listed = manifest["files"]
    for name, entry in sorted(listed.items()):
        plain = PurePosixPath(name)
        file = folder / name
        if plain.is_absolute() or ".." in plain.parts or file.is_symlink():
            yield f"{name} is no plain file of this folder"
        elif not file.is_file():
            yield f"{name} is missing"
        elif file.stat().st_size != entry["bytes"]:
            yield f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
        elif digest_file(file) != entry["sha256"]:
            yield f"{name} was changed: its SHA-256 is not the one in {MANIFEST}"
    here = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if not f.is_dir()}
    for name in sorted(here - set(listed) - UNLISTED):
        yield f"{name} is not part of the release"


def _facts(folder: Path, founded: Charter, manifest: dict[str, Any], said: dict[str, str]) -> Iterator[str]:
    for key in ("consortium", "run", "round", "state", "licence"):
        if str(manifest[key]) != said[key]:
            yield f"{MANIFEST} says {key} {manifest[key]}, the signed note {said[key]}"
    charter = charter_file.from_canonical((folder / CHARTER).read_bytes())
    if charter.consortium != founded.consortium or said["consortium"] != founded.consortium.name:
        yield f"{CHARTER} is of another consortium than the founders'"
    yield from _tokenizer(folder, charter)
    yield from _model(folder, said["state"], ExpertMap.from_charter(charter))
    if charter.release.seed_beside:
        yield from _seed(folder / SEED, manifest["seed"])


def _seed(folder: Path, state: str) -> Iterator[str]:
    """As `_model`, of the seed, whose readers and own layers are not there."""
    charter = charter_file.from_canonical((folder / CHARTER).read_bytes())
    plain = charter.model.shared
    expert_map = ExpertMap.from_charter(charter.model_copy(update={"model": plain}))
    found = (*_tokenizer(folder, charter), *_model(folder, state, expert_map))
    yield from (f"{SEED}/{problem}" for problem in found)


def _tokenizer(folder: Path, charter: Charter) -> Iterator[str]:
    named = charter.model.tokenizer.file
    if named and (found := digest_file(folder / FILE)) != named:
        yield f"{FILE} is {found}, the charter's tokenizer is {named}"


def _model(folder: Path, state: str, expert_map: ExpertMap) -> Iterator[str]:
    """The state's manifest is the signed one, and the files of weights hold exactly its slices, as far as the map has them."""
    data = (folder / STATE).read_bytes()
    if (named := name_of(data)) != state:
        yield f"{STATE} is the manifest of model state {named}, signed was {state}"
        return
    try:
        read = {name: (blob.digest, blob.shape) for name, blob in read_manifest(data).items()}
        without = () if expert_map.readers else (READER, OWN_LAYERS)
        slices = {n: s for n, s in read.items() if not n.startswith(without)}
        held = {
            n: s
            for file in weights_files(expert_map)
            for n, s in slices_in(folder / file, expert_map).items()
        }
    except (StoreError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{MODEL} cannot be read: {error}"
        return
    other = [n for n in sorted(slices.keys() | held.keys()) if slices.get(n) != held.get(n)]
    if other:
        file = {READER: READERS, OWN_LAYERS: OWN}.get(f"{other[0].partition('.')[0]}.", MODEL)
        yield f"{file} does not hold model state {state}: {len(other)} tensors differ, first {other[0]}"


def _record(folder: Path, verifier: Verifier, note: bytes) -> Iterator[str]:
    leaf = (folder / RECORD).read_bytes()
    record = Record.parse(leaf)
    if (record.kind, record.body) != (Kind.RELEASE, note):
        yield f"{RECORD} records another release than {NOTE}"
    try:
        open_proof((folder / PROOF).read_text(), leaf, verifier)
    except (NoteError, ProofError) as error:
        yield f"{PROOF} does not show the release in the journal: {error}"
