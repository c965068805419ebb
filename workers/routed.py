"""Routed experts: a token goes through the experts chosen for it, and nothing is computed for any other.

Tokens are sorted by expert, and each expert multiplies its contiguous segment: one product for every expert that has
tokens, or on a GPU one grouped product for all. Serves a site's shard, whose experts are separate matrices, and whole
Hugging Face models, whose experts are fused (`compute_routed_only`). Sorting and unsorting are gathers in both
directions: no sum depends on the order in which threads reach it. Knows nothing of routers, sites or optimisers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IMPLEMENTATION = "hansa"
"""The name under which transformers knows `experts_forward`."""
_ALIGNED_BYTES = 16
"""What a row of an operand of a grouped product must be a multiple of, on a GPU."""


class Routes(NamedTuple):
    """Which rows go where. A pair is one token and one of its k choices, numbered token by token."""

    order: Tensor
    """[T k]: the pair that stands at each place once pairs are sorted by expert."""
    back: Tensor
    """[T k]: the place of each pair."""
    counts: Tensor
    """[E]: pairs of each expert."""


def routes(chosen: Tensor, experts: int) -> Routes:
    """Of the experts `chosen` [T, k] by each token, out of as many as `experts`."""
    flat = chosen.flatten()
    order = torch.argsort(flat, stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return Routes(order, back, torch.bincount(flat, minlength=experts))


def dispatch(hidden: Tensor, where: Routes) -> Tensor:
    """hidden [T, H] -> the row of each pair, sorted by expert, [T k, H]."""
    rows: Tensor = _Dispatch.apply(hidden, where.order, where.back)  # type: ignore[no-untyped-call]
    return rows


def combine(rows: Tensor, where: Routes, gates: Tensor) -> Tensor:
    """rows [T k, H] as `dispatch` sorts them, gates [T, k] -> each token's sum over k of gate * row, [T, H]."""
    found: Tensor = _Combine.apply(rows, gates, where.order, where.back)  # type: ignore[no-untyped-call]
    return found


def total(rows: Tensor, where: Routes, k: int) -> Tensor:
    """rows [T k, H] as `dispatch` sorts them -> each token's sum over its k, [T, H]."""
    return _over_choices(_pairs(rows, where), k)


def products(
    rows: Tensor, weights: Tensor | Sequence[Tensor], counts: Sequence[int], *, transposed: bool = False
) -> Tensor:
    """Each expert's segment of `rows` [n, in] times its matrix, [n, out]; an idle expert costs nothing.

    `weights`: one fused [E, out, in] or a matrix [out, in] for each expert, [.., in, out] when `transposed`. `counts` [E]
    are the segments' lengths and sum to n. The gradient of an idle expert's own matrix is None, its part of a fused
    one zero. Under autocast the products are in its precision.
    """
    matrices = [weights] if isinstance(weights, Tensor) else list(weights)
    found: Tensor = _Products.apply(  # type: ignore[no-untyped-call]
        _autocast(rows), counts, transposed, *map(_autocast, matrices)
    )
    return found


def swiglu(
    rows: Tensor,
    counts: Sequence[int],
    *,
    gate: Sequence[Tensor],
    up: Sequence[Tensor],
    down: Sequence[Tensor],
) -> Tensor:
    """Each expert's segment of `rows` [n, H] through its SwiGLU: gate and up [W, H], down [H, W] -> [n, H].

    As `products` for the rest; an expert's three matrices are trained together or not at all. One expert is finished before the next begins, while its rows are in the cache.
    """
    found: Tensor = _Swiglu.apply(  # type: ignore[no-untyped-call]
        _autocast(rows), counts, *map(_autocast, (*gate, *up, *down))
    )
    return found


