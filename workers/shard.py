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
from commons.experts.map import ExpertMap
from commons.experts.own import PREFIX as OWN
from commons.experts.readers import PREFIX as READERS
from commons.names import ExpertId, SiteId
from workers.experts import Experts, InputGated, expert
from workers.readers import Readers, read_with
from workers.routers import Router
from workers.tails import Cut, cut_early, cut_tail, hear_before, join

Array = NDArray[np.float32]
State = Mapping[str, Array]
"""fp32 arrays under the names a released model.safetensors holds."""
_UNRELEASED = (".absent", "inv_freq")
"""Ends of the names of what a release does not hold: the routers' masks, rotary tables."""
_TAIL = re.compile(r"^tails\.of_([^.]+)\.")


def build_shard(
    model: Model, expert_map: ExpertMap, *, own: Iterable[ExpertId], guests: bool, state: State
) -> nn.Module:
    """The trunk with the `own` experts and, with `guests`, all others frozen; weights from `state`.

    Own layers are those of the site whose experts are there; with several sites that have readers, each has its own
    (`workers.tails`). Memory is allocated for what the shard holds and nothing else. Raises KeyError naming a tensor missing
    in `state`.
    """
    owned = {expert_map.index(e) for e in own}
    present = sorted(range(len(expert_map.experts)) if guests else owned)
    if not present:
        raise ValueError("a shard needs at least one expert: this site owns none and takes no guests")
    groups = _groups(expert_map, present)
    if model.reader and expert_map.late and len(groups) > 1:
        shard = _in_tails(model, expert_map, groups, owned)
    else:
        with torch.device("meta"):
            shard = _bare(model, expert_map, present, owned)
            if model.reader:
                readers = _readers(model, expert_map, groups, owned)
                _listen(shard, readers)
                if model.own_from is not None:
                    hear_before(shard, Cut.before(model.own_from, expert_map.routed_layers[0]), readers)
        _allocate(shard)
        if len(groups) == 1:
            shard.own_layers = expert_map.late, *groups
    missing = sorted(set(_tensors(shard)) - set(state))
    if missing:
        raise KeyError(f"the state lacks {missing[0]} and {len(missing) - 1} more tensors this shard holds")
    load_state(shard, state)
    return shard.train()


def _groups(expert_map: ExpertMap, present: Sequence[int]) -> dict[SiteId, list[int]]:
    """The indices of each site's experts that are present. One in escrow is in no group."""
    groups: dict[SiteId, list[int]] = {}
    for index in present:
        if (owner := expert_map.owners[expert_map.experts[index]]) is not None:
            groups.setdefault(owner, []).append(index)
    return groups


def _in_tails(
    model: Model, expert_map: ExpertMap, groups: Mapping[SiteId, Sequence[int]], owned: set[int]
) -> nn.Module:
    """What sites share before they part, once, and the rest of each site's shard; without values."""
    assert model.own_from is not None, "sites have layers of their own"
    family, cut = FAMILIES[model.family], Cut.before(model.own_from, expert_map.routed_layers[0])
    pair = family.routing(family.settings(model.config)).on_input
    readers = _readers(model, expert_map, groups, owned).to(compute_device())
    with torch.device("meta"):
        early = _bare(model, expert_map, (), owned)
        cut_early(early, cut, family.mixture.module, pair=pair, readers=readers)
    _allocate(early)
    held: dict[str, Any] = {}
    _share(early, expert_map.late, held)
    tails: dict[str, nn.Module] = {}
    for site, present in groups.items():
        with torch.device("meta"):
            tail = _bare(model, expert_map, present, owned)
            cut_tail(tail, cut)
        _allocate(tail)
        tail.model.embed_tokens = early.model.embed_tokens
        _share(tail, expert_map.late, held)
        tail.tie_weights()
        tails[site] = tail
    join(early, tails, readers)
    early.own_layers = expert_map.late, None
    return cast(nn.Module, early)


