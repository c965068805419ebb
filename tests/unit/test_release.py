"""A release: an ordinary Hugging Face folder that proves what it is, until anything in it changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from commons.charter import Charter
from commons.clock import SystemClock
from commons.codec import encode
from commons.errors import Code, Refusal, StoreError
from commons.experts.map import ExpertMap
from commons.experts.stored import unstacked
from commons.learning import Codec
from commons.names import Digest, RoundNumber, RunId, SiteId
from commons.states import StateStore
from commons.updates import lay_out
from governance.bell import Bell
from governance.consortium import Consortium
from governance.fsck import judge
from governance.journal import Journal
from orchestrator.combine import Contribution, combine
from orchestrator.desk import Desk
from orchestrator.facts import close_fact, round_fact, run_fact
from orchestrator.home import Home
from orchestrator.live import Live
from orchestrator.progress import Runs, RunState
from orchestrator.release import Made, make, verify
from orchestrator.release.layout import slices_in
from orchestrator.seed import load_seed
from orchestrator.spool import Spool
from tests.support.consortium import NAME, SITES, charter, exchange, found, seed_state, signer
from tests.support.families import CONFIGS
from tests.support.rounds import RUN as PLAYED
from tests.support.rounds import Stage
from tests.support.updates import UpdateInMemory

OF = charter()
MAP = ExpertMap.from_charter(OF)
RUN = RunId("run-1")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return desk_of(OF, tmp_path_factory.mktemp("release"))


def desk_of(of: Charter, folder: Path) -> Desk:
    """A desk without a wire, whose run has closed one round."""
    expert_map, home = ExpertMap.from_charter(of), found(folder, of)
    clock, bell, runs = SystemClock(), Bell(), Runs()
    consortium = Consortium(Journal.open(home / "journal.db", signer=signer(NAME), clock=clock), clock)
    Home.open(home).found(consortium)
    consortium.follow(runs)
    store = StateStore(home / "states")
    seed = store.save(seed_state(of))
    codec: Codec = "int8"
    sent = [(s.name, s.shape) for s in expert_map.uplink(SiteId("alder"))]
    deltas = ((name, codec, shape, encode(codec, np.ones(shape, np.float32))) for name, shape in sent)
    update = Contribution(SiteId("alder"), 1, UpdateInMemory(*lay_out(deltas)))
    done = combine(
        store,
        base=seed,
        momentum=None,
        exchange=exchange(expert_map, outer=of.learning.outer),
        contributions=[update],
    )
    state = done.state
    assert any(blob.step for blob in store.manifest(state).values()), "sites build experts from a step"

    def begin(now_ms: int) -> list:  # type: ignore[type-arg]
        d = consortium.members.digest
        return [
            run_fact(now_ms, run=RUN, rounds=1, state=seed, charter_version=1, expert_map=expert_map.digest),
            round_fact(
                now_ms, run=RUN, number=RoundNumber(1), attempt=1, base=seed, charter_version=1, charter=d,
                expert_map=expert_map.digest, quorum=1, lease_until_ms=now_ms + 1, holds={},
            ),
            close_fact(
                now_ms, run=RUN, number=RoundNumber(1), base=seed, state=state, momentum=None,
                contributors=[], missing=[], bytes_up=0, bytes_down=0,
            ),
        ]  # fmt: skip

    assert not isinstance(consortium.commit(begin), Refusal)
    return Desk(consortium, runs, Live(clock, bell, Bell()), store, Spool(home / "spool"), signer(NAME), bell)


def run_of(desk: Desk) -> RunState:
    return desk.runs.by_id[RUN]


@pytest.fixture
def release(desk: Desk, tmp_path: Path) -> Path:
    made = make(desk, run_of(desk), tmp_path / "release")
    assert isinstance(made, Made), made
    return made.folder


def test_a_release_is_valid_and_complete(release: Path) -> None:
    assert verify(release) == []
    here = {p.relative_to(release).as_posix() for p in release.rglob("*") if p.is_file()}
    assert here >= {
        "model.safetensors", "config.json", "tokenizer.json", "charter.json", "DATA.md", "README.md",
        "state.json", "MANIFEST.json", "release.note", "release.record", "release.tlog-proof", "founding/charter.json",
    }  # fmt: skip
    assert "Written by alder for tests." in (release / "DATA.md").read_text()


def test_its_model_file_is_read_by_safetensors_to_the_same_bits(release: Path, desk: Desk) -> None:
    tensors, state = load_file(release / "model.safetensors"), desk.store.load(run_of(desk).state)
    assert tensors.keys() == state.keys()
    assert all(np.array_equal(tensors[name], state[name]) for name in state)
    slices = desk.store.manifest(run_of(desk).state)
    assert slices_in(release / "model.safetensors", MAP) == {
        n: (b.digest, b.shape) for n, b in slices.items()
    }


def test_transformers_loads_it_with_every_weight(release: Path, desk: Desk) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(release, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    weight = desk.store.load(run_of(desk).state)["model.embed_tokens.weight"]
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), weight)
    text = AutoTokenizer.from_pretrained(release)("Lübeck", return_tensors="pt")
    with torch.no_grad():
        assert model(text["input_ids"]).logits.shape[-1] == 256


def test_readers_lie_beside_the_model_and_are_checked_with_it(tmp_path: Path) -> None:
    from hansa.released import load

    of = charter()
    model, learning = (
        of.model.model_copy(update={"reader": 4}),
        of.learning.model_copy(update={"routing": "lean"}),
    )
    desk = desk_of(of.model_copy(update={"model": model, "learning": learning}), tmp_path)
    made = make(desk, run_of(desk), tmp_path / "release")
    assert isinstance(made, Made), made
    assert verify(made.folder) == []
    state = desk.store.load(run_of(desk).state)
    tensors, readers = (load_file(made.folder / f"{part}.safetensors") for part in ("model", "readers"))
    assert {n for n in state if n.startswith("readers.")} == readers.keys()
    assert all(np.array_equal(a, state[n]) for n, a in {**tensors, **readers}.items())
    assert len(tensors) + len(readers) == len(state)
    assert "hansa.released.load" in (made.folder / "README.md").read_text()
    assert load(made.folder).readers.choose  # type: ignore[union-attr]
    with (made.folder / "readers.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\x80\x3f")
    said = "; ".join(verify(made.folder))
    assert "readers.safetensors was changed" in said or "readers.safetensors does not hold" in said
    assert "1 tensors differ, first readers." in said
    (made.folder / "readers.safetensors").unlink()
    assert "fetch the release again" in verify(made.folder)[0]


def test_the_seed_lies_beside_the_model_where_the_charter_has_it_and_is_checked_with_it(
    tmp_path: Path,
) -> None:
    from hansa.released import load

    of = charter(release={"licence": "Apache-2.0", "seed_beside": True}, learning__routing="lean")
    of = of.model_copy(update={"model": of.model.model_copy(update={"reader": 4})})
    desk = desk_of(of, tmp_path)
    made = make(desk, run_of(desk), tmp_path / "release")
    assert isinstance(made, Made), made
    seed = run_of(desk).history[0].base
    assert verify(made.folder) == [] and run_of(desk).state != seed
    tensors, state = load_file(made.folder / "seed" / "model.safetensors"), desk.store.load(seed)
    assert all(np.array_equal(tensors.pop(n), a) for n, a in state.items() if not n.startswith("readers."))
    assert not tensors and "seed/" in (made.folder / "README.md").read_text()
    assert json.loads((made.folder / "MANIFEST.json").read_text())["seed"] == seed
    assert isinstance(load(made.folder).seed, torch.nn.Module)
    for file, other in (
        ("model.safetensors", "1 tensors differ"),
        ("state.json", "is the manifest of model state"),
    ):
        path = made.folder / "seed" / file
        kept = path.read_bytes()
        path.write_bytes(kept[:-3] + b"123")
        said = verify(made.folder)
        assert any(f"seed/{file} was changed" in p for p in said) and any(
            other in p and "seed/" in p for p in said
        )
        path.write_bytes(kept)


def test_a_release_has_the_licence_of_the_round_it_comes_from(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage", charter())
    hand_in = [lambda: stage.passes(1000), *(lambda s=s: stage.hands_in(s) for s in SITES)]
    assert stage.play(*hand_in)
    stage.decides("licence", licence="MIT")
    assert stage.play(*hand_in)
    made = make(stage.desk, stage.desk.runs.by_id[PLAYED], tmp_path / "release")
    assert isinstance(made, Made), made
    assert json.loads((made.folder / "MANIFEST.json").read_text())["licence"] == "MIT"
    assert not [finding for finding in judge(stage.records()) if "under that licence" in finding.what]
    stage.close()


def test_a_release_whose_experts_are_stacked_on_disk_is_checked_expert_by_expert(tmp_path: Path) -> None:
    family, config = CONFIGS["llama4_text"]
    of = charter(model={"family": family, "config": config})
    desk = desk_of(of, tmp_path)
    made = make(desk, run_of(desk), tmp_path / "release")
    assert isinstance(made, Made), made
    assert verify(made.folder) == []
    tensors, expert_map = load_file(made.folder / "model.safetensors"), ExpertMap.from_charter(of)
    state = desk.store.load(run_of(desk).state)
    assert all(np.array_equal(a, state[n]) for n, a in unstacked(expert_map, tensors).items())
    name = "model.layers.1.feed_forward.experts.down_proj"
    tensors[name][[0, 1]] = tensors[name][[1, 0]]
    save_file(tensors, made.folder / "model.safetensors")
    said = "; ".join(verify(made.folder))
    assert "2 tensors differ, first model.layers.1.feed_forward.experts.0.down_proj" in said


def test_the_same_run_gives_the_same_model_manifest_and_note_and_one_record(
    release: Path, desk: Desk, tmp_path: Path
) -> None:
    size = desk.consortium.size
    again = make(desk, run_of(desk), tmp_path / "again")
    assert isinstance(again, Made) and desk.consortium.size == size
    for name in ("model.safetensors", "MANIFEST.json", "release.note", "release.record"):
        assert (release / name).read_bytes() == (again.folder / name).read_bytes()


def test_changing_any_byte_of_any_file_is_found_out(release: Path, tmp_path: Path) -> None:
    files = [p.relative_to(release) for p in sorted(release.rglob("*")) if p.is_file()]
    for file in files:
        copy = tmp_path / "copy"
        shutil.copytree(release, copy)
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / file).write_bytes(data)
        assert verify(copy), f"a changed byte in {file} went unnoticed"
        shutil.rmtree(copy)


def strip_founder(folder: Path) -> None:
    (folder / "founding" / "001.note").unlink()


def add_file(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"surprise")


def swap_model_and_manifest(folder: Path) -> None:
    """An attacker who can write everything but has no key."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    from commons.notes import digest_file

    manifest = json.loads((folder / "MANIFEST.json").read_text())
    entry = manifest["files"]["model.safetensors"]
    entry["sha256"] = digest_file(folder / "model.safetensors")
    entry["bytes"] = (folder / "model.safetensors").stat().st_size
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def exchange_state(folder: Path) -> None:
    """As `swap_model_and_manifest`, with a state's manifest that goes with the changed model."""
    tensors = load_file(folder / "model.safetensors")
    StateStore(folder.parent / "elsewhere").save(tensors)
    [state] = [
        f for f in (folder.parent / "elsewhere").rglob("*") if f.is_file() and f.read_bytes()[:1] == b"{"
    ]
    (folder / "state.json").write_bytes(state.read_bytes())


