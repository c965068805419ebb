"""One variant of one size and seed, end to end: `python -m benchmarks.learning_parts.run t1 0 central fedavg`.

Resumable: a killed run goes on with the round it was in. What it gave is one small JSON file that stays in the
repository; what it needs to go on stays in the work folder and is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import machine
from benchmarks.learning_parts import scores
from benchmarks.learning_parts.combining import State
from benchmarks.learning_parts.plan import EXPERTS, SIZES, VARIANTS, Size, Variant
from benchmarks.learning_parts.sites import PUBLIC, Consortium
from benchmarks.learning_parts.tables import KEPT
from benchmarks.learning_parts.texts import Texts
from commons.experts.map import ExpertMap, Kind
from commons.learning import Learning
from hansa.baselines import SeedPhase, make_seed
from workers.durable import read_arrays, write_durably
from workers.shard import initial_state

LOOKS = 8
"""How often a run's validation loss is measured on its way."""
LOOK_ROWS = 64


def result_file(size: str, variant: str, seed: int, kept: Path = KEPT) -> Path:
    return kept / f"{size}-{variant}-{seed}.json"


def final_file(size: str, variant: str, seed: int, work: Path) -> Path:
    """The state a run ended with, kept with the work so that a new way to route or score needs no new run."""
    return work / f"{size}-{variant}-{seed}-final.safetensors"


def seed_file(variant: Variant, size: str, seed: int, work: Path) -> Path:
    """The seed of a variant, which all with as many experts share."""
    more = f"-{variant.experts}" if seed_experts(variant) != EXPERTS else ""
    return work / f"{size}-seed-{seed}{more}.safetensors"


def run(
    variant: Variant, size: Size, seed: int, *, texts: Texts, work: Path, kept: Path = KEPT
) -> dict[str, Any]:
    """Do what is not yet done and answer the result, which is then on disk."""
    size = replace(size, reader=variant.reader, own_from=variant.own_from)
    file = result_file(size.name, variant.name, seed, kept)
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    home = work / f"{size.name}-{variant.name}-{seed}"
    start = start_state(variant, size, seed, texts=texts, work=work)
    consortium = Consortium(variant, size, texts, seed=seed, start=start, home=home)
    clock = _Clock(home / "clock.json")
    curve = clock.curve
    looks = scores.rows_of(texts.train, size.length, LOOK_ROWS)
    every = max(1, consortium.rounds // LOOKS)
    while consortium.round < consortium.rounds:
        training = consortium.step()
        done = consortium.round
        if done % every == 0 or done == consortium.rounds:
            seen = scores.macro(scores.losses(size.model, consortium.map, consortium.state, looks))
            curve.append([consortium.tokens, round(seen, 4), round(training, 4)])
        clock.save()
    if variant.fit_steps:
        consortium.fit()
    facts = _facts(variant, size, seed, consortium, texts) | {"curve": curve} | clock.spent()
    kept.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(_rounded(facts), indent=1) + "\n")
    if variant.data != "alone":
        write_durably(final_file(size.name, variant.name, seed, work), consortium.state, {})
    shutil.rmtree(home, ignore_errors=True)  # a run that trains nothing has none
    return facts


def start_state(variant: Variant, size: Size, seed: int, *, texts: Texts, work: Path) -> State:
    """Random weights, or those after the seed phase on the public text, which all variants of a seed share.

    Readers begin at random either way, own layers as the trunk.
    """
    further = [PUBLIC] if variant.public_site else []
    owners = list(texts.sites(variant.sites)) if variant.reader else list(texts.train)
    whole = size.experts([*owners, *further], variant.experts)
    start = initial_state(size.model, whole, seed=seed)
    size = replace(size, reader=0, own_from=None)
    expert_map = size.experts([*texts.train, *further], seed_experts(variant))
    if variant.start == "scratch":
        return start
    file = seed_file(variant, size.name, seed, work)
    if not file.exists():
        learning = Learning(
            seed=seed, rounds=1, inner_steps=size.seed_steps, batch_size=4 * size.batch, sequence_length=size.length,
            learning_rate=size.seed_rate,
        )  # fmt: skip
        phase = SeedPhase(
            steps=size.seed_steps, batch_size=4 * size.batch, learning_rate=size.seed_rate,
            warmup_steps=size.warmup, final_rate=size.final_rate,
        )  # fmt: skip
        state = make_seed(
            model=size.model, expert_map=expert_map, learning=learning, phase=phase, public=texts.rest,
            home=file.with_suffix(""), on_step=lambda step, loss: None,
        )  # fmt: skip
        write_durably(file, state, {})
    read = read_arrays(file)
    seeded = start | (_copied(read, whole) if variant.start == "whole" else read)
    return seeded | {s.name: seeded[s.stands_for] for s in whole.slices if s.stands_for is not None}


def seed_experts(variant: Variant) -> int:
    """Experts of the seed."""
    return EXPERTS if variant.start == "whole" else variant.experts


def _copied(seed: State, whole: ExpertMap) -> State:
    """The seed with its experts and their router rows once for each site of `whole`."""
    copies = len(whole.experts) // EXPERTS
    of_expert = re.compile(r"(?<=\.experts\.)\d+")
    found = {n: a for n, a in seed.items() if not of_expert.search(n)}
    for part in whole.slices:
        if part.kind is Kind.EXPERT:
            found[part.name] = seed[of_expert.sub(lambda index: str(int(index[0]) % EXPERTS), part.name)]
        elif part.kind is Kind.ROUTER:
            found[part.name] = np.concatenate([seed[part.name]] * copies)
    return found


