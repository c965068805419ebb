"""The sites of one variant and what they exchange: product trainers, one after the other in one process.

A round is every site's inner steps from where it stands, then the exchanges that are due. Everything the next round
depends on is in the trainers' own files and in one file of this module, so a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.learning_parts.bad import believed, spoilt, times_sent
from benchmarks.learning_parts.combining import (
    Array,
    Sent,
    State,
    arrives,
    exchanged,
    sent_bytes,
    towards_nearest,
)
from benchmarks.learning_parts.judged import RULES, Judge
from benchmarks.learning_parts.plan import MIXED_OWN, Size, Variant
from benchmarks.learning_parts.texts import Texts
from commons.exchange import Exchange
from commons.experts.map import ExpertMap, Kind, Slice
from commons.learning import Learning, Outer
from commons.names import SiteId
from workers.data import Corpus, Source, spread_rows
from workers.durable import read_arrays, read_facts, write_durably
from workers.trainer import Trainer

EVERYTHING, PUBLIC = SiteId("everything"), SiteId("public")
_TRUNK = (Kind.TRUNK_MATRIX, Kind.TRUNK_VECTOR)
PROBE_ROWS = 16
"""Of each domain."""


@dataclass
class Moved:
    """Bytes over the wire so far, all sites together, as the codecs count them."""

    up: int = 0
    down: int = 0
    peak_up: int = 0
    """Of one exchange, the last of the run aside."""


class Consortium:
    """`step` does one round; `state` is the model they have together, `local` what each site stands at."""

    def __init__(
        self, variant: Variant, size: Size, texts: Texts, *, seed: int, start: Mapping[str, Array], home: Path
    ) -> None:
        self.variant, self.home = variant, home
        self.texts = _texts(variant, texts)
        self.bad = list(self.texts)[-1] if variant.bad else ""
        owners = list(self.texts) if variant.data == "apart" else list(texts.train)
        self.map = size.experts(owners, variant.experts)
        self.learning = _learning(variant, size, seed, pooled=len(texts.train))
        self.rounds = 0 if variant.trains == "nothing" else self.learning.rounds
        self.round = 0
        self.state: State = {n: np.asarray(a, np.float32) for n, a in start.items()}
        self.local: dict[str, State] = {s: dict(self.state) for s in self.texts}
        self.momentum: State = {}
        self.residual: dict[str, State] = {s: {} for s in self.texts}
        self.moved, self.tokens = Moved(), 0
        self._routed: dict[str, dict[int, list[int]]] = {}
        public = getattr(texts, variant.public) if variant.public_share else None
        self.judge: Judge | None = None
        if variant.judged:
            rows = {d: spread_rows(t, length=size.length, limit=PROBE_ROWS) for d, t in texts.probe.items()}
            self.judge = Judge(size.model, self.map, rows, *RULES[variant.judged])
        self._size, self._public = size, getattr(texts, variant.public)
        self._trainers = {s: self._trainer(size, s, text, public) for s, (_, text) in self.texts.items()}
        self._load()

    def step(self) -> float:
        """One round; the mean of the sites' training losses."""
        self.round += 1
        losses, moved_before = [], self.moved.up
        # A trainer that goes on with its own values of what is not exchanged knows its experts best too.
        streams = self.variant.fragments > 1 or self.variant.overlap > 0
        for site, trainer in self._trainers.items():
            branches = self.learning.strategy == "branch_mix"  # what they did not send yet the trainers keep
            base = self.state if branches else self.local[site]
            result = trainer.train_round(
                round_number=self.round, base=base, learning=self.learning, on_step=_on,
                experts="kept" if streams or branches else "base",
            )  # fmt: skip
            moved = {n: base[n] + d for n, d in result.trunk_delta.items()}
            self.local[site] = base | moved | result.experts
            losses.append(result.loss)
            self.tokens += result.tokens
            self._count(site, dict(zip(self.map.routed_layers, result.routed, strict=True)))
        self._exchange()
        if self.round < self.rounds:
            self.moved.peak_up = max(self.moved.peak_up, self.moved.up - moved_before)
        self._save()
        return float(np.mean(losses))

    def fit(self) -> None:
        """Fit the router of the joint model on the public text. A repeat does nothing new."""
        steps, size = self.variant.fit_steps, self._size
        changed = {
            "rounds": 1,
            "inner_steps": steps,
            "warmup_steps": 2,
            "batch_size": 4 * size.batch,
            "routing": "joint",
            "public_share": 0.0,
            "strategy": "expert_diloco",
        }
        learning = self.learning.model_copy(update=changed)
        trainer = _RouterTrainer(
            model=size.model, expert_map=ExpertMap.from_owners(size.model, dict.fromkeys(self.map.owners, EVERYTHING)),
            site=EVERYTHING, learning=learning, corpus=self._public, public=None, home=self.home / "fit",
        )  # fmt: skip
        found = trainer.train_round(round_number=1, base=self.state, learning=learning, on_step=_on)
        self.state = {**self.state, **{n: self.state[n] + d for n, d in found.trunk_delta.items() if d.any()}}

    def states(self) -> dict[str, State]:
        """By site: what they have together, with what the site keeps of the trunk."""
        kept = [part.name for part in self.map.shared() if keeps(self.variant, self.map, part)]
        return {s: {**self.state, **{n: own[n] for n in kept}} for s, own in self.local.items()}

    def _exchange(self) -> None:
        v, shared = self.variant, list(self.map.shared())
        if v.keeps:
            alone = v.trains == "kept"  # then what a site does not keep rests
            shared = [s for s in shared if s.kind is Kind.ROUTER or not (alone or keeps(v, self.map, s))]
        if v.data != "apart":
            self.state = next(iter(self.local.values()))
            return
        last = self.round == self.rounds
        of_trunk, of_experts = v.trunk_codec, v.expert_codec
        if last and v.closing:
            of_trunk = of_experts = v.closing
        experts = [s for s in self.map.slices if s.expert is not None]
        self.counted = self._counted(shared)
        if last or self.round % v.trunk_every == 0:
            moves = Exchange(self.map, self.learning, self.round)
            trunk = [s for s in shared if s.kind is not Kind.ROUTER and moves.by_all(s)]
            router = [s for s in shared if s.kind is Kind.ROUTER and moves.by_all(s)]
            if v.rule:  # it looks at all that an update moves
                self._combine([*trunk, *router], "fp32", self._outer(v.outer), by="alike")
            else:
                self._combine(trunk, of_trunk, self._outer(v.outer), by="alike")
                self._combine(router, "fp32", self._outer(v.outer), by=v.router_by)
        if last or self.round % v.experts_every == 0:
            self._combine(experts, of_experts, self._outer(v.expert_outer), by=v.experts_by)
            alpha = v.nearest * max(0.0, 1 - 2 * self.round / self.rounds)
            if alpha and self.round % v.nearest_every == 0:
                near = towards_nearest(self.state, self.map, alpha)
                self.state |= near
                self._spread(near)
            self._routed = {}

    def _counted(self, shared: list[Slice]) -> list[str]:
        """The sites whose updates of the shared slices count in this round; none: the slices stay."""
        v = self.variant
        if v.bad == "absent":
            return [site for site in self.texts if site != self.bad]
        if self.judge is None:
            return list(self.texts)
        sent = {site: {part.name: self._delta(site, part) for part in shared} for site in self.texts}

        def combine(sites: Sequence[str]) -> State:
            deltas, memory = [sent[s] for s in sites], dict(self.momentum)
            given = [believed(v.rule, shared, deltas)] if v.rule else deltas
            return exchanged(
                shared, self.state, given, routed=None, expert_map=self.map, momentum=memory, outer=v.outer
            )

        found = self.judge.counted(self.round, self.local, self.state, combine)
        return list(found or ())

    def _combine(self, parts: list[Slice], codec: Sent, outer: Outer, *, by: str) -> None:
        counted = self.texts if by == "owner" else self.counted
        deltas = [self._sent(site, parts, codec, owner_only=by == "owner") for site in counted]
        routed = [self._routed[s] for s in self.texts] if by == "routed" else None
        if not deltas:
            return self._spread({part.name: self.state[part.name] for part in parts})
        if self.variant.rule and by == "alike":
            deltas = [believed(self.variant.rule, parts, deltas)]
        new = exchanged(
            parts, self.state, deltas, routed=routed, expert_map=self.map, momentum=self.momentum, outer=outer,
            stretch=self._falling(self.variant.radial, self.variant.radial_end),
            adaptive=self.variant.adaptive,
        )  # fmt: skip
        self.state |= new
        self._spread(new)
        for site in self.texts:
            wanted = parts if self.variant.holds != "own" else self._held(parts, site)
            if by == "owner":
                wanted = [p for p in wanted if self.map.owners[p.expert] != site]  # type: ignore[index]
            self.moved.down += sum(sent_bytes(codec, p) for p in wanted)

    def _sent(self, site: str, parts: list[Slice], codec: Sent, *, owner_only: bool) -> State:
        """What arrives of a site's deltas."""
        sent: State = {}
        for part in self._held(parts, site) if owner_only else parts:
            delta = self._delta(site, part)
            self.moved.up += sent_bytes(codec, part)
            if codec != "fp32":
                kept = self.residual[site]
                delta, kept[part.name] = arrives(codec, delta, kept.get(part.name))
            sent[part.name] = delta
        return sent

    def _delta(self, site: str, part: Slice) -> Array:
        """As its site sends it, before it is encoded."""
        delta: Array = self.local[site][part.name] - self.state[part.name]
        return delta * np.float32(times_sent(self.variant.bad)) if site == self.bad else delta

    def _held(self, parts: list[Slice], site: str) -> list[Slice]:
        return [p for p in parts if p.expert is None or self.map.owners[p.expert] == site]

    def _spread(self, new: Mapping[str, Array]) -> None:
        for site in self.local:
            self.local[site] = {**self.local[site], **new}

    def _outer(self, outer: Outer) -> Outer:
        momentum = self._falling(outer.momentum, self.variant.momentum_end if outer.momentum else None)
        return outer.model_copy(update={"momentum": momentum})

    def _falling(self, start: float, end: float | None) -> float:
        return start if end is None else start + (end - start) * self.round / self.rounds

    def _count(self, site: str, found: Mapping[int, Sequence[int]]) -> None:
        before = self._routed.get(site)
        self._routed[site] = {
            layer: [a + b for a, b in zip(before[layer], row, strict=True)] if before else list(row)
            for layer, row in found.items()
        }

    def _trainer(self, size: Size, site: str, text: Source, public: Corpus | None) -> Trainer:
        kind = _KEPT[self.variant.keeps] if self.variant.trains == "kept" else Trainer
        return kind(
            model=size.model, expert_map=self.map, site=SiteId(site), learning=self.learning, corpus=text,
            public=public, home=self.home / site,
        )  # fmt: skip

    @property
    def _file(self) -> Path:
        return self.home / "consortium.safetensors"

    def _save(self) -> None:
        arrays = {f"state/{n}": a for n, a in self.state.items()}
        arrays |= {f"momentum/{n}": a for n, a in self.momentum.items()}
        for site in self.texts:
            arrays |= {f"local/{site}/{n}": a for n, a in self.local[site].items() if a is not self.state[n]}
            arrays |= {f"residual/{site}/{n}": a for n, a in self.residual[site].items()}
        facts = {
            "round": self.round,
            "tokens": self.tokens,
            "moved": asdict(self.moved),
            "routed": self._routed,
            "judged": self.judge.remembered() if self.judge else None,
        }
        write_durably(self._file, arrays, facts)

    def _load(self) -> None:
        if not self._file.exists():
            return
        arrays, facts = read_arrays(self._file), read_facts(self._file)
        self.round, self.tokens, self.moved = facts["round"], facts["tokens"], Moved(**facts["moved"])
        self._routed = {s: {int(k): row for k, row in rows.items()} for s, rows in facts["routed"].items()}
        if self.judge:
            self.judge.remember(facts["judged"])
        self.state = _under("state/", arrays)
        self.momentum = _under("momentum/", arrays)
        self.local = {s: {**self.state, **_under(f"local/{s}/", arrays)} for s in self.texts}
        self.residual = {s: _under(f"residual/{s}/", arrays) for s in self.texts}