def link_outside(folder: Path) -> None:
    target = folder.parent / "outside.md"
    target.write_bytes((folder / "DATA.md").read_bytes())
    (folder / "DATA.md").unlink()
    (folder / "DATA.md").symlink_to(target)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (strip_founder, "did not sign"),
        (add_file, "pytorch_model.bin is not part"),
        (swap_model_and_manifest, "MANIFEST.json is not the one that was signed"),
        (swap_model_and_manifest, "1 tensors differ, first model.norm.weight"),
        (exchange_state, "state.json is the manifest of model state"),
        (link_outside, "no plain file"),
        (lambda f: (f / "release.note").unlink(), "release.note"),
        (lambda f: (f / "MANIFEST.json").write_text("{"), "cannot be read"),
    ],
)
def test_harm_is_named(release: Path, harm: Callable[[Path], None], said: str) -> None:
    harm(release)
    assert said in "; ".join(verify(release))


def test_a_folder_that_is_no_release_is_said_to_be_none(tmp_path: Path) -> None:
    assert verify(tmp_path) and verify(tmp_path / "nowhere")


def test_an_existing_folder_or_a_run_without_a_round_is_refused(desk: Desk, tmp_path: Path) -> None:
    taken = make(desk, run_of(desk), tmp_path)
    assert isinstance(taken, Refusal) and taken.code is Code.REQUEST_INVALID
    fresh = RunState(RUN, 1, Digest("x"), None, opened_ms=0, charter_version=1)
    early = make(desk, fresh, tmp_path / "r")
    assert isinstance(early, Refusal) and early.code is Code.NO_RUN