def experts_forward(module: nn.Module, hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    """An experts function of transformers (`ALL_EXPERTS_FUNCTIONS`): hidden [T, H], chosen and gates [T, k] -> [T, H].

    `module` is an experts class behind `use_experts_implementation`, of any layout that knows: fused, gated or not,
    transposed or not, with biases or without.
    """
    m: Any = module
    where = routes(chosen, m.num_experts)
    linear = _Fused(where, transposed=m.is_transposed, device=hidden.device)
    rows = dispatch(hidden, where)
    if m.has_gate:
        inner = m._apply_gate(linear(rows, m.gate_up_proj, m.gate_up_proj_bias if m.has_bias else None))
    else:
        inner = m.act_fn(linear(rows, m.up_proj, m.up_proj_bias if m.has_bias else None))
    done = linear(inner, m.down_proj, m.down_proj_bias if m.has_bias else None)
    if m.has_post_expert_norm:
        done = m.post_expert_norm(done)
    return combine(done, where, gates).to(hidden.dtype)


def compute_routed_only(model: nn.Module) -> None:
    """Make a whole transformers model compute routed tokens only, in place; weights and state stay as they are.

    A model without experts, or whose experts transformers does not let anybody replace, stays as it is.
    """
    m: Any = model
    if m.config.model_type.startswith("llama4"):
        from workers.llama4_moe import compute_routed_only as of_llama4

        of_llama4(model)
    elif m._can_set_experts_implementation():
        m.set_experts_implementation(IMPLEMENTATION)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)


