"""A run from a published checkpoint, whose tokens are not bytes: real sites fetch the charter's tokenizer over real gRPC and
train, and a release carries it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Glm4MoeConfig, Glm4MoeForCausalLM

from commons.charter import Charter
from commons.errors import HansaError
from commons.experts.families import FAMILIES
from commons.experts.tokenizer import FILE
from commons.identity import Seat
from commons.names import Digest
from commons.records import Kind
from commons.wire.v1 import consortium_pb2 as wire
from governance.fsck import judge
from hansa.released import encoder_of, load, released_losses
from orchestrator.release.check import verify
from tests.contract.test_fragments import Site
from tests.contract.test_services import eventually
from tests.support.consortium import SITES, Office, charter, found, over, started
from tests.support.real_sites import settled
from tests.support.tokenizers import model_of, trained
from workers import site_file
from workers.encoder import Encoder

PROBE = "somebody says 16 and 4, naïve café\n\n".encode() * 12


class Stage:
    def __init__(self, folder: Path) -> None:
        self.data = trained(folder)
        self.of: Charter = charter(
            model=model_of(self.data), rounds={"quorum": 3, "grace_s": 20, "lease_s": 60},
            probe={"text": f"sha256:{hashlib.sha256(PROBE).hexdigest()}", "bytes": len(PROBE)},
            learning__learning_rate=0.02,
        )  # fmt: skip
        self.folder, self.home = folder, found(folder, self.of)
        (self.home / FILE).write_bytes(self.data)
        self.published = publish(folder / "seed", self.of)
        self.coordinator = started(self.home)
        self.office = Office(Seat.load(self.home / "operator"))
        self.sites: list[Site] = []

    def start(self, *, placed: bytes = b"") -> None:
        """`placed`: what alder's operator has put where the tokenizer belongs."""
        for name in SITES:
            home = settled(self.coordinator, name, self.folder)
            (home / "probe.txt").write_bytes(PROBE)
            about = f'[site]\nname = "{name}"\npartner = "{name}"\ntext = "words.txt"\nprobe = "probe.txt"\n'
            (home / "SITE.toml").write_text(about)
            if placed and name == "alder":
                (home / "state").mkdir()
                (home / "state" / FILE).write_bytes(placed)
            self.sites.append(Site(site_file.load(home / "SITE.toml")))
        self.office.start_run(self.folder / "seed")

    def facts(self, kind: Kind) -> list[dict[str, object]]:
        return [dict(r.facts) for r in self.coordinator.desk.consortium.journal.records() if r.kind is kind]

    def close(self) -> None:
        for site in self.sites:
            site.close()
        self.office.close()
        self.coordinator.stop()


def publish(folder: Path, of: Charter) -> dict[str, torch.Tensor]:
    """A checkpoint as transformers writes one: bf16, in several files, with config and tokenizer. Its tensors."""
    (folder / "model.safetensors").unlink()
    config = FAMILIES["glm4_moe"].hf_config(of.model.config, len(of.experts))
    torch.manual_seed(0)
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**config)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="8KB")
    assert (folder / "model.safetensors.index.json").exists()
    (folder / FILE).write_bytes(trained(folder.parent))
    tensors = (load_file(file) for file in folder.glob("*.safetensors"))
    return {name: tensor for file in tensors for name, tensor in file.items()}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_run_with_a_trained_tokenizer_ends_in_a_release_that_carries_it(stage: Stage) -> None:
    stage.start()
    view = stage.office.wait(over, 120)
    store, [run] = stage.coordinator.desk.store, stage.facts(Kind.RUN)
    seed = {name: torch.from_numpy(a) for name, a in store.load(Digest(str(run["state"]))).items()}
    assert seed.keys() == stage.published.keys()
    assert all(
        seed[n].dtype == torch.float32 and torch.equal(seed[n], t.float()) for n, t in stage.published.items()
    )
    assert {t.dtype for t in stage.published.values()} >= {torch.bfloat16}
    assert all((s.file.home / FILE).read_bytes() == stage.data for s in stage.sites)
    assert judge(list(stage.coordinator.desk.consortium.journal.records())) == ()
    encoder = Encoder.load(stage.home / FILE, stage.of.model.tokenizer)
    measured, losses = view.evaluation, [r.probe_loss for r in view.history]
    assert len(losses) == 2 and all(loss is not None and 0 < loss < 6 for loss in losses)
    folder = stage.folder / "release"
    stage.office.operator.MakeRelease(wire.ReleaseRequest(folder=str(folder)))
    assert verify(folder) == []
    texts = {f"{name}-text": stage.folder / name / "words.txt" for name in SITES}
    model = load(folder)
    assert released_losses(model, texts, length=16, encoder=encoder_of(folder)) == pytest.approx(
        measured, abs=1e-4
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("alder says 16 and 4", return_tensors="pt").input_ids
    [expected] = encoder.encode([b"alder says 16 and 4"])
    np.testing.assert_array_equal(ids[0], expected)
    more = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(more[0]).startswith("alder says 16 and 4") and more.dtype == torch.int64
    (folder / FILE).write_bytes(stage.data + b"\n")
    assert any(stage.of.model.tokenizer.file in problem for problem in verify(folder))


def test_a_tokenizer_that_is_not_the_charters_is_refused_by_digest_wherever_it_came_from(
    stage: Stage,
) -> None:
    other = stage.data[:-1] + b" "
    (stage.home / FILE).write_bytes(other)
    stage.start(placed=b"{}")
    named = stage.of.model.tokenizer.file

    def told() -> dict[str, str]:
        return {s.site: s.why for s in stage.office.run().sites if named in s.why}

    eventually(lambda: len(told()) == 3, 60)
    why = told()
    assert f"sha256:{hashlib.sha256(b'{}').hexdigest()}" in why["alder"]
    assert all(f"sha256:{hashlib.sha256(other).hexdigest()}" in why[s] for s in ("birch", "cedar"))
    assert all(why[s].startswith("what the coordinator sent is") for s in ("birch", "cedar"))
    stage.coordinator.stop()
    with pytest.raises(HansaError, match=f"{named} of {len(stage.data)} bytes; the operator puts"):
        started(stage.home)
