"""The opt-out report: what it measures is what it says, and nobody changes a number of it unseen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from commons import charter_file
from commons.charter import Charter
from commons.errors import ConfigError, HansaError
from commons.experts.map import ExpertMap
from commons.experts.stored import MODEL, stacked
from commons.identity import save_signer
from commons.names import SiteId
from commons.notes import compose, digest
from commons.records import canonical_json
from hansa import opt_out
from hansa.cli import app
from hansa.forgetting import _exposure, auc, auc_error
from hansa.reading import Read, Reader
from orchestrator.release.layout import CHARTER
from tests.support.consortium import charter, signer
from workers.objectives import held_out_loss
from workers.shard import build_shard, initial_state

OF = charter(
    sites=tuple(s.model_dump() | {"experts": (f"{s.name}-0", f"{s.name}-1")} for s in charter().sites),
    learning__routing="lean",
)
MAP = ExpertMap.from_charter(OF)


def weights(seed: int) -> dict[str, np.ndarray]:
    return initial_state(OF.model, MAP, seed=seed)


def text(folder: Path, name: str) -> Path:
    path = folder / f"{name}.txt"
    path.write_text("\n\n".join(f"{name} says {i * i} times that {name} is number {i}" for i in range(120)))
    return path


def folder_of(path: Path, state: dict[str, np.ndarray], of: Charter = OF) -> Path:
    path.mkdir()
    (path / CHARTER).write_bytes(charter_file.canonical(of))
    save_file({n: np.ascontiguousarray(a) for n, a in stacked(MAP, state).items()}, path / MODEL)
    return path


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "release", weights(2))


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "seed", weights(1))


@pytest.fixture
def written(tmp_path: Path, release: Path, seed: Path) -> Path:
    made = opt_out.load(release, seed, "alder")
    others = {"birch-text": text(tmp_path, "birch")}
    opt_out.write(tmp_path / "out", made, text=text(tmp_path, "alder"), others=others, signer=signer("alder"))
    return tmp_path / "out"


def test_a_row_that_a_greedy_continuation_gives_back_is_counted_as_extracted_and_no_other() -> None:
    reader = Reader(OF.model, MAP, weights(3), by_site=False)
    shard = build_shard(OF.model, MAP, own=MAP.experts, guests=False, state=weights(3)).eval()
    tokens = torch.randint(0, 250, (4, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for _ in range(8):
            tokens = torch.cat(
                [tokens, shard(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1
            )
    greedy = tokens.numpy()
    other = greedy.copy()
    other[:, 9] = (other[:, 9] + 1) % 250
    assert reader.read(greedy).likeliest[:, 4:].all()
    wrong = reader.read(other).likeliest
    assert wrong[:, 4:8].all() and not wrong[:, 8].any()


def test_experts_by_site_are_mixed_by_how_likely_each_found_what_came_before() -> None:
    rows = np.random.default_rng(0).integers(0, 250, (3, 9))
    state = weights(3)
    each = np.stack([_alone(site, state, rows) for site in ("alder", "birch", "cedar")])
    before = np.concatenate([np.zeros((3, 3, 1)), each.cumsum(-1)[..., :-1]], -1)
    shares = np.exp(before) / np.exp(before).sum(0)
    mixed = Reader(OF.model, MAP, state, by_site=True).read(rows).log_probabilities
    assert np.allclose(mixed, np.log((shares * np.exp(each)).sum(0)), atol=1e-5)


def _alone(site: str, state: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """What one site's experts give to each byte that came."""
    shard = build_shard(OF.model, MAP, own=MAP.experts_of(SiteId(site)), guests=False, state=state).eval()
    tokens = torch.from_numpy(rows)
    with torch.inference_mode():
        given = shard(input_ids=tokens[:, :-1], use_cache=False).logits.log_softmax(-1)
        came: np.ndarray = given.gather(-1, tokens[:, 1:, None]).squeeze(-1).double().numpy()
    return came


def test_losses_are_those_that_training_reports() -> None:
    rows = np.random.default_rng(1).integers(0, 250, (5, 17))
    shard = build_shard(OF.model, MAP, own=MAP.experts, guests=False, state=weights(3))
    found = Reader(OF.model, MAP, weights(3), by_site=False).read(rows).losses.mean()
    assert found == pytest.approx(held_out_loss(shard, rows), abs=1e-5)


def test_an_auc_is_the_share_of_pairs_in_which_the_trained_row_has_the_lower_loss() -> None:
    draw = np.random.default_rng(2)
    trained, unseen = draw.integers(0, 9, 40) / 3, draw.integers(2, 11, 30) / 3
    pairs = [1.0 if t < u else 0.5 if t == u else 0.0 for t, u in itertools.product(trained, unseen)]
    assert auc(trained, unseen) == pytest.approx(np.mean(pairs))
    assert auc(trained, trained) == pytest.approx(0.5)
    assert auc_error(0.5, 256, 256) == pytest.approx(0.0255, abs=5e-4)


def test_a_report_holds_and_is_of_this_release_alone(written: Path, release: Path, tmp_path: Path) -> None:
    assert opt_out.verify(written, release) == []
    report = json.loads((written / opt_out.REPORT).read_bytes())
    assert report["experts"] == ["alder-0", "alder-1"] and set(report["losses"]) == {
        "alder-text",
        "birch-text",
    }
    assert report["exposures"]["seed"]["membership_calibrated"] is None
    assert report["models"]["after"] not in (report["models"]["before"], report["models"]["seed"])
    other = folder_of(tmp_path / "other", weights(9))
    assert [p.split(",")[0][:20] for p in opt_out.verify(written, other)] == [
        "the note says before",
        "the note says after ",
    ]
    assert not opt_out.load(release, tmp_path / "seed", "alder").after_map.experts_of(SiteId("alder"))


