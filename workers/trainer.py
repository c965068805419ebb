"""One site's part of a round: from the base state to an update, on the site's own text.

`Trainer.train_round` reads top to bottom. It knows nothing of wires, signatures, codecs or money. Everything the next
step depends on is in the base state, the arguments, and one file per finished round in `home`; so a trainer that
was killed and made anew gives the same bytes, and one asked again for a round it finished gives the same answer,
also when the round was cut short: what its file says is what the round gave. After a short round the next one begins
at its own place in batches and learning rate, as if the round had been whole.

Inner optimiser: AdamW (0.9, 0.95), its moments kept across rounds, gradients clipped at norm 1, warm-up and cosine
over the run's inner steps (DiLoCo, arXiv 2311.08105). Own experts stay as the site left them, unless they leave it
under noise: then they start from the base every round, as the trunk does, and are at the site what they are for all others.
What is kept is known by expert id: after a change of the expert map it goes on for the experts that are left, and an
expert that came begins as the base has it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from commons.charter import Model
from commons.clock import SystemClock
from commons.experts.map import ExpertMap, Kind
from commons.experts.remaking import carried_over, name_now
from commons.learning import Learning
from commons.names import SiteId
from workers.data import Corpus, Mixture, Source
from workers.durable import read_arrays, read_facts, write_durably
from workers.gauge import Gauge
from workers.inner import InnerOptimizer, computed_in
from workers.meter import Usage
from workers.objectives import as_tokens, held_out_loss, next_byte_loss
from workers.shard import (
    build_shard,
    compute_device,
    expert_tokens,
    fixed_rows,
    load_state,
    read_state,
    resident_bytes,
    weights,
)

Array = NDArray[np.float32]
OnStep = Callable[[int, float], bool | None]
"""Told the step, from 1, and its loss; True ends the round with this step."""
HELD_OUT_ROWS = 32
"""Rows of the held-out text evaluated every round; a forward pass over about one batch."""
_KEPT = 2
"""Finished rounds kept: the last, to answer again, and the one before, to train the last anew from another base."""


class TrainingError(RuntimeError):
    """Training cannot go on at this site. The message says why and who must act."""


@dataclass(frozen=True)
class RoundResult:
    trunk_delta: dict[str, Array]
    """Local minus base for every shared slice (trunk and router)."""
    experts: dict[str, Array]
    """Own experts' weights after the round."""
    steps: int
    tokens: int
    loss: float
    """Mean training loss of the round, nats per byte."""
    held_out_loss: float | None
    """Of the base state on the site's held-out text: with all experts (joint), or with its own only (lean)."""
    expert_tokens: dict[str, int]
    """Rows routed to each expert in the round, summed over layers."""
    gflop: int
    """Useful model FLOPs in whole GFLOP, by arithmetic from map and tokens (`ExpertMap.training_gflop`)."""
    peak_model_bytes: int
    """Weights, gradients and moments held at once; activations are not counted."""
    usage: Usage


