"""What an exchange makes of the sites' deltas: the product's outer step over a mean that may differ by slice and by row.

A plain mean gives the bytes that `orchestrator.combine` gives (a test holds it to that). Stretching that changes over a
run, adaptivity and SPES's merging are tried out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from commons.codec import decode, encode_with_feedback, encoded_bytes
from commons.experts.map import ExpertMap, Kind, Slice
from commons.learning import Codec, Outer
from orchestrator.combine.distances import Distances
from orchestrator.combine.outer import outer_step
from orchestrator.combine.weights import along

Array = NDArray[np.float32]
State = dict[str, Array]
Routed = Mapping[int, Sequence[int]]
"""Layer -> tokens routed to each expert, by index."""
Sent = Codec | Literal["int2"]
"""`int2` is tried out here: two bits an element."""
_BLOCK = 64
"""Elements that share a scale of two bytes."""
_STEP = 0.9957
"""Root mean squares from one of four levels to the next: the least square error of a normal distribution (Max 1960)."""


def sent_bytes(codec: Sent, part: Slice) -> int:
    if codec == "int2":
        return -(-part.size // 4) + 2 * -(-part.size // _BLOCK)
    return encoded_bytes(codec, part.shape)


def arrives(codec: Sent, delta: Array, residual: Array | None) -> tuple[Array, Array]:
    """What a codec leaves of `delta` and of what was left over, and what is left over now (error feedback)."""
    if codec == "int2":
        return _in_two_bits(delta, residual)
    data, left = encode_with_feedback(codec, delta, residual)
    return decode(codec, data, delta.shape), left


def _in_two_bits(delta: Array, residual: Array | None) -> tuple[Array, Array]:
    """Levels are half a step and one and a half to either side of zero; a block of zeros stays one."""
    wanted = delta.ravel() if residual is None else delta.ravel() + residual
    blocks = np.pad(wanted, (0, -wanted.size % _BLOCK)).reshape(-1, _BLOCK)
    step = np.float32(_STEP) * np.sqrt((blocks**2).mean(1, keepdims=True))
    level = np.clip(np.floor(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)), -2, 1)
    found = ((level + np.float32(0.5)) * step).ravel()[: wanted.size]
    return found.reshape(delta.shape), wanted - found


def mean(deltas: Sequence[Array], weights: NDArray[np.float64] | None) -> Array:
    """`weights`: [n] or, for a slice with one row per expert, [n, rows]; None: all alike. Without any weight: zeros."""
    total = np.zeros_like(deltas[0])
    if weights is None:
        for delta in deltas:
            total += delta
        total *= np.float32(1 / len(deltas))
        return total
    sums = weights.sum(0)
    shares = np.divide(weights, sums, out=np.zeros_like(weights), where=sums > 0).astype(np.float32)
    for delta, share in zip(deltas, shares, strict=True):
        total += delta * share.reshape(share.shape + (1,) * (delta.ndim - share.ndim))
    return total


def radial(deltas: Sequence[Array], weights: NDArray[np.float64] | None, share: float) -> Array:
    """The mean of the directions, stretched by `share` from the mean's own length to the mean length, geometrically: with
    share 1 the product's radial merge. `weights`: [n]."""
    alike = np.full(len(deltas), 1 / len(deltas)) if weights is None else weights / max(weights.sum(), 1.0)
    distances = Distances(len(deltas))
    distances.add(np.stack([d.ravel() for d in deltas]))
    total = np.zeros_like(deltas[0])
    for delta, counted in zip(deltas, along(distances, alike, share=share), strict=True):
        total += delta * np.float32(counted)
    return total


def exchanged(
    parts: Sequence[Slice],
    base: Mapping[str, Array],
    deltas: Sequence[Mapping[str, Array]],
    *,
    routed: Sequence[Routed] | None,
    expert_map: ExpertMap,
    momentum: State,
    outer: Outer,
    stretch: float = 0.0,
    adaptive: float = 0.0,
) -> State:
    """New values of `parts`; `momentum` is brought up to date. `routed`: by site, for weights by routed tokens."""
    new: State = {}
    for part in parts:
        given = [d[part.name] for d in deltas if part.name in d]
        weights = None if routed is None else _by_tokens(part, routed, expert_map)
        matrix = part.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT) and "embed" not in part.name
        joint = radial(given, weights, stretch) if stretch and matrix else mean(given, weights)
        if matrix and adaptive:
            joint = _levelled(joint, part.name, momentum, adaptive)
        move, velocity = outer_step(joint, momentum.get(part.name), outer)
        if velocity is not None:
            momentum[part.name] = velocity
        new[part.name] = base[part.name] + move
    return new


def _levelled(delta: Array, name: str, memory: State, decay: float) -> Array:
    """`delta` with each element divided by the root of its second moment, at the length it had."""
    before = memory.get(f"second/{name}")
    second = delta**2 if before is None else np.float32(decay) * before + np.float32(1 - decay) * delta**2
    memory[f"second/{name}"] = second
    level = delta / (np.sqrt(second) + np.float32(1e-3) * np.sqrt(second.mean()) + np.float32(1e-12))
    length = np.linalg.norm(level)
    return level * np.float32(np.linalg.norm(delta) / length) if length > 0 else delta


def towards_nearest(experts: Mapping[str, Array], expert_map: ExpertMap, alpha: float) -> State:
    """Each expert moved by `alpha` towards the mean of its four nearest of the layer, by cosine of gate_proj (SPES)."""
    new: State = {}
    groups: dict[tuple[int | None, str], list[Slice]] = {}
    for part in expert_map.slices:
        if part.kind is Kind.EXPERT:
            groups.setdefault((part.layer, part.name.split(".")[-2]), []).append(part)
    for (layer, _), parts in groups.items():
        by_expert = {p.expert: p for p in parts}
        keys = {p.expert: experts[p.name].ravel() for p in groups[layer, "gate_proj"]}
        for expert, part in by_expert.items():
            here = keys[expert]
            near = sorted(
                (e for e in keys if e != expert),
                key=lambda e: -float(keys[e] @ here) / float(np.linalg.norm(keys[e])),
            )[:4]
            centre = mean([experts[by_expert[e].name] for e in near], None)
            new[part.name] = experts[part.name] + np.float32(alpha) * (centre - experts[part.name])
    return new


def _by_tokens(part: Slice, routed: Sequence[Routed], expert_map: ExpertMap) -> NDArray[np.float64] | None:
    if part.kind not in (Kind.EXPERT, Kind.ROUTER):
        return None
    assert part.layer is not None, "experts and routers are in a layer"
    layer = part.layer
    rows = np.array([site[layer] for site in routed], np.float64)
    return rows if part.expert is None else rows[:, expert_map.index(part.expert)]