def _share(shard: nn.Module, late: Collection[str], held: dict[str, Any]) -> None:
    """One tensor for all shards of each that is in `held`, by canonical name, but for `late`; what is new comes in."""
    named = _canonical(shard)
    for place, module in shard.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                name = named(f"{place}.{key}")
                if tensor is not None and name not in late and not name.endswith(_UNRELEASED):
                    tensors[key] = held.setdefault(name, tensor)


def _bare(model: Model, expert_map: ExpertMap, present: Sequence[int], owned: set[int]) -> Any:
    """The family's model with these experts in place of its own, and without memory."""
    family = FAMILIES[model.family]
    architecture = getattr(transformers, family.architecture)
    described = family.hf_config(model.config, len(expert_map.experts), end=model.tokenizer.end)
    config = architecture.config_class(**described)
    config._attn_implementation = "sdpa"
    shard = architecture(config)
    for layer in family.mixed(family.settings(model.config)) if present else ():
        _place(shard.model.layers[layer], model, present, owned, total=len(expert_map.experts))
    return shard


def _allocate(shard: Any) -> None:
    """Memory for its weights, without values."""
    shard.to_empty(device=compute_device())
    shard.tie_weights()
    shard.model.rotary_emb = type(shard.model.rotary_emb)(shard.config).to(compute_device())
    for module in shard.modules():
        if isinstance(module, Router):
            module.forbid_absent()


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


def _readers(
    model: Model, expert_map: ExpertMap, groups: Mapping[SiteId, Sequence[int]], owned: set[int]
) -> Readers:
    """Of all sites that have an expert here; trained: that of the only owner. Nobody reads for an expert in escrow, so it is not
    chosen."""
    owners = {expert_map.owners[expert_map.experts[index]] for index in owned}
    keys = FAMILIES[model.family].settings(model.config)
    return Readers(
        groups,
        trained=next(iter(owners)) if len(owners) == 1 else None,
        width=model.reader,
        hidden=keys.whole("hidden_size"),
        vocabulary=keys.whole("vocab_size"),
    )


def _listen(shard: nn.Module, readers: Readers) -> None:
    """Readers follow the shard's forwards, and its routers weigh the experts by their shares."""
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
        if part.stands_for is not None:
            continue
        if len(part.shape) == 1 and part.name.endswith("weight"):
            state[part.name] = np.ones(part.shape, np.float32)
        elif len(part.shape) == 1:
            state[part.name] = np.zeros(part.shape, np.float32)
        else:
            key = np.frombuffer(hashlib.sha256(f"{seed}/{part.name}".encode()).digest()[:16], np.uint64)
            draw = np.random.Generator(np.random.Philox(key=key)).standard_normal(part.shape, np.float32)
            state[part.name] = draw * np.float32(deviation(model, part.name))
    return state | {s.name: state[s.stands_for] for s in expert_map.slices if s.stands_for is not None}


def _parameters(shard: nn.Module) -> dict[str, nn.Parameter]:
    named = _canonical(shard)
    return {named(name): parameter for name, parameter in shard.named_parameters()}


def _tensors(shard: nn.Module) -> dict[str, Tensor]:
    """Canonical name -> tensor; without what a release does not hold (rotary tables, the routers' masks)."""
    named = _canonical(shard)
    held: dict[str, Tensor] = dict(_parameters(shard))
    return held | {
        named(name): tensor for name, tensor in shard.named_buffers() if not name.endswith(_UNRELEASED)
    }


def _canonical(shard: nn.Module) -> Callable[[str], str]:
    """From a tensor's place in transformers' module to its canonical name."""
    mixture = FAMILIES[cast(Any, shard).config.model_type].mixture
    late, owner = getattr(shard, "own_layers", ((), None))
    block = re.compile(rf"^(model\.layers\.\d+)\.{mixture.module}\.")

    def named(place: str) -> str:
        tail = _TAIL.match(place)
        name = block.sub(rf"\1.{mixture.stored}.", place[tail.end() :] if tail else place)
        site = tail[1] if tail else owner
        return f"{OWN}{site}.{name}" if site and name in late else name.replace("readers.of_", READERS, 1)

    return named


def compute_device() -> torch.device:
    """Where this process trains."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
