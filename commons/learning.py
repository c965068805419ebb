"""What the charter says of learning: strategy, inner recipe, codecs, outer step.

Field names are the TOML keys. What a field demands of other parts of the charter is checked there.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from commons.experts.slices import Kind
from commons.section import Section

Codec = Literal["fp32", "bf16", "int8", "int4", "fp8", "top_k"]

SEQUENCE_MIN = 8
"""Shortest sequence a charter may train on, in tokens."""


class Codecs(Section):
    """How slices are encoded: by their kind on the way up, all alike on the way down (`commons.codec`)."""

    LATER: ClassVar[frozenset[str]] = frozenset({"vector", "router", "down"})

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

    def of(self, kind: Kind) -> Codec:
        """Uplink codec of a slice of this kind."""
        match kind:
            case Kind.TRUNK_MATRIX:
                return self.trunk
            case Kind.TRUNK_VECTOR:
                return self.vector or self.trunk
            case Kind.ROUTER:
                return self.router or self.trunk
            case Kind.EXPERT:
                return self.expert


class Outer(Section):
    """Outer step on the averaged trunk delta: SGD with optional (Nesterov) momentum, DiLoCo (arXiv 2311.08105)."""

    learning_rate: Annotated[float, Field(gt=0, le=2)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False


InnerOptimizer = Literal["adamw", "muon"]


class Learning(Section):
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"norm_gate", "inner_optimizer", "precision", "fragments", "overlap_steps"}
    )

    strategy: Literal["expert_diloco"] = "expert_diloco"
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
    fragments: Annotated[int, Field(ge=1, le=64)] = 1
    """The model is dealt into so many parts by layer (`commons.experts.fragments`); a round exchanges one of them, the
    last round all. What a round does not exchange, each site goes on with as it has it."""
    overlap_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """The first steps of a round, made from where the site stands, while the round before is sent, combined and
    fetched; then what was exchanged is taken in. 0: every round begins at the combined state."""


def conflicts(learning: Learning, *, late_rounds: int) -> list[str]:
    """Why rounds cannot be as the charter says; each in one sentence."""
    found = []
    if learning.fragments > 1 and late_rounds:
        found.append(
            f"learning.fragments is {learning.fragments} but rounds.late_rounds is {late_rounds}: a late update holds "
            "another fragment than the round that takes it, so there is nobody to average it with"
        )
    if learning.overlap_steps >= learning.inner_steps:
        found.append(
            f"learning.overlap_steps is {learning.overlap_steps} but a round has {learning.inner_steps} inner_steps: at "
            "least one comes after the exchange is taken in"
        )
    if learning.overlap_steps and learning.routing == "joint":
        found.append(
            f"learning.overlap_steps is {learning.overlap_steps} but learning.routing is 'joint': a site that is started "
            "again would need the guests of the round before, which it no longer keeps"
        )
    return found
