"""What the charter says of learning: strategy, inner recipe, codecs, outer step.

Field names are the TOML keys. What a field demands of other parts of the charter is checked there.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from commons.experts.slices import Kind
from commons.section import Section

Strategy = Literal["expert_diloco", "sovereign", "diloco", "branch_mix"]
Codec = Literal["fp32", "bf16", "int8", "int4", "fp8", "top_k"]
Closing = Literal["fp32", "bf16", "int8"]
FINER: tuple[Codec, ...] = ("fp32", "bf16", "int8", "fp8", "int4", "top_k")
"""The finest first."""

SEQUENCE_MIN = 8
"""Shortest sequence a charter may train on, in tokens."""


class Codecs(Section):
    """How slices are encoded: by their kind on the way up, all alike on the way down (`commons.codec`)."""

    LATER: ClassVar[frozenset[str]] = frozenset({"vector", "router", "down", "closing"})

    trunk: Codec = "fp32"
    """Matrices of the trunk, and what of it has no codec of its own."""
    expert: Codec = "fp32"
    vector: Codec | None = None
    """Norms and biases of the trunk. None: as `trunk`."""
    router: Codec | None = None
    """Gate rows and selection biases. None: as `trunk`."""
    down: Codec = "fp32"
    """Of the step from a round's base to its new state, which sites fetch in place of the new slices. fp32: the new
    slices themselves are fetched."""
    closing: Closing | None = None
    """In a run's last round, in place of all that is coarser: what a codec drops then no later round makes up for. None:
    the last round is encoded as the others."""

    def closed(self) -> Codecs:
        """As they hold in a run's last round."""
        if self.closing is None:
            return self
        least = FINER.index(self.closing)
        names = ("trunk", "expert", "vector", "router", "down")
        found = {name: codec for name in names if (codec := getattr(self, name)) is not None}
        return self.model_copy(
            update={name: FINER[min(least, FINER.index(codec))] for name, codec in found.items()}
        )

    def of(self, kind: Kind) -> Codec:
        """Uplink codec of a slice of this kind."""
        match kind:
            case Kind.TRUNK_MATRIX | Kind.SEED:
                return self.trunk
            case Kind.TRUNK_VECTOR:
                return self.vector or self.trunk
            case Kind.ROUTER:
                return self.router or self.trunk
            case Kind.EXPERT | Kind.READER | Kind.OWN:
                return self.expert