class _Fused:
    """Products with fused experts: grouped where the device has it, else expert by expert."""

    def __init__(self, where: Routes, *, transposed: bool, device: torch.device) -> None:
        self._where, self._transposed = where, transposed
        self._grouped = _groups(device)
        self._counts: list[int] = [] if self._grouped else where.counts.tolist()
        self._offsets = where.counts.cumsum(0, dtype=torch.int32)

    def __call__(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, cast = _autocast(rows), _autocast(weight)
        if self._grouped and _aligned(rows, cast):
            out = grouped(rows, cast if self._transposed else cast.transpose(1, 2), self._offsets)
        else:
            counts = self._counts or self._where.counts.tolist()
            out = products(rows, cast, counts, transposed=self._transposed)
        if bias is None:
            return out
        each = torch.repeat_interleave(self._where.counts, output_size=len(rows))
        return out + bias.index_select(0, each).to(out.dtype)


def grouped(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Segments of `rows` [n, in] that end at `offsets` [E] times `weight` [E, in, out], in one call, [n, out]."""
    call: Any = getattr(F, "grouped_mm", None) or torch._grouped_mm
    out: Tensor = call(rows, weight, offs=offsets)
    return out


def _groups(device: torch.device) -> bool:
    """Whether the device has a grouped product (CUDA, compute capability 8.0)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _aligned(rows: Tensor, weight: Tensor) -> bool:
    widths = (rows.shape[1], *weight.shape[1:])
    return rows.dtype == torch.bfloat16 and not any(w * rows.itemsize % _ALIGNED_BYTES for w in widths)


def _pairs(rows: Tensor, where: Routes) -> Tensor:
    """Sorted rows in the order of their pairs again."""
    pairs: Tensor = _Permute.apply(rows, where.back, where.order)  # type: ignore[no-untyped-call]
    return pairs


def _over_choices(pairs: Tensor, k: int) -> Tensor:
    """pairs [T k, H] -> each token's sum over its k, [T, H]: row added to row, which a CPU does faster than a reduction."""
    return reduce(torch.add, pairs.view(-1, k, pairs.shape[1]).unbind(1))


def _autocast(tensor: Tensor) -> Tensor:
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, order: Tensor, back: Tensor) -> Tensor:
        k = len(order) // max(1, len(hidden))
        ctx.k = k
        ctx.save_for_backward(back)
        return hidden.index_select(0, order if k == 1 else order // k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        pairs = gradient.index_select(0, back)
        return _over_choices(pairs, ctx.k), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, back: Tensor) -> Tensor:
        pairs = rows.index_select(0, back).view(*gates.shape, rows.shape[1])
        ctx.save_for_backward(pairs, gates, order)
        first, *others = zip(pairs.unbind(1), gates.unsqueeze(2).unbind(1), strict=True)
        sums = first[0] * first[1]
        for each in others:
            sums.addcmul_(*each)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        pairs, gates, order = ctx.saved_tensors
        k = gates.shape[1]
        of_rows = gradient.index_select(0, order if k == 1 else order // k)
        of_rows *= gates.flatten().index_select(0, order).unsqueeze(1)
        of_gates = torch.bmm(pairs.to(gradient.dtype), gradient.unsqueeze(2)).squeeze(2)
        return of_rows.to(pairs.dtype), of_gates.to(gates.dtype), None, None


class _Permute(torch.autograd.Function):
    """rows[places]; `inverse` undoes it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(0, inverse), None, None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], transposed: bool, *weights: Tensor) -> Tensor:
        matrices = _matrices(weights)
        out = rows.new_empty(len(rows), matrices[0].shape[1 if transposed else 0])
        for expert, given, done in _busy(counts, rows, out):
            matrix = matrices[expert]
            torch.mm(given, matrix if transposed else matrix.t(), out=done)
        ctx.save_for_backward(rows, *weights)
        ctx.counts, ctx.transposed = counts, transposed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rows, *weights = ctx.saved_tensors
        _, _, _, *wanted = ctx.needs_input_grad
        matrices = _matrices(weights)
        of_rows = torch.empty_like(rows)
        fused = torch.empty_like(weights[0]) if weights[0].ndim == 3 and wanted[0] else None
        apart: list[Tensor | None] = [None] * len(weights)
        for expert, given, after, part in _busy(ctx.counts, rows, gradient, of_rows):
            matrix = matrices[expert]
            torch.mm(after, matrix.t() if ctx.transposed else matrix, out=part)
            factors = (given.t(), after) if ctx.transposed else (after.t(), given)
            if fused is not None:
                torch.mm(*factors, out=fused[expert])
            elif weights[0].ndim == 2 and wanted[expert]:
                apart[expert] = torch.mm(*factors)
        if fused is not None:
            for expert in (e for e, count in enumerate(ctx.counts) if not count):
                fused[expert].zero_()
        return of_rows, None, None, *([fused] if weights[0].ndim == 3 else apart)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], *weights: Tensor) -> Tensor:
        gate, up, down = _thirds(weights)
        out, kept = torch.empty_like(rows), list[Tensor]()
        for expert, given, done in _busy(counts, rows, out):
            by_gate, by_up = F.linear(given, gate[expert]), F.linear(given, up[expert])
            open_ = F.silu(by_gate)
            inner = open_ * by_up
            torch.mm(inner, down[expert].t(), out=done)
            kept += by_gate, by_up, open_, inner
        ctx.save_for_backward(rows, *weights, *kept)
        ctx.counts = counts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        rows, *others = ctx.saved_tensors
        weights, kept = others[: 3 * len(ctx.counts)], iter(others[3 * len(ctx.counts) :])
        gate, up, down = _thirds(weights)
        _, _, *wanted = ctx.needs_input_grad
        of_rows = torch.empty_like(rows)
        of_gate, of_up, of_down = _thirds([None] * len(weights))
        for expert, given, after, part in _busy(ctx.counts, rows, gradient, of_rows):
            by_gate, by_up, open_, inner = (next(kept) for _ in range(4))
            at_inner = after.mm(down[expert])
            at_up = at_inner * open_
            at_gate = torch.ops.aten.silu_backward(at_inner.mul_(by_up), by_gate)
            if wanted[expert]:
                of_gate[expert] = at_gate.t().mm(given)
                of_up[expert] = at_up.t().mm(given)
                of_down[expert] = after.t().mm(inner)
            torch.mm(at_gate, gate[expert], out=part)
            part += at_up.mm(up[expert])
        return of_rows, None, *of_gate, *of_up, *of_down


def _busy(counts: Sequence[int], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """(expert, its segment of each of the tensors) for every expert that has rows."""
    segments = [torch.split(tensor, list(counts)) for tensor in tensors]
    return ((e, *(s[e] for s in segments)) for e, count in enumerate(counts) if count)


def _thirds(weights: Sequence[Any]) -> Iterator[list[Any]]:
    """Gate, up and down of all experts."""
    third = len(weights) // 3
    return (list(weights[n * third : (n + 1) * third]) for n in range(3))


def _matrices(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return weights[0].unbind() if weights[0].ndim == 3 else weights