def test_with_its_seed_beside_it_a_model_reads_what_was_opted_out_hardly_worse_than_the_seed(
    tmp_path: Path, seed: Path
) -> None:
    """Bound by ln 5 nats a row, whatever became of the model meanwhile."""
    found = {}
    for beside in (False, True):
        of = OF.model_copy(update={"release": OF.release.model_copy(update={"seed_beside": beside})})
        release = folder_of(tmp_path / f"spoilt-{beside}", {n: 9 * a for n, a in weights(2).items()}, of)
        made = opt_out.load(release, seed, "alder")
        out, own = tmp_path / f"out-{beside}", text(tmp_path, "alder")
        found[beside] = opt_out.write(out, made, text=own, others={}, signer=signer("alder"))
        assert opt_out.verify(out, release) == [] and found[beside]["seed_beside"] is beside
    (alone,), (both,) = (f["losses"].values() for f in found.values())
    assert alone["after"] > alone["seed"] + 0.3 and alone["seed"] == both["seed"]
    assert both["after"] <= both["seed"] + (np.log(5) + 0.01) / OF.learning.sequence_length


def signed_again(folder: Path, report: dict[str, Any], by: str = "alder", **said: str) -> None:
    """As whoever holds that key would write it."""
    data = canonical_json(report)
    named = {**report, **report["models"], "report": digest(data), **said}
    (folder / opt_out.REPORT).write_bytes(data)
    note = signer(by).sign(compose(opt_out.KIND, [(k, str(named[k])) for k in opt_out.KEYS]))
    (folder / opt_out.NOTE).write_bytes(note)


def _number(report: dict[str, Any]) -> None:
    report["losses"]["alder-text"]["after"] = 1.0


def _praise(report: dict[str, Any]) -> None:
    report["verdict"]["own_within"] = not report["verdict"]["own_within"]


def _silence(report: dict[str, Any]) -> None:
    report["residue"] = "Nothing stays."


def _model(report: dict[str, Any]) -> None:
    report["models"]["after"] = "sha256:" + "0" * 64


LIES: tuple[tuple[Callable[[dict[str, Any]], None], str], ...] = (
    (_number, "the verdict does not follow from the losses"),
    (_praise, "the verdict does not follow from the losses"),
    (_silence, "it does not state what stays in the trunk"),
    (_model, "the note says after"),
)


@pytest.mark.parametrize(("lie", "why"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_a_changed_report_is_found_signed_anew_or_not(
    written: Path, release: Path, lie: Callable[[dict[str, Any]], None], why: str
) -> None:
    report = json.loads((written / opt_out.REPORT).read_bytes())
    lie(report)
    (written / opt_out.REPORT).write_bytes(canonical_json(report))
    assert any("the note says report" in p for p in opt_out.verify(written, release))
    signed_again(written, report)
    assert any(why in p for p in opt_out.verify(written, release))


def test_a_report_by_nobody_of_the_charter_is_refused(written: Path, release: Path) -> None:
    signed_again(written, json.loads((written / opt_out.REPORT).read_bytes()), by="mallory")
    [problem] = opt_out.verify(written, release)
    assert "cannot be read" in problem


def test_what_cannot_be_measured_is_named(tmp_path: Path, release: Path, seed: Path) -> None:
    with pytest.raises(ConfigError, match="has no site 'fir'; there are alder, birch, cedar"):
        opt_out.load(release, seed, "fir")
    with pytest.raises(HansaError, match=r"charter\.json"):
        opt_out.load(tmp_path / "nowhere", seed, "alder")
    (seed / MODEL).write_bytes(b"no model")
    with pytest.raises(HansaError, match="does not hold the charter's model"):
        opt_out.load(release, seed, "alder")
    save_file({n: a[:1] for n, a in load_file(release / MODEL).items()}, seed / MODEL)
    with pytest.raises(HansaError, match=r"does not hold the charter's model|, not "):
        opt_out.load(release, seed, "alder")


def test_the_command_writes_a_report_that_the_other_command_verifies(
    tmp_path: Path, release: Path, seed: Path
) -> None:
    save_signer(tmp_path / "birch.key", signer("birch"))
    given = [
        "--release",
        str(release),
        "--seed",
        str(seed),
        "--site",
        "alder",
        "--key",
        str(tmp_path / "birch.key"),
    ]
    texts = ["--text", str(text(tmp_path, "alder")), "--other", f"birch-text={text(tmp_path, 'birch')}"]
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["expert", "opt-out-report", out, *given, *texts])
    assert done.exit_code == 0, done.output
    assert "Own domain" in done.output and "no step undoes it" in done.output
    done = CliRunner().invoke(app, ["expert", "opt-out-verify", out, "--release", str(release), "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["valid"]
    wrong = CliRunner().invoke(
        app, ["expert", "opt-out-report", out, *given, *texts[:2], "--other", "fir-text=x"]
    )
    assert wrong.exit_code != 0 and "no other site has the domain 'fir-text'" in wrong.output


def test_what_a_continuation_gives_back_is_counted_in_bytes_of_text() -> None:
    likeliest = np.array([[0, 0, 1, 1, 1], [0, 0, 1, 0, 1], [1, 1, 0, 1, 1]], bool)
    sizes = np.array([[1, 1, 3, 2, 1]] * 3)
    read = Read(np.zeros((3, 5)), likeliest, sizes)
    exposure = _exposure(read, read, None)
    assert exposure.matched_trained == pytest.approx((3 + 0 + 3) / 3)
    assert exposure.extracted_trained == pytest.approx(2 / 3)
