"""A site's part of the model: a Hugging Face `Glm4MoeForCausalLM` that holds only the experts it was given.

Joint: own experts are parameters, the other sites' (guests) are frozen buffers, out of reach of gradient, momentum
and weight decay. Lean: guests do not exist, in memory or in the router's choice. Every tensor stands under its
canonical on-disk name, so state is read and written by name alone. Knows nothing of rounds, data or optimisers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE, Glm4MoeRotaryEmbedding

from commons.charter import Model
from commons.experts.glm4_moe import hf_config
from commons.experts.map import ExpertMap, Kind
from commons.names import ExpertId
from workers.routed import combine, dispatch, routes, swiglu

Array = NDArray[np.float32]
State = Mapping[str, Array]
"""fp32 arrays under the names a released model.safetensors holds."""


def build_shard(
    model: Model, expert_map: ExpertMap, *, own: Iterable[ExpertId], guests: bool, state: State
) -> Glm4MoeForCausalLM:
    """The trunk with the `own` experts and, with `guests`, all others frozen; weights from `state`.

    Memory is allocated for what the shard holds and nothing else. Raises KeyError naming a tensor missing in `state`.
    """
    owned = {expert_map.index(e) for e in own}
    present = sorted(range(len(expert_map.experts)) if guests else owned)
    if not present:
        raise ValueError("a shard needs at least one expert: this site owns none and takes no guests")
    config = Glm4MoeConfig(**hf_config(model, len(expert_map.experts)))
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        shard = Glm4MoeForCausalLM(config)
        for layer in shard.model.layers:
            if isinstance(layer.mlp, Glm4MoeMoE):
                layer.mlp.gate = Router(config, present)
                layer.mlp.experts = Experts(config, present, owned)
    shard.to_empty(device=compute_device())
    shard.tie_weights()
    shard.model.rotary_emb = Glm4MoeRotaryEmbedding(config).to(compute_device())
    for module in shard.modules():
        if isinstance(module, Router):
            module.forbid_absent()
    missing = sorted(set(_tensors(shard)) - set(state))
    if missing:
        raise KeyError(f"the state lacks {missing[0]} and {len(missing) - 1} more tensors this shard holds")
    load_state(shard, state)
    return shard.train()


class Router(nn.Module):
    """Sigmoid router: the `k` best of the present experts by score + selection bias; gates from scores alone.

    Equal to `Glm4MoeTopkRouter` with one group. Absent experts are at -inf in the choice, through a mask that is never
    saved. Holding fewer experts than `num_experts_per_tok`, it chooses all it has.
    """

    def __init__(self, config: Glm4MoeConfig, present: Sequence[int]) -> None:
        super().__init__()
        experts = config.n_routed_experts
        self.present = tuple(present)
        self.k = min(config.num_experts_per_tok, len(present))
        self.normalised = config.norm_topk_prob
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size))
        self.e_score_correction_bias = nn.Buffer(torch.empty(experts))
        self.absent = nn.Buffer(torch.empty(experts), persistent=False)

    def forbid_absent(self) -> None:
        """Fill the mask; called once, after memory is there."""
        self.absent.fill_(float("-inf"))
        self.absent[list(self.present)] = 0.0

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [.., H] -> logits [T, E], gates [T, k], chosen experts [T, k]."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits = F.linear(hidden.flatten(0, -2).float(), self.weight)
        scores = logits.sigmoid()
        with torch.no_grad():
            chosen = torch.topk(
                scores + (self.e_score_correction_bias + self.absent), self.k, sorted=False
            ).indices
        gates = scores.gather(1, chosen)
        if self.normalised:
            gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        return logits, gates * self.scale, chosen


class Experts(nn.Module):
    """The experts present, as children named by their index in the released model.

    Tokens are sorted by expert and each contiguous segment goes through its expert once; nothing is computed for
    experts without tokens. `tokens` counts the rows each expert was given in training, by index.
    """

    def __init__(self, config: Glm4MoeConfig, present: Sequence[int], owned: set[int]) -> None:
        super().__init__()
        self.total = config.n_routed_experts
        self.present = tuple(present)
        self.tokens = [0] * self.total
        for index in present:
            expert = Expert(config.hidden_size, config.moe_intermediate_size, frozen=index not in owned)
            self.add_module(str(index), expert)

    def forward(self, hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """hidden [T, H], chosen [T, k], gates [T, k] -> sum over k of gate * expert(hidden), [T, H]."""
        where = routes(chosen, self.total)
        counts = where.counts.tolist()
        if self.training:
            self.tokens = [a + b for a, b in zip(self.tokens, counts, strict=True)]
        experts = [cast(Expert, self.get_submodule(str(e))) for e in self.present]
        done = swiglu(
            dispatch(hidden, where),
            [counts[e] for e in self.present],
            gate=[e.gate_proj.weight for e in experts],
            up=[e.up_proj.weight for e in experts],
            down=[e.down_proj.weight for e in experts],
        )
        return combine(done, where, gates)


class Expert(nn.Module):
    """A SwiGLU: gate and up [width, hidden], down [hidden, width]."""

    def __init__(self, hidden: int, width: int, *, frozen: bool) -> None:
        super().__init__()
        self.gate_proj = _Matrix(width, hidden, frozen)
        self.up_proj = _Matrix(width, hidden, frozen)
        self.down_proj = _Matrix(hidden, width, frozen)


class _Matrix(nn.Module):
    weight: Tensor

    def __init__(self, rows: int, columns: int, frozen: bool) -> None:
        super().__init__()
        data = torch.empty(rows, columns)
        self.weight = nn.Buffer(data) if frozen else nn.Parameter(data)


def load_state(shard: nn.Module, state: State, names: Iterable[str] | None = None) -> None:
    """Copy every tensor that shard and state both hold (or just `names`) into the shard, in place."""
    wanted = None if names is None else set(names)
    with torch.no_grad():
        for name, tensor in _tensors(shard).items():
            if name in state and (wanted is None or name in wanted):
                array = np.ascontiguousarray(state[name], np.float32)
                if tuple(tensor.shape) != array.shape:
                    raise ValueError(
                        f"{name} is {array.shape} in the state and {tuple(tensor.shape)} in the model"
                    )
                tensor.copy_(torch.tensor(array))


def read_state(shard: nn.Module, names: Iterable[str] | None = None) -> dict[str, Array]:
    """Copies of the named tensors (all the shard holds by default), fp32. Raises KeyError for one it lacks."""
    tensors = _tensors(shard)
    return {n: tensors[n].detach().cpu().numpy().copy() for n in (tensors if names is None else names)}


def resident_bytes(shard: nn.Module) -> int:
    """Bytes of all weights the shard holds, parameters and buffers."""
    held = {t.data_ptr(): t.nbytes for t in (*shard.parameters(), *shard.buffers())}
    return sum(held.values())


def expert_tokens(shard: nn.Module, expert_map: ExpertMap) -> dict[ExpertId, int]:
    """Rows given to each expert in training since the last call, summed over layers."""
    totals = dict.fromkeys(expert_map.experts, 0)
    for module in shard.modules():
        if isinstance(module, Experts):
            for expert, count in zip(expert_map.experts, module.tokens, strict=True):
                totals[expert] += count
            module.tokens = [0] * module.total
    return totals


def initial_state(model: Model, expert_map: ExpertMap, *, seed: int) -> dict[str, Array]:
    """Random weights, a pure function of seed and tensor name: N(0, initializer_range), norms 1, biases 0.

    Projections back into the residual stream are scaled by 1 / sqrt(2 layers) (GPT-2).
    """
    config = hf_config(model, len(expert_map.experts))
    deviation = float(str(config["initializer_range"]))
    residual = (2 * int(str(config["num_hidden_layers"]))) ** -0.5
    state: dict[str, Array] = {}
    for part in expert_map.slices:
        if part.kind is Kind.TRUNK_VECTOR and part.name.endswith("weight"):
            state[part.name] = np.ones(part.shape, np.float32)
        elif len(part.shape) == 1:
            state[part.name] = np.zeros(part.shape, np.float32)
        else:
            key = np.frombuffer(hashlib.sha256(f"{seed}/{part.name}".encode()).digest()[:16], np.uint64)
            draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(part.shape, np.float32)
            back = part.name.endswith(("o_proj.weight", "down_proj.weight"))
            state[part.name] = draw * np.float32(deviation * (residual if back else 1.0))
    return state


def _tensors(shard: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor; without what a release does not hold (rotary tables, the routers' masks)."""
    held: dict[str, Tensor] = dict(shard.named_parameters())
    unreleased = (".absent", "inv_freq")
    return held | {name: tensor for name, tensor in shard.named_buffers() if not name.endswith(unreleased)}


def compute_device() -> torch.device:
    """Where this process trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