def _facts(variant: Variant, size: Size, seed: int, consortium: Consortium, texts: Texts) -> dict[str, Any]:
    model, expert_map, state = size.model, consortium.map, consortium.state
    parameters = expert_map.parameters()
    trained = consortium.learning.rounds * variant.inner_steps
    facts: dict[str, Any] = {
        "variant": json.loads(json.dumps(asdict(variant), default=lambda m: m.model_dump())),
        "size": asdict(size),
        "seed": seed,
        "texts": texts.digest(),
        "machine": machine(),
        "parameters": asdict(parameters),
        "tokens": consortium.tokens,
        "tokens_per_active": round(consortium.tokens / parameters.active, 2),
        "inner_steps": trained,
        "bytes_up_per_site": consortium.moved.up // len(consortium.texts),
        "bytes_down_per_site": consortium.moved.down // len(consortium.texts),
        "peak_bytes_up_per_site": consortium.moved.peak_up // len(consortium.texts),
        "bytes_per_step_ddp_bf16": 2 * parameters.total * trained,
    }
    sides = {"validation": texts.train, "test": texts.test}
    for side, corpora in sides.items():
        rows = scores.rows_of(corpora, size.length)
        facts[side] = _scored(variant, size, consortium, rows)
    if variant.data != "alone":
        facts["load"] = scores.load(
            model, expert_map, state, scores.rows_of(texts.train, size.length, LOOK_ROWS)
        )
    facts["norms"] = _norms(consortium)
    if consortium.judge is not None:
        facts["judged"] = consortium.judge.log
    return facts


def _scored(variant: Variant, size: Size, consortium: Consortium, rows: Mapping[str, Any]) -> dict[str, Any]:
    model, expert_map = size.model, consortium.map
    found: dict[str, Any] = {}
    if variant.data == "alone":
        alone = list(consortium.local.values())
        each = [scores.losses(model, expert_map, s, rows) for s in alone]
        by_site = dict(zip(consortium.local, each, strict=True))
        found["alone"] = by_site
        found["own"] = {
            site: by_site[site][domain] for site, (domain, _) in consortium.texts.items() if domain in rows
        }
        found["losses"] = min(each, key=scores.macro)
        found["soup"] = scores.losses(model, expert_map, scores.soup(alone), rows)
        found["ensemble"] = scores.ensemble_losses(model, expert_map, alone, rows)
    else:
        found["losses"] = scores.losses(model, expert_map, consortium.state, rows)
        if variant.holds != "all":
            states = consortium.states()
            if variant.split == "domains":
                sites = {d: [s for s, (of, _) in consortium.texts.items() if of == d] for d in rows}
                found["oracle"] = scores.oracle_losses(model, expert_map, states, rows, sites)
            found["posterior"] = scores.posterior_losses(model, expert_map, states, rows)
            found["committed"] = scores.committed_losses(model, expert_map, states, rows)
            if variant.keeps:
                found["losses"] = found["posterior"]  # no one model has what sites keep
    found["macro"] = scores.macro(found["losses"])
    return found


def _norms(consortium: Consortium) -> dict[str, float]:
    """L2 norm of the final trunk and experts: a variant that runs away shows here first."""
    found = {"trunk": 0.0, "experts": 0.0}
    for part in consortium.map.slices:
        found["experts" if part.kind is Kind.EXPERT else "trunk"] += float(
            (consortium.state[part.name] ** 2).sum()
        )
    return {name: round(value**0.5, 2) for name, value in found.items()}


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 5)
        case dict():
            return {k: _rounded(v) for k, v in value.items()}
        case list():
            return [_rounded(v) for v in value]
    return value


class _Clock:
    """Seconds over all sittings of a run, and its curve so far."""

    def __init__(self, file: Path) -> None:
        self._file = file
        before: dict[str, Any] = {"wall_s": 0.0, "cpu_s": 0.0, "curve": []}
        if file.exists():
            before = json.loads(file.read_text())
        self.curve: list[list[float]] = before.pop("curve")
        self._before, self._wall, self._cpu = before, time.monotonic(), time.process_time()

    def spent(self) -> dict[str, float]:
        return {
            "wall_s": round(self._before["wall_s"] + time.monotonic() - self._wall, 1),
            "cpu_s": round(self._before["cpu_s"] + time.process_time() - self._cpu, 1),
        }

    def save(self) -> None:
        self._file.write_text(json.dumps({"curve": self.curve, **self.spent()}))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("seed", type=int)
    parser.add_argument("variants", nargs="+", choices=VARIANTS)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/learning"))
    parser.add_argument(
        "--texts", type=Path, help="folder with the texts; without it those of installed packages"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts = Texts.read(given.texts)
    for name in given.variants:
        found = run(VARIANTS[name], SIZES[given.size], given.seed, texts=texts, work=given.work)
        seen = found["validation"]
        each = " ".join(f"{d} {x:.3f}" for d, x in seen["losses"].items())
        print(f"{name}: {seen['macro']:.4f} ({each}) {found['cpu_s']} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
