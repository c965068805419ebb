"""The experts of a shard: each a module of its own, so that it can be present or absent, trained or frozen.

Hugging Face keeps a layer's experts in one parameter, of which no part can be frozen: momentum and weight decay move all of
it. Here an expert that is trained has parameters, and one that is not has buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from commons.experts.family import Mixture
from workers.routed import combine, dispatch, products, routes, swiglu, total


class Experts(nn.Module):
    """The experts present, as children named by their index in the released model.

    Tokens are sorted by expert and each contiguous segment goes through its expert once; nothing is computed for
    experts without tokens. `tokens` counts the rows each expert was given in training, by index.
    """

    def __init__(self, present: Mapping[int, nn.Module], *, total: int, gates_on_input: bool) -> None:
        super().__init__()
        self.total = total
        self.present = tuple(present)
        self.gates_on_input = gates_on_input
        self.stacked = any(isinstance(expert, StackedExpert) for expert in present.values())
        self.tokens = [0] * total
        self.skips = False
        """Whether a gate of 0 means that nothing is computed."""
        for index, expert in present.items():
            self.add_module(str(index), expert)

    def forward(self, hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """hidden [T, H], chosen [T, k], gates [T, k] -> sum over k of gate * expert(hidden), or expert(gate * hidden), [T, H]."""
        if self.skips:
            return self._some(hidden, chosen, gates)
        where = routes(chosen, self.total)
        counts = where.counts.tolist()
        if self.training:
            self.tokens = [a + b for a, b in zip(self.tokens, counts, strict=True)]
        rows = dispatch(hidden, where)
        if self.gates_on_input:
            rows = rows * gates.flatten().index_select(0, where.order).unsqueeze(1)
        done = self._through(rows, [counts[e] for e in self.present])
        return total(done, where, chosen.shape[1]) if self.gates_on_input else combine(done, where, gates)

    def _some(self, hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """`forward` over the pairs of token and expert whose gate is not 0."""
        pairs = gates.flatten().nonzero().squeeze(1)
        pairs = pairs[torch.argsort(chosen.flatten()[pairs], stable=True)]
        counts = torch.bincount(chosen.flatten()[pairs], minlength=self.total).tolist()
        self.tokens = [a + b for a, b in zip(self.tokens, counts, strict=True)]
        tokens, gate = pairs // chosen.shape[1], gates.flatten()[pairs].unsqueeze(1)
        rows = hidden[tokens] * gate if self.gates_on_input else hidden[tokens]
        done = self._through(rows, [counts[e] for e in self.present])
        return torch.zeros_like(hidden).index_add(0, tokens, done if self.gates_on_input else done * gate)

    def _through(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Each present expert's segment of `rows` [n, H] through it."""
        matrices = [cast(Expert | StackedExpert, self.get_submodule(str(e))).matrices() for e in self.present]
        if self.stacked:
            gate_up, down = zip(*matrices, strict=True)
            gate, up = products(rows, gate_up, counts, transposed=True).chunk(2, dim=-1)
            return products(up * F.silu(gate), down, counts, transposed=True)
        gates, ups, downs = zip(*matrices, strict=True)
        return swiglu(rows, counts, gate=gates, up=ups, down=downs)


def expert(mixture: Mixture, hidden: int, width: int, *, frozen: bool) -> nn.Module:
    """One expert under the names, and in the layout, of its slices."""
    if mixture.stacked:
        return StackedExpert(hidden, width, frozen=frozen)
    return Expert(hidden, width, names=mixture.matrices, frozen=frozen)


class Expert(nn.Module):
    """A SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, width: int, *, names: tuple[str, ...], frozen: bool) -> None:
        super().__init__()
        self.names = names
        for name, shape in zip(names, ((width, hidden), (width, hidden), (hidden, width)), strict=True):
            self.add_module(name, _Matrix(shape, frozen))

    def matrices(self) -> tuple[Tensor, ...]:
        """Gate and up [W, H], down [H, W]."""
        return tuple(cast(_Matrix, self.get_submodule(name)).weight for name in self.names)


class StackedExpert(nn.Module):
    """An entry of a stack: matrices are [in, out], gate and up side by side."""

    gate_up_proj: Tensor
    down_proj: Tensor

    def __init__(self, hidden: int, width: int, *, frozen: bool) -> None:
        super().__init__()
        self.gate_up_proj = _weight((hidden, 2 * width), frozen)
        self.down_proj = _weight((width, hidden), frozen)

    def matrices(self) -> tuple[Tensor, ...]:
        """Gate and up together [H, 2 W], down [W, H]."""
        return self.gate_up_proj, self.down_proj


class _Matrix(nn.Module):
    weight: Tensor

    def __init__(self, shape: tuple[int, int], frozen: bool) -> None:
        super().__init__()
        self.weight = _weight(shape, frozen)


def _weight(shape: tuple[int, int], frozen: bool) -> Tensor:
    data = torch.empty(shape)
    return nn.Buffer(data) if frozen else nn.Parameter(data)


class InputGated(nn.Module):
    """Llama 4's block of experts, in place of the one in transformers, which runs every expert on every token."""

    def __init__(self, router: nn.Module, experts: Experts, shared_expert: nn.Module) -> None:
        super().__init__()
        self.router, self.experts, self.shared_expert = router, experts, shared_expert

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [.., H] -> (outputs [T, H], logits [T, E])."""
        flat = hidden.flatten(0, -2)
        logits, gates, chosen = self.router(flat)
        return self.shared_expert(flat) + self.experts(flat, chosen, gates), logits
