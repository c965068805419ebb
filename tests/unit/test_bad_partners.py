"""Partners whose share of the work is bad or odd: what each does to a round, at the least it takes to see it.

Texts that cannot be read at all are in test_data.py, tokens and sequences the model cannot take in test_inner.py, updates that
break the wire's rules in test_bad_input.py. What bad texts cost the others' domains is measured by `hansa bench learning`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commons.charter import Charter
from commons.errors import Code
from commons.experts.map import ExpertMap
from commons.names import Digest, SiteId
from commons.records import Kind
from tests.support.consortium import SITES, charter
from tests.support.rounds import RUN, Stage
from tests.unit.test_judging import all_measure, hand_in
from tests.unit.test_judging import of as judged
from workers.data import Corpus, CorpusError
from workers.trainer import Trainer


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Callable[[Charter], Stage]]:
    stages: list[Stage] = []

    def make(of: Charter) -> Stage:
        stages.append(Stage(tmp_path, of, rounds=of.learning.rounds))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def weights(stage: Stage, state: str) -> dict[str, np.ndarray[Any, Any]]:
    return dict(stage.desk.store.load(Digest(state)))


def closed(stage: Stage) -> dict[str, Any]:
    return dict(stage.records(Kind.CLOSE)[-1].facts)


def test_a_partner_with_a_hundredth_of_the_text_does_whole_rounds_on_it(tmp_path: Path) -> None:
    of, made = charter(learning__inner_steps=2), {}
    expert_map = ExpertMap.from_charter(of)
    for name, documents in (("much", 2000), ("little", 20)):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n\n".join(f"number {i} of {i * i % 97}" for i in range(documents)))
        corpus = Corpus.load(path, sequence_length=16)
        trainer = Trainer(
            model=of.model, expert_map=expert_map, site=SiteId("alder"), learning=of.learning, corpus=corpus,
            public=None, home=tmp_path / name,
        )  # fmt: skip
        base = {s.name: np.full(s.shape, 0.02, np.float32) for s in expert_map.slices}
        result = trainer.train_round(
            round_number=1, base=base, learning=of.learning, on_step=lambda step, loss: None
        )
        made[name] = (result.tokens, np.isfinite(result.loss), corpus.bytes)
    assert made["much"][:2] == made["little"][:2] and made["much"][2] > 90 * made["little"][2]


def test_an_empty_domain_is_refused_before_the_site_joins_a_round(tmp_path: Path) -> None:
    path = tmp_path / "domain.txt"
    path.write_text("\n\n \n")
    with pytest.raises(CorpusError, match=r"domain\.txt is empty; give it the text this site is to train on"):
        Corpus.load(path, sequence_length=16)


def test_random_bytes_are_no_text_and_are_refused_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "random.txt"
    path.write_bytes(np.random.default_rng(0).integers(1, 256, 5000, np.uint8).tobytes())
    with pytest.raises(CorpusError, match=r"random\.txt is not UTF-8 at byte \d+"):
        Corpus.load(path, sequence_length=16)


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30])
def test_tiny_updates_are_taken_and_put_nobody_else_out_of_proportion(
    stage_of: Callable[[Charter], Stage], value: float
) -> None:
    stage = stage_of(charter())
    assert stage.play(*hand_in(stage, alder=value, birch=value, cedar=0.01))
    close = closed(stage)
    assert close["contributors"] == list(SITES), (
        "the median's norm is next to nothing, and that is no measure"
    )
    before, after = weights(stage, close["base"]), weights(stage, close["state"])
    name = "model.norm.weight"
    np.testing.assert_allclose(after[name] - before[name], 0.01 / 3, atol=1e-6)


def test_a_tiny_update_beside_others_counts_as_one_of_them(stage_of: Callable[[Charter], Stage]) -> None:
    stage = stage_of(charter())
    assert stage.play(*hand_in(stage, alder=1e-30, birch=0.01, cedar=0.01))
    assert [r.facts["site"] for r in stage.records(Kind.REJECTION)] == []
    assert closed(stage)["contributors"] == list(SITES)


def test_a_sign_flipped_update_within_the_gate_on_norms_is_left_out_by_the_probe(
    stage_of: Callable[[Charter], Stage],
) -> None:
    stage = stage_of(judged())
    measure = all_measure(stage)
    assert stage.play(*hand_in(stage), measure)
    flipped = -30 * -0.01
    assert stage.play(*hand_in(stage, cedar=flipped), *[measure] * 2)
    [rejected] = [r.facts for r in stage.records(Kind.REJECTION)]
    assert (rejected["code"], rejected["site"]) == (Code.UPDATE_HARMFUL, "cedar")
    close = closed(stage)
    before, after = weights(stage, close["base"]), weights(stage, close["state"])
    np.testing.assert_allclose(after["model.norm.weight"] - before["model.norm.weight"], -0.01, atol=1e-6)


def test_sites_with_one_two_and_three_experts_train_one_model(
    stage_of: Callable[[Charter], Stage],
) -> None:
    of = charter()
    sites = [
        site.model_dump() | {"experts": tuple(f"{site.name}-{n}" for n in range(count))}
        for site, count in zip(of.sites, (1, 2, 3), strict=True)
    ]
    stage = stage_of(charter(sites=tuple(sites)))
    assert stage.play(*hand_in(stage, alder=0.01, birch=0.02, cedar=0.03))
    close = closed(stage)
    before, after = weights(stage, close["base"]), weights(stage, close["state"])
    step = {SiteId("alder"): 0.01, SiteId("birch"): 0.02, SiteId("cedar"): 0.03}
    assert len(stage.map.experts) == 6
    for part in stage.map.slices:
        moved = 0.02 if part.expert is None else step[stage.map.owners[part.expert]]
        np.testing.assert_allclose(after[part.name] - before[part.name], moved, atol=1e-6, err_msg=part.name)
    sent = {site: sum(p.size for p in stage.map.uplink(SiteId(site))) for site in SITES}
    assert sent["alder"] < sent["birch"] < sent["cedar"], "each sends its own experts alone"
    assert stage.desk.runs.by_id[RUN].closed == 1
