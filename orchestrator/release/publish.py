"""Writing a release: an ordinary Hugging Face folder with a signed manifest and its place in the journal.

The folder appears whole or not at all. The same run state gives the same model, manifest and note.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from commons import charter_file
from commons.charter import Charter
from commons.disk import sync
from commons.errors import Code, Refusal, StoreError
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap
from commons.experts.stored import MODEL, weights_files
from commons.experts.tokenizer import put_tokenizer
from commons.log import proof_text
from commons.names import Digest
from commons.notes import compose, digest, digest_file
from commons.records import Kind, Record, canonical_json
from orchestrator.desk import Desk
from orchestrator.progress import RunState
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
    write_tensors,
)

_READERS = (
    "The experts of one site read a text, and `readers.safetensors` finds out whose: `hansa.released.load` puts both",
    "together, and the losses above are measured so. transformers alone loads `model.safetensors`, with the learned",
    "router, which is far worse on any text.",
    "",
)
_OWN = (
    "From some layer on each site has its own trunk, in `own.safetensors`, which `hansa.released.load` puts in its place. What",
    "`model.safetensors` has there is the seed's.",
    "",
)
_SEED = (
    "`seed/` is the model that the run began from. `hansa.released.load` reads every text with both, and text that the new",
    "one reads worse falls to the seed, which is nobody's. The losses above are of the new model alone.",
    "",
)


@dataclass(frozen=True)
class Made:
    folder: Path
    manifest: Digest


def make(desk: Desk, run: RunState, folder: Path) -> Made | Refusal:
    """Release the run's last combined state into `folder`, which must not exist.

    Raises StoreError when the disk refuses; no folder is left then.
    """
    if not run.closed:
        return Refusal(Code.NO_RUN, f"run {run.run} has closed no round: there is nothing to release yet")
    if folder.exists():
        return Refusal(Code.REQUEST_INVALID, f"{folder} exists; the operator names a folder that does not")
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        made = _fill(desk, run, draft)
        draft.replace(folder)
    except OSError as error:
        raise StoreError(
            f"cannot write the release {folder}: {error.strerror or error}; make room, try again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Made(folder, made)


def _fill(desk: Desk, run: RunState, draft: Path) -> Digest:
    with desk.consortium.lock:
        charters = desk.consortium.members.charters
        founding_notes = [r.body for r in desk.consortium.journal.records() if r.kind is Kind.FOUNDING]
        state, number = run.state, run.closed
        version = max(run.map_version, run.history[number - 1].charter_version)
        charter, first = charters[version], charters[1]
        began, seed = charters[run.history[0].charter_version], run.history[0].base
    _put_model(desk, draft, charter, state, readers=True)
    if charter.release.seed_beside:
        (draft / SEED).mkdir()
        _put_model(desk, draft / SEED, began, seed, readers=False)
    (draft / FOUNDING).mkdir()
    (draft / FOUNDING / CHARTER).write_bytes(charter_file.canonical(first))
    for index, note in enumerate(founding_notes):
        (draft / FOUNDING / f"{index:03d}.note").write_bytes(note)
    (draft / "DATA.md").write_text(_data_statements(charter))
    (draft / "README.md").write_text(_card(charter, run))
    manifest = _manifest(draft, charter, run, number, state, seed)
    (draft / MANIFEST).write_bytes(manifest)
    _sign(
        desk,
        draft,
        (charter.consortium.name, run.run, str(number), state, digest(manifest), charter.release.licence),
    )
    for file in draft.rglob("*"):
        if file.is_file():
            sync(file)
    return digest(manifest)


def _put_model(desk: Desk, folder: Path, charter: Charter, state: Digest, *, readers: bool) -> None:
    """A state as a Hugging Face folder, with the charter of its experts. A seed's readers have read nothing yet, and its own layers
    are the trunk's: both stay away."""
    slices = desk.store.manifest(state)
    for name, tensors in weights_files(ExpertMap.from_charter(charter)).items():
        if readers or name == MODEL:
            write_tensors(folder / name, desk.store, tensors, slices)
    (folder / STATE).write_bytes(desk.store.read(state))
    model = charter.model
    config = FAMILIES[model.family].hf_config(model.config, len(charter.experts), end=model.tokenizer.end)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    put_tokenizer(folder, model.tokenizer, desk.tokenizer)
    (folder / CHARTER).write_bytes(charter_file.canonical(charter))


def _sign(desk: Desk, draft: Path, values: tuple[str, ...]) -> None:
    """The release note into the journal (once) and, with its proof, into the folder."""
    note = desk.signer.sign(compose(NOTE_KIND, list(zip(NOTE_KEYS, values, strict=True))))
    with desk.consortium.lock:
        index = desk.runs.releases.get(digest(note))
        if index is None:
            done = desk.consortium.commit(lambda now_ms: [Record(Kind.RELEASE, now_ms, note)])
            assert not isinstance(done, Refusal), "nothing refuses a release"
            index = done[0]
        record = desk.consortium.journal.record(index)
        receipt = desk.consortium.receipt(index)
    (draft / NOTE).write_bytes(note)
    (draft / RECORD).write_bytes(record.leaf)
    (draft / PROOF).write_text(proof_text(receipt.index, receipt.path, receipt.checkpoint))


def _manifest(
    draft: Path, charter: Charter, run: RunState, number: int, state: Digest, seed: Digest
) -> bytes:
    files = {
        file.relative_to(draft).as_posix(): {"sha256": digest_file(file), "bytes": file.stat().st_size}
        for file in sorted(draft.rglob("*"))
        if file.is_file()
    }
    facts: dict[str, object] = {
        "consortium": charter.consortium.name,
        "run": run.run,
        "round": number,
        "state": state,
        "charter_version": charter.version,
        "licence": charter.release.licence,
        "files": files,
    }
    return canonical_json(facts | ({"seed": seed} if charter.release.seed_beside else {}))


def _data_statements(charter: Charter) -> str:
    lines = ["# Where the training text comes from", ""]
    for site in charter.sites:
        lines += [f"## {site.domain}: {site.name} ({site.partner})", "", site.data_statement, ""]
        lines += [f"Trains the experts {', '.join(site.experts)}.", ""]
    return "\n".join(lines)


def _card(charter: Charter, run: RunState) -> str:
    losses = [f"| {n.domain} | {n.loss:.4f} |" for _, (_, n) in sorted(run.evaluations.items())]
    table = ["| domain | held-out loss, nats per byte |", "|---|---|", *losses, ""] if losses else []
    name = charter.consortium.name
    return "\n".join(
        [
            "---",
            f"license: {charter.release.licence.lower()}",
            "library_name: transformers",
            "---",
            f"# {name}: {run.run}",
            "",
            f"Trained together by {', '.join(m.name for m in charter.members)} in {run.closed} rounds.",
            "The text of each site, and its licence, is stated in DATA.md.",
            "",
            *table,
            *(_READERS if charter.model.reader else ()),
            *(_OWN if charter.model.own_from is not None else ()),
            *(_SEED if charter.release.seed_beside else ()),
            "Check this folder offline with `hansa release verify`.",
            "",
        ]
    )
