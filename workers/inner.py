"""The inner optimiser of a shard, and its state as plain arrays.

AdamW for everything, or, as the charter says, Muon for the matrices inside the network (trunk and experts) and AdamW
for the rest: embedding, output head, norms, biases and router. Guests are buffers and have no state here. Knows nothing
of rounds or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from commons.experts.map import ExpertMap, Kind
from commons.learning import Learning
from workers.shard import fixed_rows, weights

Array = NDArray[np.float32]
BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95
CLIP_NORM = 1.0
_ADAM = {"first": "exp_avg", "second": "exp_avg_sq"}
_MUON = {"momentum": "momentum_buffer"}


class _Part(NamedTuple):
    optimizer: torch.optim.Optimizer
    keys: dict[str, str]
    """Prefix of an array's name -> key in the optimiser's state."""
    names: list[str]
    """Of the parameters it moves."""


class InnerOptimizer:
    """For one round of one shard."""

    def __init__(self, shard: nn.Module, expert_map: ExpertMap, learning: Learning) -> None:
        self._named, self._fixed = weights(shard), fixed_rows(shard)
        readers = {s.name for s in expert_map.slices if s.kind is Kind.READER}
        self._clipped = [
            found for of in (False, True) if (found := [n for n in self._named if (n in readers) is of])
        ]
        """Names of the parameters that are clipped together."""
        decayed = {
            s.name
            for s in expert_map.slices
            if s.kind in (Kind.TRUNK_MATRIX, Kind.EXPERT) or (s.kind is Kind.OWN and len(s.shape) > 1)
        }
        orthogonal = (
            _inside(shard, self._named, decayed) if learning.inner_optimizer == "muon" else set[str]()
        )
        by_adam = [n for n in self._named if n not in orthogonal]
        by_muon = [n for n in self._named if n in orthogonal]
        rate, decay = learning.learning_rate, learning.weight_decay
        groups = [
            {"params": [self._named[n] for n in by_adam if n in decayed], "weight_decay": decay},
            {"params": [self._named[n] for n in by_adam if n not in decayed], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
        self._optimizers: list[_Part] = [_Part(adam, _ADAM, by_adam)]
        self._resting: dict[str, Array] = {}
        self._resting_steps: dict[str, int] = {}
        if by_muon:
            # A step then has the size of AdamW's, so that one rate and one decay serve both (arXiv 2502.16982, 2.2).
            muon = torch.optim.Muon(
                [self._named[n] for n in by_muon],
                lr=rate, weight_decay=decay, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw",
            )  # fmt: skip
            self._optimizers.append(_Part(muon, _MUON, by_muon))

    def step(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of `loss`, clipped to `CLIP_NORM` over all parameters; a reader's apart from them."""
        for optimizer, _, _ in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for together in self._clipped:
            parts = [self._named[name] for name in together]
            nn.utils.clip_grads_with_norm_(parts, CLIP_NORM, self._norm(together))
        for optimizer, _, _ in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def _norm(self, names: Sequence[str]) -> Tensor:
        """L2, of these gradients together. Rows that are fixed are none of it, so that not a bit depends on how many there are."""
        found = []
        for name in names:
            parameter = self._named[name]
            if parameter.grad is not None:
                moving = sorted(set(range(len(parameter))) - set(self._fixed.get(name, ())))
                found.append(parameter.grad[moving] if name in self._fixed else parameter.grad)
        return nn.utils.get_total_norm(found)

    def restore(self, arrays: Mapping[str, Array], steps: Mapping[str, int]) -> None:
        """Go on from what `arrays` and `steps` of an earlier round say; what they do not name starts at zero.

        Moments of weights that are not trained now rest until they are.
        """
        for key, array in arrays.items():
            prefix, _, name = key.partition("/")
            if prefix in {**_ADAM, **_MUON} and name not in self._named:
                self._resting[key] = array
        self._resting_steps = {name: count for name, count in steps.items() if name not in self._named}
        for optimizer, keys, names in self._optimizers:
            for name in names:
                if not all(f"{prefix}/{name}" in arrays for prefix in keys):
                    continue
                parameter = self._named[name]
                state = {
                    k: torch.tensor(arrays[f"{p}/{name}"], device=parameter.device) for p, k in keys.items()
                }
                if keys is _ADAM:
                    state["step"] = torch.tensor(float(steps[name]), device=parameter.device)
                for (
                    moment
                ) in keys.values():  # of rounds with guests, it would go on moving what is absent now
                    state[moment][list(self._fixed.get(name, ()))] = 0.0
                optimizer.state[parameter] = state

    def arrays(self) -> dict[str, Array]:
        """Moments, by `first/NAME`, `second/NAME` and `momentum/NAME`; none for what has never moved."""
        return self._resting | {
            f"{prefix}/{name}": state[key].cpu().numpy()
            for part in self._optimizers
            for name, state in self._moved(part)
            for prefix, key in part.keys.items()
        }

    def steps(self) -> dict[str, int]:
        """Steps of AdamW so far, by parameter."""
        adam = self._optimizers[0]
        return self._resting_steps | {name: int(state["step"]) for name, state in self._moved(adam)}

    def bytes(self) -> int:
        """Of gradients and moments, once everything has moved."""
        return sum(
            (1 + len(part.keys)) * self._named[name].nbytes
            for part in self._optimizers
            for name in part.names
        )

    def _moved(self, part: _Part) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in part.names:
            if state := part.optimizer.state.get(self._named[name]):
                yield name, state


def _inside(shard: nn.Module, named: Mapping[str, Tensor], matrices: set[str]) -> set[str]:
    """Names of the matrices that stand neither at the shard's entrance nor at its exit."""
    ends: Any = shard
    outer = {id(m.weight) for m in (ends.get_input_embeddings(), ends.get_output_embeddings())}
    return {n for n, t in named.items() if n in matrices and t.ndim == 2 and id(t) not in outer}


def computed_in(learning: Learning, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision of a step's matrix products on this device; weights, moments and the loss are fp32 always.

    bf16 where the charter wants it, on a GPU that has it. What it does to processors depends on the model's size
    (docs/decisions/0011-inner-loop.md): they stay with fp32.
    """
    wanted = learning.precision == "bf16" and device.type == "cuda"
    return "bf16" if wanted and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