def test_a_full_disk_leaves_no_folder(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *rest: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.release.publish.write_tensors", full)
    with pytest.raises(StoreError, match="No space left"):
        make(desk, run_of(desk), tmp_path / "release")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 tensors are missing, first model.norm.weight"),
        (lambda t: t.update(extra=np.ones(1, np.float32)), "1 tensors are unknown, first extra"),
        (lambda t: t.update({"model.norm.weight": np.ones(3, np.float32)}), r"not F32 \[16\]"),
        (lambda t: t.update({"model.norm.weight": np.ones(16, np.float64)}), "is F64"),
    ],
)
def test_a_seed_that_is_not_the_charters_model_is_refused(
    tmp_path: Path,
    change: Callable[[dict], object],
    said: str,  # type: ignore[type-arg]
) -> None:
    import re

    tensors = seed_state(OF)
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    refusal = load_seed(tmp_path, MAP, StateStore(tmp_path / "states"))
    assert isinstance(refusal, Refusal) and re.search(said, refusal.message)
    assert "hansa seed make" in refusal.message


def test_a_seed_folder_without_a_model_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "states")
    assert isinstance(load_seed(tmp_path, MAP, store), Refusal)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 99)
    assert isinstance(load_seed(tmp_path, MAP, store), Refusal)
