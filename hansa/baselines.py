"""What the consortium is compared with: the seed it starts from, one partner alone, and all texts in one place.

All three are the production trainer with a map in which one site owns every expert, and no readers, so nothing differs
but who holds what. Same model, same seed, same number of inner steps: alone trains on one partner's text (and the public
text, where the charter mixes it in), central on every partner's at once (as many tokens as all sites together).
Run as a process it takes a plan as JSON: `python -m hansa.baselines plan.json`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from commons.charter import Model
from commons.experts.map import ExpertMap, Kind
from commons.experts.stored import READERS, stacked, unstacked
from commons.experts.tokenizer import FILE
from commons.learning import Learning, Warm
from commons.names import SiteId
from commons.section import Section
from workers.data import Corpus, Mixture, Source
from workers.encoder import Encoder
from workers.objectives import loss_on
from workers.shard import build_shard, initial_state
from workers.trainer import Trainer

Array = NDArray[np.float32]
OnStep = Callable[[int, float], None]
_EVERYTHING = SiteId("everything")
_WHOLE = {"strategy": "expert_diloco", "routing": "joint", "warm": Warm(), "since": None}
"""One site that owns all experts, in one round."""


class SeedPhase(Section):
    """The short central phase on public text that every site starts from."""

    steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.1


def make_seed(
    *,
    model: Model,
    expert_map: ExpertMap,
    learning: Learning,
    phase: SeedPhase,
    public: Corpus,
    home: Path,
    on_step: OnStep,
) -> dict[str, Array]:
    """The run's state 0: random weights of `learning.seed`, then `phase` on the public text."""
    start = initial_state(model, expert_map, seed=learning.seed)
    if not phase.steps:
        return start
    settings = phase.model_dump(exclude={"steps"}) | {
        "inner_steps": phase.steps,
        "rounds": 1,
        "public_share": 0.0,
    }
    return _train(model, expert_map, learning.model_copy(update=settings), public, None, start, home, on_step)


def train_alone(
    *,
    model: Model,
    expert_map: ExpertMap,
    learning: Learning,
    corpus: Corpus,
    public: Corpus | None,
    seed_state: Mapping[str, Array],
    home: Path,
    on_step: OnStep,
) -> dict[str, Array]:
    """The full model trained by one partner on its own text."""
    return _train(model, expert_map, _in_one_round(learning), corpus, public, seed_state, home, on_step)


def train_central(
    *,
    model: Model,
    expert_map: ExpertMap,
    learning: Learning,
    corpora: Mapping[str, Corpus],
    public: Corpus | None,
    seed_state: Mapping[str, Array],
    home: Path,
    on_step: OnStep,
) -> dict[str, Array]:
    """The full model trained on all texts at once: what the consortium would reach if texts could be pooled."""
    sites = len(corpora)
    pooled: Source = Mixture(tuple((c, 1 / sites) for c in corpora.values()))
    whole = _in_one_round(learning).model_copy(update={"batch_size": learning.batch_size * sites})
    return _train(model, expert_map, whole, pooled, public, seed_state, home, on_step)


def held_out_losses(
    *,
    model: Model,
    expert_map: ExpertMap,
    state: Mapping[str, Array],
    corpora: Mapping[str, Source],
    length: int,
    limit: int = 256,
) -> dict[str, float]:
    """Loss of the whole model per corpus on its held-out text, nats per byte, over at most `limit` rows each."""
    shard = build_shard(model, expert_map, own=expert_map.experts, guests=False, state=state)
    return {name: loss_on(shard, corpus, length=length, limit=limit) for name, corpus in corpora.items()}


def _in_one_round(learning: Learning) -> Learning:
    return learning.model_copy(update={"rounds": 1, "inner_steps": learning.total_steps})


def _train(
    model: Model,
    expert_map: ExpertMap,
    learning: Learning,
    corpus: Source,
    public: Corpus | None,
    start: Mapping[str, Array],
    home: Path,
    on_step: OnStep,
) -> dict[str, Array]:
    owners = dict.fromkeys(expert_map.experts, _EVERYTHING)
    learning = learning.model_copy(update=_WHOLE)
    trainer = Trainer(
        model=model,
        expert_map=ExpertMap.from_owners(model, owners),
        site=_EVERYTHING,
        learning=learning,
        corpus=corpus,
        public=public,
        home=home,
    )
    result = trainer.train_round(round_number=1, base=start, learning=learning, on_step=on_step)
    trained = {
        name: np.asarray(start[name], np.float32) + delta for name, delta in result.trunk_delta.items()
    }
    return trained | result.experts