class Trainer:
    def __init__(
        self,
        *,
        model: Model,
        expert_map: ExpertMap,
        site: SiteId,
        learning: Learning,
        corpus: Source,
        public: Corpus | None,
        home: Path,
        threads: int = 1,
    ) -> None:
        if learning.public_share and public is None:
            raise TrainingError(f"the charter mixes public text into batches, but site {site} was given none")
        torch.set_num_threads(threads)
        self._model, self._map, self._site = model, expert_map, site
        self._learning, self._corpus, self._public, self._home = learning, corpus, public, home
        self._own = expert_map.experts_of(site)
        self._own_names = [s.name for s in expert_map.owned_by(site)]
        self._shared_names = [s.name for s in expert_map.shared()]
        self._shard: nn.Module | None = None
        self._guests = False

    def train_round(
        self,
        *,
        round_number: int,
        base: Mapping[str, Array],
        learning: Learning,
        on_step: OnStep,
        gauge: Gauge | None = None,
        experts: Literal["kept", "base"] = "kept",
    ) -> RoundResult:
        """Train `learning.inner_steps` from `base`, or fewer if `on_step` says so after one of them.

        `base` holds trunk and router, with joint routing all guests, and in a site's first round its own experts.
        An exception from `on_step` abandons the round; asked again, it starts over and ends at the same bytes.
        `gauge` measures the work of this call; a round finished before has the usage it had then.
        `experts`: own experts begin as the site left them, or as `base` has them, where the site's updates of them are not
        what arrived. Raises TrainingError on a loss that is not finite, CorpusError on text the model cannot read.
        """
        assert experts == "kept" or all(n in base for n in self._own_names), "own experts are in the base"
        request = self._request(round_number, base, learning, experts)
        if finished := self._finished(round_number, request):
            return finished
        gauge = gauge or Gauge(SystemClock(), "cpu")
        gauge.begin(_gpu())
        self._learning = learning
        shard = self._shard_at(base)
        rows = self._corpus.held_out_rows(length=learning.sequence_length, limit=HELD_OUT_ROWS)
        before = held_out_loss(shard, rows)
        arrays, steps = self._restore(round_number, shard, experts)
        optimizer = InnerOptimizer(shard, self._map, learning)
        optimizer.restore(arrays, steps)
        expert_tokens(shard, self._map)
        done, loss = self._inner_steps(round_number, shard, optimizer, on_step)
        self._check_only_own_moved(shard, base)
        tokens = done * learning.batch_size * learning.sequence_length
        local = read_state(shard, self._shared_names)
        result = RoundResult(
            trunk_delta={n: local[n] - np.asarray(base[n], np.float32) for n in self._shared_names},
            experts=read_state(shard, self._own_names),
            steps=done,
            tokens=tokens,
            loss=loss,
            held_out_loss=before,
            expert_tokens={str(e): n for e, n in expert_tokens(shard, self._map).items()},
            gflop=self._map.training_gflop(tokens),
            peak_model_bytes=resident_bytes(shard) + optimizer.bytes(),
            usage=gauge.end(computed_in(learning, compute_device())),
        )
        self._commit(round_number, request, result, optimizer)
        return result

    def evaluate(self, state: Mapping[str, Array], held_out: Source, *, limit: int = 256) -> float:
        """Loss of `state` on the held-out text, nats per byte; with lean routing through own experts only."""
        rows = held_out.held_out_rows(length=self._learning.sequence_length, limit=limit)
        return held_out_loss(self._shard_at(state), rows)

    def _shard_at(self, state: Mapping[str, Array]) -> nn.Module:
        guests = self._learning.routing == "joint"
        if self._shard is None or guests != self._guests:
            kept = state if all(n in state for n in self._own_names) else {**state, **self._latest_experts()}
            self._guests = guests
            self._shard = build_shard(self._model, self._map, own=self._own, guests=guests, state=kept)
        else:
            lacking = [n for n in self._shared_names if n not in state]
            lacking += [n for n in self._guest_names() if n not in state]
            if lacking:
                raise KeyError(f"the base state lacks {lacking[0]} and {len(lacking) - 1} more tensors")
            load_state(self._shard, state)
        return self._shard

    def _inner_steps(
        self,
        round_number: int,
        shard: nn.Module,
        optimizer: InnerOptimizer,
        on_step: OnStep,
    ) -> tuple[int, float]:
        """Steps done, at least one, and their mean loss."""
        learning, source = self._learning, self._source()
        device = next(shard.parameters()).device
        done, total = 0, 0.0
        for i in range(learning.inner_steps):
            step = (round_number - 1) * learning.inner_steps + i
            rows = source.batch(
                step, rows=learning.batch_size, length=learning.sequence_length, seed=learning.seed
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=computed_in(learning, device) == "bf16"):
                objective = next_byte_loss(shard, as_tokens(rows, shard))
            loss = float(objective.detach())
            if not math.isfinite(loss):
                raise TrainingError(
                    f"site {self._site}: the loss is {loss} at inner step {i + 1} of round {round_number}; "
                    "propose a lower learning rate"
                )
            optimizer.step(objective, inner_rate(step, learning))
            done, total = i + 1, total + loss
            if on_step(done, loss):
                break
        return done, total / done

    def _source(self) -> Source:
        share = self._learning.public_share
        if not share or self._public is None:
            return self._corpus
        public = replace(self._public, name=f"{self._public.name}/{self._site}")
        return Mixture(((self._corpus, 1.0 - share), (public, share)))

    def _check_only_own_moved(self, shard: nn.Module, base: Mapping[str, Array]) -> None:
        """Guests, selection biases and absent experts' router rows are bit for bit those of the base."""
        trained, rows = weights(shard), fixed_rows(shard)
        fixed = [*self._guest_names(), *(n for n in self._shared_names if n not in trained), *rows]
        for name, array in read_state(shard, fixed).items():
            before = np.asarray(base[name], np.float32)
            if name in rows:
                array, before = array[list(rows[name])], before[list(rows[name])]
            if not np.array_equal(array, before):
                raise AssertionError(f"site {self._site} moved {name}, which it does not own")

    def _guest_names(self) -> list[str]:
        if not self._guests:
            return []
        own = set(self._own_names)
        return [s.name for s in self._map.slices if s.kind is Kind.EXPERT and s.name not in own]

    def _request(self, round_number: int, base: Mapping[str, Array], learning: Learning, experts: str) -> str:
        """What the round's bytes depend on."""
        digest = hashlib.sha256(f"{self._map.digest} {round_number} {learning.model_dump_json()}".encode())
        if experts != "kept":
            digest.update(experts.encode())
        for name in sorted(base):
            digest.update(name.encode() + np.ascontiguousarray(base[name], np.float32).tobytes())
        return digest.hexdigest()

    def _file(self, round_number: int) -> Path:
        return self._home / f"round-{round_number:06d}.safetensors"

    def _rounds_kept(self) -> list[int]:
        return sorted(int(p.stem.removeprefix("round-")) for p in self._home.glob("round-*.safetensors"))

    def _latest_experts(self) -> dict[str, Array]:
        kept = self._rounds_kept()
        return _under("expert/", self._read(kept[-1])[0]) if kept else {}

    def _read(self, round_number: int) -> tuple[dict[str, Array], dict[str, int]]:
        """Arrays and step counts that a round left, under the names of today's expert map."""
        facts, arrays = read_facts(self._file(round_number)), read_arrays(self._file(round_number))
        before = facts.get("expert_ids", self._map.experts)
        named = ((name_now(n, before, self._map), steps) for n, steps in facts["adam_steps"].items())
        return carried_over(arrays, before, self._map), {n: steps for n, steps in named if n}

    def _restore(
        self, round_number: int, shard: nn.Module, experts: str
    ) -> tuple[dict[str, Array], dict[str, int]]:
        """Own experts into the shard as the last earlier round left them, if they are kept; its moments and step counts."""
        earlier = [n for n in self._rounds_kept() if n < round_number]
        if not earlier:
            return {}, {}
        arrays, steps = self._read(earlier[-1])
        if experts == "kept" and (earlier[-1] == round_number - 1 or self._is_of_today(earlier[-1])):
            load_state(shard, _under("expert/", arrays), self._own_names)
        return arrays, steps

    def _is_of_today(self, round_number: int) -> bool:
        """Whether a round was of today's experts. If not, and it was not the last, another site may have trained one of
        ours since and given it back: then the base has it as it is now."""
        return bool(read_facts(self._file(round_number)).get("map", self._map.digest) == self._map.digest)

    def _commit(
        self,
        round_number: int,
        request: str,
        result: RoundResult,
        optimizer: InnerOptimizer,
    ) -> None:
        arrays = {f"expert/{n}": a for n, a in result.experts.items()}
        arrays |= {f"delta/{n}": a for n, a in result.trunk_delta.items()}
        arrays |= optimizer.arrays()
        facts = {k: v for k, v in vars(result).items() if k not in ("trunk_delta", "experts", "usage")}
        facts["usage"] = asdict(result.usage)
        write_durably(
            self._file(round_number),
            arrays,
            {
                "request": request,
                "adam_steps": optimizer.steps(),
                "expert_ids": self._map.experts,
                "map": self._map.digest,
                "result": facts,
            },
        )
        for old in [n for n in self._rounds_kept() if n <= round_number][:-_KEPT]:
            self._file(old).unlink()

    def _finished(self, round_number: int, request: str) -> RoundResult | None:
        path = self._file(round_number)
        if not path.exists():
            return None
        facts = read_facts(path)
        if facts["request"] != request or "usage" not in facts["result"]:
            return None
        arrays, found = read_arrays(path), facts["result"]
        usage = found.pop("usage")
        usage["device_ids"] = tuple(usage["device_ids"])
        return RoundResult(
            trunk_delta=_under("delta/", arrays),
            experts=_under("expert/", arrays),
            usage=Usage(**usage),
            **found,
        )


def inner_rate(step: int, learning: Learning) -> float:
    """Learning rate at a run's inner step, from 0: linear warm-up, then cosine to `final_rate` at the last."""
    if step < learning.warmup_steps:
        return learning.learning_rate * (step + 1) / learning.warmup_steps
    last = learning.rounds * learning.inner_steps
    done = min(1.0, (step - learning.warmup_steps) / max(1, last - learning.warmup_steps))
    floor = learning.final_rate
    return learning.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _gpu() -> str | None:
    """Id of the GPU this process trains on."""
    device = compute_device()
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
