"""A site's finished rounds on disk: one file each, whole or not at all, from which the next round follows.

Owns what stands in such a file. A round found there is answered again, and not trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commons.experts.map import ExpertMap
from commons.experts.remaking import carried_over, name_now
from workers.durable import read_arrays, read_facts, write_durably
from workers.meter import Usage
from workers.standing import Standing, digest_of

Array = NDArray[np.float32]
_KEPT = 2
"""Finished rounds kept: the last, to answer again, and the one before, to train the last anew from another base."""


@dataclass(frozen=True)
class RoundResult:
    trunk_delta: dict[str, Array]
    """Local minus base for every slice of trunk and router that the site trains and the round exchanges."""
    experts: dict[str, Array]
    """Weights after the round of the experts that the site trains."""
    steps: int
    tokens: int
    loss: float
    """Mean training loss of the round, nats per byte."""
    held_out_loss: float | None
    """Of the base state on the site's held-out text: with all experts (joint), or with its own only (lean)."""
    routed: tuple[tuple[int, ...], ...]
    """Tokens given to each expert, by index, in each layer that has a router."""
    gflop: int
    """Useful model FLOPs in whole GFLOP, by arithmetic from map and tokens (`ExpertMap.training_gflop`)."""
    peak_model_bytes: int
    """Weights, gradients and moments held at once; activations are not counted."""
    usage: Usage


@dataclass(frozen=True)
class Moments:
    """Of an inner optimiser (`workers.inner`)."""

    arrays: Mapping[str, Array]
    steps: Mapping[str, int]


class FinishedRounds:
    """Known by expert id: a file of other experts than today's is read for those that are left, under today's names."""

    def __init__(self, home: Path, expert_map: ExpertMap) -> None:
        self._home, self._map = home, expert_map

    def find(self, number: int, request: str) -> RoundResult | None:
        """The round's result, if it is that of this `request`."""
        path = self._file(number)
        if not path.exists():
            return None
        facts = read_facts(path)
        if facts["request"] != request or not {"usage", "routed"} <= facts["result"].keys():
            return None
        found = facts["result"]
        usage = found.pop("usage")
        usage["device_ids"] = tuple(usage["device_ids"])
        found["routed"] = tuple(tuple(layer) for layer in found["routed"])
        return RoundResult(
            trunk_delta=read_arrays(path, "delta/"),
            experts=read_arrays(path, "expert/"),
            usage=Usage(**usage),
            **found,
        )

    def keep(
        self,
        number: int,
        request: str,
        began: str,
        result: RoundResult,
        moments: Moments,
        standing: Standing | None,
        sent: Mapping[str, str],
    ) -> None:
        """Durable on return; older rounds than the one before go. `began`: where own experts did, `kept` or `base`. `sent`: own
        slices that the round exchanges -> digest of their values in its base."""
        arrays = {f"expert/{n}": a for n, a in result.experts.items()}
        arrays |= {f"delta/{n}": a for n, a in result.trunk_delta.items()}
        arrays |= moments.arrays
        facts = {k: v for k, v in vars(result).items() if k not in ("trunk_delta", "experts", "usage")}
        facts["usage"] = asdict(result.usage)
        whole: dict[str, Any] = {
            "request": request,
            "adam_steps": moments.steps,
            "experts": began,
            "expert_ids": self._map.experts,
            "map": self._map.digest,
            "sent": dict(sent),
            "result": facts,
        }
        if standing is not None:
            arrays |= {f"local/{n}": a for n, a in standing.local.items()}
            whole["standing"] = standing.facts()
        write_durably(self._file(number), arrays, whole)
        for old in [n for n in self._numbers() if n <= number][:-_KEPT]:
            self._file(old).unlink()

    def moments(self, before: int) -> Moments:
        """As the last round earlier than `before` left them; none at first."""
        path = self._last(before)
        if path is None:
            return Moments({}, {})
        ids = self._ids(path)
        named = ((name_now(n, ids, self._map), steps) for n, steps in read_facts(path)["adam_steps"].items())
        return Moments(carried_over(read_arrays(path), ids, self._map), {n: s for n, s in named if n})

    def experts(self, before: int | None = None) -> dict[str, Array]:
        """Own experts as the last round left them, or the last earlier than `before`; none at first, nor where that round's
        were not the site's own to keep.

        Where the experts changed since and it was not the round right before, another site may have trained one of these and
        given it back: none then, and the base has them as they are now.
        """
        path = self._last(before)
        kept = path is not None and read_facts(path).get("experts", "kept") == "kept"
        late = before is not None and path != self._file(before - 1)
        if path is None or not kept or (late and not self._is_of_today(path)):
            return {}
        return carried_over(read_arrays(path, "expert/"), self._ids(path), self._map)

    def arrived(self, before: int, base: Mapping[str, Array]) -> bool:
        """Whether `base` has what the last round earlier than `before` sent of own experts, or it sent nothing of them. It has
        not where the update was left out, came to nobody, or its whole round was taken back."""
        path = self._last(before)
        if path is None:
            return True
        ids = self._ids(path)
        sent = ((name_now(n, ids, self._map), was) for n, was in read_facts(path).get("sent", {}).items())
        left = [(name, was) for name, was in sent if name is not None and name in base]
        return not left or any(digest_of(base[name]) != was for name, was in left)

    def standing(self, before: int) -> Standing | None:
        """Where the last round earlier than `before` left the site; None where all it trained was exchanged, or the experts
        changed since: the site then goes on from the base."""
        path = self._last(before)
        facts = read_facts(path).get("standing") if path else None
        if path is None or facts is None or not self._is_of_today(path):
            return None
        return Standing.read(facts, read_arrays(path, "local/"))

    def _ids(self, path: Path) -> list[str]:
        return list(read_facts(path).get("expert_ids", self._map.experts))

    def _is_of_today(self, path: Path) -> bool:
        return bool(read_facts(path).get("map", self._map.digest) == self._map.digest)

    def _last(self, before: int | None) -> Path | None:
        earlier = [n for n in self._numbers() if before is None or n < before]
        return self._file(earlier[-1]) if earlier else None

    def _file(self, number: int) -> Path:
        return self._home / f"round-{number:06d}.safetensors"

    def _numbers(self) -> list[int]:
        return sorted(int(p.stem.removeprefix("round-")) for p in self._home.glob("round-*.safetensors"))