class Plan(Section):
    """One baseline to run as a process."""

    what: Literal["seed", "alone", "central"]
    model: Model
    learning: Learning
    phase: SeedPhase = SeedPhase()
    owners: dict[str, str]
    """Expert -> site, in charter order."""
    texts: dict[str, str]
    """Domain -> file; every domain is evaluated."""
    alone: str | None = None
    """The domain that trains, for `alone`."""
    public: str
    seed_file: str
    """Safetensors: written by `seed`, read by the others."""
    tokenizer: str = FILE
    """Where the model's lies, if it is not bytes."""
    result: str
    """JSON written at the end: `{"what", "alone", "losses": {domain: nats per byte}, "duration_s"}`."""
    home: str


def run_plan(plan: Plan, on_step: OnStep) -> dict[str, float]:
    """Run one baseline and write its files. Returns the held-out loss per domain."""
    started = time.monotonic()
    length = plan.learning.sequence_length
    model = plan.model.shared
    expert_map = ExpertMap.from_owners(model, plan.owners)  # type: ignore[arg-type]
    encoder = Encoder.load(Path(plan.tokenizer), plan.model.tokenizer)
    texts = [*plan.texts.items(), ("public", plan.public)]
    *read, public = (Corpus.load(Path(p), sequence_length=length, name=d, encoder=encoder) for d, p in texts)
    corpora = {corpus.name: corpus for corpus in read}
    home = Path(plan.home)
    if plan.what == "seed":
        state = make_seed(
            model=model,
            expert_map=expert_map,
            learning=plan.learning,
            phase=plan.phase,
            public=public,
            home=home,
            on_step=on_step,
        )
        save_file(stacked(expert_map, state), plan.seed_file, metadata={"format": "pt"})
        if plan.model.reader:
            _save_new_readers(plan)
    elif plan.what == "alone":
        if plan.alone not in corpora:
            raise ValueError(f"the plan's alone is {plan.alone!r}, which is none of {', '.join(corpora)}")
        state = train_alone(
            model=model,
            expert_map=expert_map,
            learning=plan.learning,
            corpus=corpora[plan.alone],
            public=public,
            seed_state=unstacked(expert_map, load_file(plan.seed_file)),
            home=home,
            on_step=on_step,
        )
    else:
        state = train_central(
            model=model,
            expert_map=expert_map,
            learning=plan.learning,
            corpora=corpora,
            public=public,
            seed_state=unstacked(expert_map, load_file(plan.seed_file)),
            home=home,
            on_step=on_step,
        )
    losses = held_out_losses(model=model, expert_map=expert_map, state=state, corpora=corpora, length=length)
    facts = {
        "what": plan.what,
        "alone": plan.alone,
        "losses": losses,
        "duration_s": time.monotonic() - started,
    }
    Path(plan.result).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return losses


def _save_new_readers(plan: Plan) -> None:
    """Beside the seed: readers learn from their sites' text alone, so they begin at random."""
    expert_map = ExpertMap.from_owners(plan.model, plan.owners)  # type: ignore[arg-type]
    state = initial_state(plan.model, expert_map, seed=plan.learning.seed)
    readers = {s.name: state[s.name] for s in expert_map.slices if s.kind is Kind.READER}
    save_file(readers, Path(plan.seed_file).with_name(READERS), metadata={"format": "pt"})


def main(arguments: list[str]) -> None:
    """`plan.json` -> progress as JSON lines on stdout, files as the plan names them."""
    plan = Plan.model_validate_json(Path(arguments[0]).read_text("utf-8"))

    def progress(step: int, loss: float) -> None:
        if step % 10 == 0:
            print(json.dumps({"step": step, "loss": round(loss, 4)}), flush=True)

    print(json.dumps({"losses": run_plan(plan, progress)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