class Outer(Section):
    """Outer step on the averaged trunk delta: SGD with optional (Nesterov) momentum, DiLoCo (arXiv 2311.08105)."""

    learning_rate: Annotated[float, Field(gt=0, le=2)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False


InnerOptimizer = Literal["adamw", "muon"]


class Warm(Section):
    """Short rounds at the beginning of a run, while the sites' models are apart at every step."""

    rounds: Annotated[int, Field(ge=0, le=100_000)] = 0
    inner_steps: Annotated[int, Field(ge=1, le=100_000)] = 1


class Since(Section):
    """Where a run stood when a vote changed how long its rounds are. Written by the execution, never by hand."""

    run: Annotated[str, Field(min_length=1, max_length=200)]
    round: Annotated[int, Field(ge=2, le=100_000)]
    """The first round that is as long as the charter says."""
    step: Annotated[int, Field(ge=1, lt=2**53)]
    """The run's inner step that it begins with."""


class Learning(Section):
    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "norm_gate",
            "inner_optimizer",
            "precision",
            "merge",
            "expert_outer",
            "expert_weights",
            "balance_rate",
            "fragments",
            "overlap_steps",
            "owned_every",
            "warm",
            "since",
        }
    )

    strategy: Strategy = "expert_diloco"
    """What the sites train and exchange (`commons.exchange`). `expert_diloco`: all the trunk, each its own experts.
    `sovereign`: each its own experts alone. `diloco`: all of them everything. `branch_mix`: as expert_diloco, but nothing is
    exchanged before the run's last round."""
    routing: Literal["joint", "lean"] = "joint"
    """`joint`: frozen guest experts beside one's own. `lean`: own experts only."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    rounds: Annotated[int, Field(ge=1, le=100_000)]
    inner_steps: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    sequence_length: Annotated[int, Field(ge=SEQUENCE_MIN, le=1_048_576)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Cosine floor as a share of `learning_rate`, reached at the run's last inner step."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    public_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each batch drawn from the consortium's public text."""
    inner_optimizer: InnerOptimizer = "adamw"
    """`muon`: Muon for the matrices of trunk and experts, AdamW for embedding, head, vectors and router."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of a step's matrix products. `bf16`: on GPUs that have it; fp32 elsewhere, and for all that is kept."""
    outer: Outer = Outer()
    codecs: Codecs = Codecs()
    norm_gate: Annotated[float, Field(ge=2, le=1e12)] = 1000.0
    """An update whose L2 norm is more than this many times the median of its round's is rejected, in every privacy
    mode in which the coordinator sees norms. At 2 or more the median itself always passes."""
    merge: Literal["mean", "radial"] = "mean"
    """Of the deltas that all sites send. `radial`: matrices but embeddings take the mean direction and the mean length of the
    sites' deltas (radial-directional averaging, arXiv 2604.21428), where a mean gets shorter the more they differ."""
    expert_outer: Outer = Outer()
    """Outer step on what an owner's update makes of its experts; at rate 1 and without momentum they are as their owner has
    them."""
    expert_weights: Literal["alike", "routed"] = "alike"
    """How sites count where what belongs to one expert (its router rows, under diloco its weights) is combined of several:
    by all their tokens, or by those they routed to it."""
    balance_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Every round an expert's selection bias moves by this, up where the consortium's sites routed less than the mean of the
    layer to it and down where they routed more (arXiv 2408.15664). 0: never."""
    fragments: Annotated[int, Field(ge=1, le=64)] = 1
    """The model is dealt into so many parts by layer (`commons.experts.fragments`); a round exchanges one of them, the
    last round all. What a round does not exchange, each site goes on with as it has it."""
    overlap_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """The first steps of a round, made from where the site stands, while the round before is sent, combined and
    fetched; then what was exchanged is taken in. 0: every round begins at the combined state."""
    owned_every: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Rounds from one exchange of experts, readers and own layers to the next; the last round exchanges them too. Meanwhile
    each site goes on with its own as it has them."""
    warm: Warm = Warm()
    since: Since | None = None

    def steps_in(self, number: int) -> int:
        """Inner steps of that round, from 1."""
        return self.warm.inner_steps if number <= self.warm.rounds else self.inner_steps

    def first_step(self, number: int) -> int:
        """The run's inner step, from 0, that round `number` begins with, whoever took part before. Batches and learning
        rate are functions of it; of a run the charter has been changed in, ask `in_run`."""
        first, step = 1, 0
        if self.since is not None and number >= self.since.round:
            first, step = self.since.round, self.since.step
        short = max(0, min(number, self.warm.rounds + 1) - first)
        return step + short * self.warm.inner_steps + (number - first - short) * self.inner_steps

    def codecs_in(self, number: int) -> Codecs:
        """What round `number` is encoded by: sites and coordinator find it by charter and round alone."""
        return self.codecs if number < self.rounds else self.codecs.closed()

    @property
    def total_steps(self) -> int:
        """Of a whole run."""
        return self.first_step(self.rounds + 1)

    @property
    def counts(self) -> bool:
        """Whether sites say how many tokens they routed to which expert."""
        return self.expert_weights == "routed" or self.balance_rate > 0

    def in_run(self, run: str) -> Learning:
        """What holds in that run: where another one stood is nothing to it."""
        if self.since is None or self.since.run == run:
            return self
        return self.model_copy(update={"since": None})
