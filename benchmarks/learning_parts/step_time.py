"""How long one training step takes: a shard beside a dense model of the same active parameters and Hugging Face's experts.

`python -m benchmarks.learning_parts.step_time [SIZE] [REPETITIONS]` prints one table a size. A step is forward, backward,
clipping and fused AdamW, in one thread. All contenders of a size live in one process and make their steps in turn, each
turn beginning with another, so that what else the machine does meets all alike. Times are of the process's own CPU; a
ratio is the median over the turns of a contender's step against the dense model's in the same turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, Llama4ForCausalLM, Llama4TextConfig

from benchmarks.figures import Figure
from commons.charter import Model
from commons.experts.families import FAMILIES
from commons.experts.map import ExpertMap
from commons.names import ExpertId, SiteId
from hansa.demo.cast import DEMO
from workers.inner import BETAS, CLIP_NORM
from workers.objectives import next_token_loss
from workers.routed import IMPLEMENTATION, compute_routed_only
from workers.shard import build_shard, initial_state

Config = dict[str, bool | int | float | str | tuple[int, ...]]
COMMAND = "hansa bench learning"
MOST = 1.25
"""A shard's step against the dense model's, at most."""
OWN = 2
"""Experts of the site whose shard is measured."""
PEERS = ("eager", "grouped_mm", "batched_mm")
SLOW = ("batched_mm", "hugging face")
"""They take part in every fifth turn."""


@dataclass(frozen=True)
class Size:
    config: Config
    """Of a charter's model."""
    experts: int
    batch: int
    sequence: int


_LARGE: Config = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "moe_intermediate_size": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "use_qk_norm": True,
    "tie_word_embeddings": True,
}
SIZES = {
    "demo": Size(DEMO.model, 8, batch=16, sequence=128),
    "large": Size(_LARGE, 16, batch=4, sequence=256),
}
LLAMA4 = Size(_LARGE | {"num_experts_per_tok": 1}, 16, batch=4, sequence=256)


@dataclass(frozen=True)
class Step:
    """The median of one contender's steps."""

    ms: float
    ratio: float
    """Against the dense model."""


def glm4_moe(size: Size) -> dict[str, nn.Module]:
    """Contenders by name; `dense` has an MLP as wide as a token's experts together, the shared one among them.

    `whole` owns every expert, as each Hugging Face model trains all; `joint` and `lean` are what a site of two trains.
    """
    model = Model(family="glm4_moe", config=size.config)
    owners = {ExpertId(f"e{i}"): SiteId("own" if i < OWN else "others") for i in range(size.experts)}
    expert_map = ExpertMap.from_owners(model, owners)
    state = initial_state(model, expert_map, seed=0)
    own = expert_map.experts_of(SiteId("own"))
    config = FAMILIES[model.family].hf_config(model.config, size.experts)
    layers, width = int(str(config["num_hidden_layers"])), int(str(config["moe_intermediate_size"]))
    active = int(str(config["n_shared_experts"])) + int(str(config["num_experts_per_tok"]))
    dense = config | {"first_k_dense_replace": layers, "intermediate_size": width * active}
    found: dict[str, nn.Module] = {
        "dense": Glm4MoeForCausalLM(Glm4MoeConfig(**dense)),
        "whole": build_shard(model, expert_map, own=expert_map.experts, guests=False, state=state),
        "joint": build_shard(model, expert_map, own=own, guests=True, state=state),
        "lean": build_shard(model, expert_map, own=own, guests=False, state=state),
    }
    for name in (*PEERS, IMPLEMENTATION):
        found[name] = Glm4MoeForCausalLM(Glm4MoeConfig(**config))
        found[name].set_experts_implementation(name)  # type: ignore[operator]
    return found


def llama4(size: Size) -> dict[str, nn.Module]:
    """The text model of Llama 4: dense, as Hugging Face computes it, and with routed tokens only."""
    c = size.config
    experts, hidden, width = size.experts, int(str(c["hidden_size"])), int(str(c["moe_intermediate_size"]))
    layers, heads = int(str(c["num_hidden_layers"])), int(str(c["num_attention_heads"]))

    def made(**changed: Any) -> Llama4ForCausalLM:
        settings = {
            "vocab_size": 256, "hidden_size": hidden, "intermediate_size": width, "intermediate_size_mlp": 2 * width,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
            "head_dim": hidden // heads, "num_local_experts": experts, "num_experts_per_tok": 1,
            "tie_word_embeddings": True, "pad_token_id": None, "attn_implementation": "sdpa",
        } | changed  # fmt: skip
        return Llama4ForCausalLM(Llama4TextConfig(**settings))

    routed = made()
    compute_routed_only(routed)
    return {"dense": made(moe_layers=[]), "hugging face": made(), IMPLEMENTATION: routed}


def measure(
    contenders: Mapping[str, nn.Module], size: Size, *, repetitions: int, vocabulary: int = 256
) -> dict[str, Step]:
    """Of every contender that runs here; the first turn warms up and counts for nothing."""
    torch.set_num_threads(1)
    steps = {name: _stepping(model) for name, model in contenders.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    draw, order = torch.Generator().manual_seed(0), list(steps)
    for turn in range(repetitions + 1):
        rows = torch.randint(0, vocabulary, (size.batch, size.sequence + 1), generator=draw)
        took: dict[str, float] = {}
        for name in order:
            if name in SLOW and turn % 5:
                continue
            began = time.process_time()
            steps[name](rows)
            took[name] = time.process_time() - began
        order = [*order[1:], order[0]]
        for name, seconds in took.items() if turn else ():
            times[name].append((seconds, seconds / took["dense"]))
    return {
        name: Step(1000 * statistics.median(t for t, _ in found), statistics.median(r for _, r in found))
        for name, found in times.items()
        if found
    }


def _stepping(model: nn.Module) -> Callable[[Tensor], None]:
    parameters = list(model.train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=BETAS, fused=True)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        next_token_loss(model, rows).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()

    return step


def figures(name: str, found: Mapping[str, Step]) -> list[Figure]:
    """Of one size of glm4_moe: shards against the dense model, and against the fastest of Hugging Face's functions."""
    _, peer = min((found[p].ratio, p) for p in PEERS if p in found)
    shown = []
    for shard in ("joint", "lean", "whole"):
        for other, ratio, most, met in (
            ("a dense model of the same active parameters", found[shard].ratio, f"<= {MOST}", MOST),
            (
                f"Hugging Face's fastest experts ({peer})",
                found[shard].ratio / found[peer].ratio,
                "< 1",
                0.9995,
            ),
        ):
            title = f"step of a {shard} shard against {other}, {name}"
            shown.append(Figure(title, round(ratio, 3), "", most, ratio <= met, COMMAND))
    return shown


def table(found: Mapping[str, Step]) -> str:
    lines = ["| | ms | against dense |", "|---|---|---|"]
    lines += [f"| {name} | {step.ms:.1f} | {step.ratio:.3f} |" for name, step in found.items()]
    return "\n".join(lines)


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else 15
    for name, size in SIZES.items():
        if wanted in ("", name):
            found = measure(glm4_moe(size), size, repetitions=repetitions)
            print(f"glm4_moe, {name}: {size}", table(found), sep="\n")
            for figure in figures(name, found):
                print(f"{figure.figure}: {figure.value} ({figure.target})")
    if wanted in ("", "llama4"):
        found = measure(llama4(LLAMA4), LLAMA4, repetitions=repetitions)
        print(f"llama4_text: {LLAMA4}", table(found), sep="\n")


if __name__ == "__main__":
    main()