class _RouterTrainer(Trainer):
    """The product's trainer, of the router alone."""

    def _trained(self, exchange: Exchange) -> list[Slice]:
        return [s for s in super()._trained(exchange) if s.kind is Kind.ROUTER]


class _LateTrainer(Trainer):
    """The product's trainer, of experts, router and what comes after the first router."""

    keeps = "late"

    def _trained(self, exchange: Exchange) -> list[Slice]:
        found = super()._trained(exchange)
        return [s for s in found if s.kind not in _TRUNK or _is_kept(self.keeps, exchange.expert_map, s)]


class _LayersTrainer(_LateTrainer):
    """Of all but the embedding."""

    keeps = "layers"


_KEPT = {"late": _LateTrainer, "layers": _LayersTrainer}


def keeps(variant: Variant, expert_map: ExpertMap, part: Slice) -> bool:
    """Whether that slice of the trunk is its site's own."""
    return part.kind in _TRUNK and _is_kept(variant.keeps, expert_map, part)


def _is_kept(what: str, expert_map: ExpertMap, part: Slice) -> bool:
    first = expert_map.routed_layers[0]
    if part.layer is None:
        return bool(what) and part.name.startswith("model.norm")
    if what == "late":
        return part.layer > first or (part.layer == first and "shared_expert" in part.name)
    return what == "layers"


