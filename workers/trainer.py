"""One site's part of a round: from the base state to an update, on the site's own text.

`Trainer.train_round` reads top to bottom. It knows nothing of wires, signatures, codecs or money. Everything the next
step depends on is in the base state, the arguments, and one file per finished round in `home`; so a trainer that
was killed and made anew gives the same bytes, and one asked again for a round it finished gives the same answer,
also when the round was cut short: what its file says is what the round gave. After a short round the next one begins
at its own place in batches and learning rate, as if the round had been whole.

What a round does not exchange, the site goes on with as it has it (`workers.standing`). With overlap a round's first steps
are made from where the site stands, before the base is taken in; `ahead` may make them before the base is even known, and
whether it did changes nothing but the time.

Inner optimiser: AdamW (0.9, 0.95), its moments kept across rounds, gradients clipped at norm 1, warm-up and cosine
over the run's inner steps (DiLoCo, arXiv 2311.08105). What a site trains is the strategy's (`commons.exchange`); the rest
stays as the base has it, moments of earlier rounds untouched. Own experts stay as the site left them, unless they are
combined with others', damped, or leave it under noise: then they start from the base every round, as the trunk does. So
they do where nothing of the last update is in the base: it was left out, or its round taken back. After a change of the
expert map all this goes on for the experts that are left, and one that came begins as the base has it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from commons.charter import Model
from commons.clock import SystemClock
from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Slice
from commons.learning import Learning
from commons.names import ExpertId, SiteId
from workers.data import Corpus, HeldOut, Mixture, Source
from workers.gauge import Gauge
from workers.inner import InnerOptimizer, computed_in
from workers.objectives import as_tokens, loss_on, next_token_loss, with_reader
from workers.rounds import FinishedRounds, Moments, RoundResult
from workers.shard import (
    build_shard,
    compute_device,
    fixed_rows,
    load_state,
    read_state,
    resident_bytes,
    routed_tokens,
    train_only,
    weights,
)
from workers.standing import Standing, digest_of

Array = NDArray[np.float32]
OnStep = Callable[[int, float], bool | None]
"""Told the step, from 1, and its loss; True ends the round with this step."""
HELD_OUT_ROWS = 32
"""Rows of the held-out text evaluated every round; a forward pass over about one batch."""


class TrainingError(RuntimeError):
    """Training cannot go on at this site. The message says why and who must act."""


@dataclass
class Work:
    """A round under way."""

    shard: nn.Module
    optimizer: InnerOptimizer
    gauge: Gauge
    done: int = 0
    """Steps."""
    loss: float = 0.0
    """Summed over them."""
    over: bool = False
    """Whether it was to end with the last of them."""


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
        self._learning, self._corpus, self._public = learning, corpus, public
        self._home, self._rounds = home, FinishedRounds(home, expert_map)
        self._own_names = [s.name for s in expert_map.owned_by(site)]
        self._shared_names = [s.name for s in expert_map.shared()]
        self._shard: nn.Module | None = None
        self._built: tuple[tuple[ExpertId, ...], bool] | None = None
        """Experts that are trained, and whether guests stand beside them."""
        self._ahead: tuple[str, Work] | None = None

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
        """Train the round's inner steps from `base`, or fewer if `on_step` says so after one of them.

        `base` holds trunk and router, with joint routing all guests, and in a site's first round its own experts.
        An exception from `on_step` abandons the round; asked again, it starts over and ends at the same bytes.
        `gauge` measures the work of this call; a round finished before has the usage it had then.
        `experts`: own experts begin as the site left them, or as `base` has them, where the site's updates of them are not
        what arrived; as `base` has them, too, where nothing of its last update is in it. Raises TrainingError on a loss that is
        not finite, CorpusError on text the model cannot read.
        """
        exchange = Exchange(self._map, learning, round_number)
        experts = experts if exchange.owners_keep else "base"
        assert experts == "kept" or all(n in base for n in self._own_names), "own experts are in the base"
        request = self._request(round_number, base, learning, experts)
        if finished := self._rounds.find(round_number, request):
            return finished
        gauge = gauge or Gauge(SystemClock(), "cpu")
        begun, self._ahead, self._learning = self._ahead, None, learning
        arrived = self._rounds.arrived(round_number, base)
        last = self._standing(exchange, experts) if arrived else None
        if last is not None and last.leads_to(round_number, learning) and last.is_in(base):
            if begun is None or begun[0] != _ahead_of(round_number, learning, experts):
                work = self._begin(exchange, last.local, experts, gauge)
            else:
                work = begun[1]
                work.gauge.go_on()
            self._inner_steps(round_number, work, on_step, learning.overlap_steps)
            here = read_state(work.shard, [*last.local, *self._own_names])
            before = self._loss_on(self._corpus, base, HELD_OUT_ROWS)
            self._go_on_with(here | last.taken_in({n: here[n] for n in last.local}, base), base)
        else:
            gauge.begin(_gpu())
            before = self._loss_on(self._corpus, base, HELD_OUT_ROWS)
            work = self._begun(exchange, experts if arrived else "base", gauge)
            if last is not None:
                self._go_on_with(last.goes_on(base), base)
        self._inner_steps(round_number, work, on_step, learning.steps_in(round_number))
        self._check_only_own_moved(work.shard, base)
        return self._end(exchange, request, work, base, before, experts)

    def ahead(
        self,
        *,
        round_number: int,
        learning: Learning,
        on_step: OnStep,
        gauge: Gauge,
        experts: Literal["kept", "base"] = "kept",
    ) -> None:
        """Make the steps of a round that come before its base is taken in; `train_round`, told the same, goes on from there.

        Nothing where there are none: the round before was not the last one trained here, or nothing overlaps. An exception
        from `on_step` ends it, and nothing of it counts. Raises as `train_round` does.
        """
        self._ahead, self._learning = None, learning
        exchange = Exchange(self._map, learning, round_number)
        experts = experts if exchange.owners_keep else "base"
        last = self._standing(exchange, experts)
        if last is not None and last.leads_to(round_number, learning):
            work = self._begin(exchange, last.local, experts, gauge)
            self._inner_steps(round_number, work, on_step, learning.overlap_steps)
            gauge.rest()
            self._ahead = _ahead_of(round_number, learning, experts), work

    def evaluate(self, state: Mapping[str, Array], held_out: HeldOut, *, limit: int = 256) -> float:
        """Loss of `state` on the held-out text, nats per byte; with lean routing through own experts only."""
        begun = self._ahead
        here = read_state(begun[1].shard) if begun else {}
        loss = self._loss_on(held_out, state, limit)
        if begun:
            load_state(begun[1].shard, here)
            self._ahead = begun if begun[1].shard is self._shard else None
        return loss

    def _begin(self, exchange: Exchange, state: Mapping[str, Array], experts: str, gauge: Gauge) -> Work:
        gauge.begin(_gpu())
        self._shard_at(state)
        return self._begun(exchange, experts, gauge)

    def _begun(self, exchange: Exchange, experts: str, gauge: Gauge) -> Work:
        """A round with the shard as it is, but for own experts where they are kept; its moments as the last round left them."""
        assert self._shard is not None
        train_only(self._shard, {part.name for part in self._trained(exchange)})
        if experts == "kept":
            load_state(self._shard, self._rounds.experts(exchange.number), self._own_names)
        moments = self._rounds.moments(exchange.number)
        optimizer = InnerOptimizer(self._shard, self._map, exchange.learning)
        optimizer.restore(moments.arrays, moments.steps)
        routed_tokens(self._shard)
        return Work(self._shard, optimizer, gauge)

    def _loss_on(self, text: HeldOut, state: Mapping[str, Array], limit: int) -> float:
        """Of `state`, which the shard has then."""
        return loss_on(self._shard_at(state), text, length=self._learning.sequence_length, limit=limit)

    def _go_on_with(self, own: Mapping[str, Array], base: Mapping[str, Array]) -> None:
        """The site's own values into the shard, but for what it does not train."""
        assert self._shard is not None
        trained, rows = weights(self._shard), fixed_rows(self._shard)
        own = {name: array for name, array in own.items() if name in trained}
        for name in own.keys() & rows.keys():
            own[name] = own[name].copy()
            own[name][list(rows[name])] = base[name][list(rows[name])]
        load_state(self._shard, own)

    def _end(
        self,
        exchange: Exchange,
        request: str,
        work: Work,
        base: Mapping[str, Array],
        before: float,
        experts: str,
    ) -> RoundResult:
        """The round's result, durable."""
        learning, trained = exchange.learning, self._trained(exchange)
        local = read_state(work.shard, self._restarting(exchange, experts))
        trunk = [part.name for part in trained if part.expert is None and part.name in exchange.due]
        result = RoundResult(
            trunk_delta={n: local[n] - np.asarray(base[n], np.float32) for n in trunk},
            experts=read_state(work.shard, [part.name for part in trained if part.expert is not None]),
            steps=work.done,
            tokens=work.done * learning.batch_size * learning.sequence_length,
            loss=work.loss / work.done,
            held_out_loss=before,
            routed=routed_tokens(work.shard),
            gflop=exchange.gflop(work.done),
            peak_model_bytes=resident_bytes(work.shard) + work.optimizer.bytes(),
            usage=work.gauge.end(computed_in(learning, compute_device())),
        )
        moments = Moments(work.optimizer.arrays(), work.optimizer.steps())
        standing = Standing.left(exchange.number, local, exchange.due, base, learning)
        sent = {n: digest_of(base[n]) for n in self._own_names if n in base and n in exchange.due}
        self._rounds.keep(exchange.number, request, experts, result, moments, standing, sent)
        return result

    def _trained(self, exchange: Exchange) -> Sequence[Slice]:
        return exchange.trained(self._site)

    def _restarting(self, exchange: Exchange, experts: str) -> list[str]:
        """Slices that are trained and begin a round at the base, unless the last round did not exchange them."""
        return [part.name for part in self._trained(exchange) if part.expert is None or experts == "base"]

    def _standing(self, exchange: Exchange, experts: str) -> Standing | None:
        """What the last round left to go on with; None when that was of other slices."""
        last = self._rounds.standing(exchange.number)
        if last is None or last.bases.keys() != set(self._restarting(exchange, experts)):
            return None
        return last

    def _shard_at(self, state: Mapping[str, Array]) -> nn.Module:
        self._ahead = None
        own = Exchange(self._map, self._learning, 1).experts_of(self._site)
        built = own, self._learning.routing == "joint"
        if self._shard is None or built != self._built:
            kept = state if all(n in state for n in self._own_names) else {**state, **self._rounds.experts()}
            self._built = built
            self._shard = build_shard(self._model, self._map, own=own, guests=built[1], state=kept)
        else:
            lacking = [n for n in self._shared_names if n not in state]
            lacking += [n for n in self._guest_names() if n not in state]
            if lacking:
                raise KeyError(f"the base state lacks {lacking[0]} and {len(lacking) - 1} more tensors")
            load_state(self._shard, state)
        return self._shard

    def _inner_steps(self, round_number: int, work: Work, on_step: OnStep, until: int) -> None:
        """Up to that step of the round, or as far as `on_step` wants it; at least one where there are none yet."""
        learning, source = self._learning, self._source()
        device = next(work.shard.parameters()).device
        while work.done < until and not work.over:
            step = learning.first_step(round_number) + work.done
            rows = source.batch(
                step, rows=learning.batch_size, length=learning.sequence_length, seed=learning.seed
            )
            with torch.autocast(device.type, torch.bfloat16, enabled=computed_in(learning, device) == "bf16"):
                tokens = as_tokens(rows, work.shard)
                objective = next_token_loss(work.shard, tokens)
            loss = float(objective.detach()) / source.encoder.bytes_per_token(rows[:, 1:])
            if not math.isfinite(loss):
                raise TrainingError(
                    f"site {self._site}: the loss is {loss} at inner step {work.done + 1} of round {round_number}; "
                    "propose a lower learning rate"
                )
            work.optimizer.step(with_reader(objective, work.shard, tokens), inner_rate(step, learning))
            work.done, work.loss = work.done + 1, work.loss + loss
            work.over = bool(on_step(work.done, loss))

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
        trained, guests = self._built or ((), False)
        return [
            s.name for s in self._map.slices if s.expert is not None and guests and s.expert not in trained
        ]

    def _request(self, round_number: int, base: Mapping[str, Array], learning: Learning, experts: str) -> str:
        """What the round's bytes depend on."""
        digest = hashlib.sha256(f"{self._map.digest} {round_number} {learning.model_dump_json()}".encode())
        if experts != "kept":
            digest.update(experts.encode())
        for name in sorted(base):
            digest.update(name.encode() + np.ascontiguousarray(base[name], np.float32).tobytes())
        return digest.hexdigest()


def inner_rate(step: int, learning: Learning) -> float:
    """Learning rate at a run's inner step, from 0: linear warm-up, then cosine to `final_rate` at the last."""
    if step < learning.warmup_steps:
        return learning.learning_rate * (step + 1) / learning.warmup_steps
    last = learning.total_steps
    done = min(1.0, (step - learning.warmup_steps) / max(1, last - learning.warmup_steps))
    floor = learning.final_rate
    return learning.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def _gpu() -> str | None:
    """Id of the GPU this process trains on."""
    device = compute_device()
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None


def _ahead_of(round_number: int, learning: Learning, experts: str) -> str:
    """What the steps ahead of a base depend on, beside the site's last round."""
    return f"{round_number} {experts} {learning.model_dump_json()}"
