"""A site's part of the model: a Hugging Face model that holds only the experts it was given.

Attention, norms and dense layers are those of transformers; router and experts are ours (`workers.routers`,
`workers.experts`). Joint: own experts are parameters, the other sites' (guests) are frozen buffers, out of reach of
gradient, momentum and weight decay. Lean: guests do not exist, in memory or in the router's choice. State is read and
written under canonical on-disk names alone. Knows nothing of rounds, data or optimisers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.glm4_moe import modeling_glm4_moe  # noqa: F401 (the usual family, before a round's time runs)

from commons.charter import Model
from commons.experts.families import FAMILIES
from commons.experts.initial import deviation
from commons.experts.map import ExpertMap, Kind
from commons.experts.readers import PREFIX
from commons.names import ExpertId, SiteId
from workers.experts import Experts, InputGated, expert
from workers.readers import Readers, read_with
from workers.routers import Router

Array = NDArray[np.float32]
State = Mapping[str, Array]
"""fp32 arrays under the names a released model.safetensors holds."""


def build_shard(
    model: Model, expert_map: ExpertMap, *, own: Iterable[ExpertId], guests: bool, state: State
) -> nn.Module:
    """The trunk with the `own` experts and, with `guests`, all others frozen; weights from `state`.

    Memory is allocated for what the shard holds and nothing else. Raises KeyError naming a tensor missing in `state`.
    """
    owned = {expert_map.index(e) for e in own}
    present = sorted(range(len(expert_map.experts)) if guests else owned)
    if not present:
        raise ValueError("a shard needs at least one expert: this site owns none and takes no guests")
    family = FAMILIES[model.family]
    described = family.hf_config(model.config, len(expert_map.experts), end=model.tokenizer.end)
    architecture = getattr(transformers, family.architecture)
    config = architecture.config_class(**described)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        shard = architecture(config)
        for layer in family.mixed(family.settings(model.config)):
            _place(shard.model.layers[layer], model, present, owned, total=len(expert_map.experts))
        if model.reader:
            _listen(shard, model, expert_map, present, owned)
    shard.to_empty(device=compute_device())
    shard.tie_weights()
    shard.model.rotary_emb = type(shard.model.rotary_emb)(config).to(compute_device())
    for module in shard.modules():
        if isinstance(module, Router):
            module.forbid_absent()
    missing = sorted(set(_tensors(shard)) - set(state))
    if missing:
        raise KeyError(f"the state lacks {missing[0]} and {len(missing) - 1} more tensors this shard holds")
    load_state(shard, state)
    return cast(nn.Module, shard.train())


def _place(layer: nn.Module, model: Model, present: Sequence[int], owned: set[int], *, total: int) -> None:
    """Our router and experts into a decoder layer's block."""
    family = FAMILIES[model.family]
    c, mixture = family.settings(model.config), family.mixture
    hidden, width, routing = c.whole("hidden_size"), family.widths(c).expert, family.routing(c)
    k = c.whole("num_experts_per_tok")
    router = Router(routing, hidden=hidden, experts=total, k=k, present=present, biased=mixture.biased)
    experts = Experts(
        {index: expert(mixture, hidden, width, frozen=index not in owned) for index in present},
        total=total,
        gates_on_input=routing.on_input,
    )
    block = layer.get_submodule(mixture.module)
    if routing.on_input:
        setattr(layer, mixture.module, InputGated(router, experts, block.get_submodule("shared_expert")))
    else:
        block.gate, block.experts = router, experts


def _listen(
    shard: nn.Module, model: Model, expert_map: ExpertMap, present: Sequence[int], owned: set[int]
) -> None:
    """The readers of all sites that have an expert here; trained: that of the only owner. Nobody reads for an expert in
    escrow, so it is not chosen."""
    groups: dict[SiteId, list[int]] = {}
    for index in present:
        if (owner := expert_map.owners[expert_map.experts[index]]) is not None:
            groups.setdefault(owner, []).append(index)
    owners = {expert_map.owners[expert_map.experts[index]] for index in owned}
    keys = FAMILIES[model.family].settings(model.config)
    readers = Readers(
        groups,
        trained=next(iter(owners)) if len(owners) == 1 else None,
        width=model.reader,
        hidden=keys.whole("hidden_size"),
        vocabulary=keys.whole("vocab_size"),
    )
    read_with(shard, readers)
    for module in shard.modules():
        if isinstance(module, Router):
            module.shares, module.groups = readers.shares, readers.groups
        if isinstance(module, Experts):
            module.skips = readers.choose


def weights(shard: nn.Module) -> dict[str, nn.Parameter]:
    """What the shard trains, by canonical name: trunk, router and its own experts, or what `train_only` left of them."""
    return {name: parameter for name, parameter in _parameters(shard).items() if parameter.requires_grad}


def train_only(shard: nn.Module, names: Collection[str]) -> None:
    """Of trunk, router and own experts those with these names are trained; the others take no gradient and cost none."""
    for name, parameter in _parameters(shard).items():
        parameter.requires_grad_(name in names)


def fixed_rows(shard: nn.Module) -> dict[str, tuple[int, ...]]:
    """Rows of trained slices that must stay as they are, by canonical name: an absent expert's in every router."""
    named, found = _canonical(shard), {}
    for name, module in shard.named_modules():
        if isinstance(module, Router) and module.fixed_rows:
            found[named(f"{name}.weight")] = module.fixed_rows
    return found


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


def routed_tokens(shard: nn.Module) -> tuple[tuple[int, ...], ...]:
    """Rows given to each expert in training since the last call, by index, in each layer that has a router."""
    found = []
    for module in shard.modules():
        if isinstance(module, Experts):
            found.append(tuple(module.tokens))
            module.tokens = [0] * module.total
    return tuple(found)


def initial_state(model: Model, expert_map: ExpertMap, *, seed: int) -> dict[str, Array]:
    """Random weights, a pure function of seed and tensor name: N(0, initializer_range), norms 1, biases 0.

    Projections back into the residual stream are scaled by 1 / sqrt(2 layers) (GPT-2).
    """
    state: dict[str, Array] = {}
    for part in expert_map.slices:
        if part.kind is Kind.TRUNK_VECTOR and part.name.endswith("weight"):
            state[part.name] = np.ones(part.shape, np.float32)
        elif len(part.shape) == 1:
            state[part.name] = np.zeros(part.shape, np.float32)
        else:
            key = np.frombuffer(hashlib.sha256(f"{seed}/{part.name}".encode()).digest()[:16], np.uint64)
            draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(part.shape, np.float32)
            state[part.name] = draw * np.float32(deviation(model, part.name))
    return state


def _parameters(shard: nn.Module) -> dict[str, nn.Parameter]:
    named = _canonical(shard)
    return {named(name): parameter for name, parameter in shard.named_parameters()}


def _tensors(shard: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor; without what a release does not hold (rotary tables, the routers' masks)."""
    named, unreleased = _canonical(shard), (".absent", "inv_freq")
    held: dict[str, Tensor] = dict(_parameters(shard))
    return held | {
        named(name): tensor for name, tensor in shard.named_buffers() if not name.endswith(unreleased)
    }


def _canonical(shard: nn.Module) -> Callable[[str], str]:
    """From a tensor's place in transformers' module to its canonical name."""
    mixture = FAMILIES[cast(Any, shard).config.model_type].mixture
    block = re.compile(rf"^(model\.layers\.\d+)\.{mixture.module}\.")
    return lambda name: block.sub(rf"\1.{mixture.stored}.", name).replace("readers.of_", PREFIX, 1)


def compute_device() -> torch.device:
    """Where this process trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
