"""A seed with as many experts as every site owns: each site begins with copies of all of them, and computes what it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from commons import charter_file
from commons.charter import Charter
from commons.errors import Refusal
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap, Kind
from commons.experts.remaking import remade_digest
from commons.experts.stored import stacked, unstacked
from commons.experts.tokenizer import FILE, Tokenizer
from commons.experts.whole import copies, seed_map
from commons.identity import write_file
from commons.names import Digest, SiteId
from commons.states import StateStore
from hansa import opt_out, seeds
from hansa.cli import app
from hansa.released import load, released_losses
from orchestrator.release.layout import CHARTER
from orchestrator.seed import begin, load_seed
from tests.support.checkpoints import published_olmoe
from tests.support.consortium import charter, signer
from tests.support.families import CONFIGS
from workers.data import Corpus
from workers.objectives import held_out_loss
from workers.shard import build_shard, initial_state

EACH = 4
SITES = ("alder", "birch", "cedar")


def of_family(family: str, *, each: int = EACH, reader: int = 4, own_from: int | None = None) -> Charter:
    """Three sites of so many experts."""
    sites = tuple(
        s.model_dump() | {"experts": tuple(f"{s.name}-{n}" for n in range(each))} for s in charter().sites
    )
    name, config = CONFIGS[family]
    model = {"family": name, "config": config, "reader": reader, "own_from": own_from}
    return charter(sites=sites, model=model, learning__routing="lean")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"the square of {i} is {i * i}" for i in range(100)))
    return file


def seed_of(folder: Path, of: Charter) -> Path:
    """A seed for every site of `of`, of random weights."""
    seed, whole = folder / "seed", seed_map(of)
    assert whole is not None
    seed.mkdir()
    weights = initial_state(of.model.shared, whole, seed=0)
    save_file(stacked(whole, weights), seed / "model.safetensors", metadata={"format": "pt"})
    seeds.finish_seed_folder(seed, of, experts=len(whole.experts))
    return seed


def begun(folder: Path, of: Charter, seed: Path) -> tuple[Digest, StateStore]:
    """What a run of `of` from `seed` begins with."""
    store = StateStore(folder / "states")
    digest = begin(seed, of, ExpertMap.from_charter(of), store)
    assert not isinstance(digest, Refusal), digest
    return digest, store


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_begins_with_all_of_the_seeds_experts_and_reads_as_the_seed_does(
    family: str, tmp_path: Path, text: Path
) -> None:
    of = of_family(family)
    folder = seed_of(tmp_path, of)
    digest, store = begun(tmp_path, of, folder)
    expert_map = ExpertMap.from_charter(of)
    state, length = store.load(digest), of.learning.sequence_length
    assert state.keys() == {s.name for s in expert_map.slices}
    corpus = Corpus.load(text, sequence_length=length, name="own")
    expected = released_losses(load(folder), {"own": text}, length=length)["own"]
    for site in SITES:
        own = expert_map.experts_of(SiteId(site))
        shard = build_shard(of.model.shared, ExpertMap.from_owners(of.model.shared, dict(expert_map.owners)),
                            own=own, guests=False, state=state)  # fmt: skip
        assert held_out_loss(shard, corpus.held_out_rows(length=length, limit=64)) == pytest.approx(
            expected, abs=1e-4
        )


def test_readers_begin_apart_and_own_layers_as_the_seeds(tmp_path: Path) -> None:
    of = of_family("glm4_moe", own_from=1)
    folder = seed_of(tmp_path, of)
    digest, store = begun(tmp_path, of, folder)
    expert_map = ExpertMap.from_charter(of)
    state = store.load(digest)
    matrices = [s.name for s in expert_map.slices if s.kind is Kind.READER and len(s.shape) == 2]
    assert len({state[name].tobytes() for name in matrices}) == len(matrices) == 2 * len(SITES)
    for name in expert_map.late:
        assert all(np.array_equal(state[f"own.{site}.{name}"], state[name]) for site in SITES)
    whole = seed_map(of)
    assert whole is not None
    seed = load_seed(folder, whole, store)
    assert not isinstance(seed, Refusal)
    assert remade_digest(store, seed, copies(of, whole)) == digest, "whoever has the seed computes the same"


@pytest.mark.parametrize(("each", "experts"), [(4, 3), (2, 4)])
def test_a_seed_that_is_neither_all_experts_nor_one_sites_is_refused_by_its_number(
    each: int, experts: int, tmp_path: Path
) -> None:
    of, other = of_family("olmoe", each=each), of_family("olmoe", each=experts)
    refusal = begin(seed_of(tmp_path, other), of, ExpertMap.from_charter(of), StateStore(tmp_path / "s"))
    assert isinstance(refusal, Refusal)
    said = f"has {experts} experts, the charter's sites own {3 * each} together and {each} each"
    assert said in refusal.message


def test_hansa_makes_such_a_seed_and_for_sites_of_one_expert_one_of_all(tmp_path: Path, text: Path) -> None:
    for each, whole, experts in ((2, True, 2), (1, False, 3)):
        of, home = of_family("olmoe", each=each), tmp_path / str(each)
        home.mkdir()
        charter_file.write(of, home / "charter.toml")
        made = seeds.make_seed_model(
            home / "seed", charter=home / "charter.toml", text=text, steps=0, whole=whole
        )
        assert made["experts"] == experts
        digest, store = begun(home, of, home / "seed")
        assert store.manifest(digest).keys() == {s.name for s in ExpertMap.from_charter(of).slices}


def test_beside_experts_in_escrow_sites_share_a_seed() -> None:
    of = of_family("olmoe")
    assert seed_map(of) is not None
    assert seed_map(of.model_copy(update={"escrow": ("gone-0",)})) is None
    assert seed_map(of.model_copy(update={"sites": of.sites[:1]})) is None


def test_sites_of_unequal_number_have_no_seed_each(tmp_path: Path, text: Path) -> None:
    of = of_family("olmoe")
    first, *rest = (s.model_dump() for s in of.sites)
    of = charter(
        sites=(first | {"experts": first["experts"][:2]}, *rest),
        model=of.model.model_dump(),
        learning__routing="lean",
    )
    assert seed_map(of) is None
    charter_file.write(of, tmp_path / "charter.toml")
    asked = [
        "seed",
        "make",
        str(tmp_path / "seed"),
        "--charter",
        str(tmp_path / "charter.toml"),
        "--text",
        str(text),
        "--whole",
    ]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code and "own as many experts as one another" in found.output
    assert not (tmp_path / "seed").exists()


def test_a_checkpoint_is_dealt_to_sites_or_given_to_each_whole(tmp_path: Path) -> None:
    folder = published_olmoe(tmp_path / "published")
    for name in ("quay", "alder", "birch"):
        write_file(tmp_path / f"{name}.pub", signer(name).vkey.encode() + b"\n")
    asked = ["charter", "new", f"--log-key={tmp_path}/quay.pub"]
    asked += [f"--member={tmp_path}/{name}.pub" for name in ("alder", "birch")]
    for more, counts in (([], [3, 2]), (["--whole"], [5, 5])):
        file = tmp_path / f"{len(more)}.toml"
        found = CliRunner().invoke(app, [*asked, str(file), "--checkpoint", str(folder), *more])
        assert not found.exit_code, found.output
        of = charter_file.load(file)
        assert [len(site.experts) for site in of.sites] == counts
        assert isinstance(
            begin(folder, of, ExpertMap.from_charter(of), StateStore(tmp_path / file.stem)), str
        )
    refused = CliRunner().invoke(app, [*asked, str(tmp_path / "more.toml"), "--whole"])
    assert (
        refused.exit_code
        and "--whole gives each site all experts of a --checkpoint; name one" in refused.output
    )


def test_a_model_of_bytes_is_a_checkpoint_too(tmp_path: Path) -> None:
    """As `hansa seed make` and a release have it: its tokenizer.json is the bytes' own, which a charter names nowhere."""
    folder = seed_of(tmp_path, of_family("glm4_moe"))
    for name in ("quay", "alder", "birch"):
        write_file(tmp_path / f"{name}.pub", signer(name).vkey.encode() + b"\n")
    asked = [
        "charter",
        "new",
        str(tmp_path / "new.toml"),
        f"--log-key={tmp_path}/quay.pub",
        f"--checkpoint={folder}",
        "--whole",
    ]
    asked += [f"--member={tmp_path}/{name}.pub" for name in ("alder", "birch")]
    found = CliRunner().invoke(app, asked)
    assert not found.exit_code, found.output
    of = charter_file.load(tmp_path / "new.toml")
    assert of.model.tokenizer == Tokenizer() and not (tmp_path / FILE).exists()
    begun(tmp_path, of, folder)


def test_an_opt_out_is_measured_against_it(tmp_path: Path) -> None:
    of = of_family("olmoe", reader=0)
    folder = seed_of(tmp_path, of)
    digest, store = begun(tmp_path, of, folder)
    expert_map = ExpertMap.from_charter(of)
    release = tmp_path / "release"
    release.mkdir()
    (release / CHARTER).write_bytes(charter_file.canonical(of))
    save_file(stacked(expert_map, store.load(digest)), release / "model.safetensors")
    models = opt_out.load(release, folder, "birch")
    assert len(models.seed_map.experts) == EACH
    tensors = unstacked(models.seed_map, load_file(folder / "model.safetensors"))
    assert all(np.array_equal(models.seed[name], tensor) for name, tensor in tensors.items())