def _texts(variant: Variant, texts: Texts) -> dict[str, tuple[str, Source]]:
    if variant.data == "pooled":
        return {EVERYTHING: ("all", texts.pooled())}
    found = _clean_texts(variant, texts)
    if variant.public_site:
        found[PUBLIC] = PUBLIC, texts.public()
    if variant.bad:
        last = list(found)[-1]
        domain, text = found[last]
        found[last] = domain, spoilt(variant.bad, text)
    return found


def _clean_texts(variant: Variant, texts: Texts) -> dict[str, tuple[str, Source]]:
    match variant.split:
        case "domains":
            return texts.sites(variant.sites)
        case "mixed":
            return texts.mixed(MIXED_OWN)
        case "alike":
            return texts.alike(variant.sites)


def _learning(variant: Variant, size: Size, seed: int, *, pooled: int) -> Learning:
    """With other than four sites each makes so many steps that all together see as many tokens."""
    steps = size.steps * pooled // variant.sites
    return Learning(
        strategy=variant.strategy,
        routing="lean" if variant.holds == "own" else "joint",
        seed=seed,
        rounds=steps // variant.inner_steps,
        inner_steps=variant.inner_steps,
        batch_size=size.batch * (pooled if variant.data == "pooled" else 1),
        sequence_length=size.length,
        learning_rate=size.learning_rate * variant.rate,
        warmup_steps=size.warmup,
        final_rate=size.final_rate,
        public_share=variant.public_share,
        fragments=variant.fragments,
        overlap_steps=variant.overlap,
    )


def _on(step: int, loss: float) -> None:
    return None


def _under(prefix: str, arrays: Mapping[str, Array]) -> State:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
