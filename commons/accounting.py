"""The charter's sections about money: what work costs, what was granted, how disputes ended, the rules of the books."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from commons.section import Micros, Name, Section

Precision = Literal["fp32", "bf16", "fp16", "fp8"]


class Rate(Section):
    """What one kind of device costs at one precision. The prices of work and of time add up."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"precision", "micro_per_pflop", "micro_per_device_second", "peak_gflops"}
    )

    device: Name
    precision: Literal["any"] | Precision = "any"
    """`any` holds for every precision that has no rate of its own."""
    micro_per_gflop: Micros
    """Price of 10^9 useful floating-point operations."""
    micro_per_pflop: Micros = 0
    """Price of 10^15, where 10^9 cost less than one micro."""
    micro_per_device_second: Micros = 0
    """Price of one device's second of work."""
    peak_gflops: Micros = 0
    """10^9 operations a second that one device reaches at most; usage that claims more is refused. 0: not checked."""


class RateCard(Section):
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    rates: Annotated[tuple[Rate, ...], Field(min_length=1, max_length=256)]


class Grant(Section):
    """Budget granted by a vote, on top of the members' founding budgets."""

    name: Name
    member: Name
    unit: Annotated[str, Field(pattern=r"^(micro|device_ms:[a-z][a-z0-9-]{0,31})$")] = "micro"
    """`micro` of the rate card's currency, or pledged milliseconds of a device, to be converted at its rate."""
    amount: Annotated[int, Field(ge=1, lt=2**63)]
    priority: Annotated[int, Field(ge=0, le=1000)] = 100
    """Grants of a lower number are spent first; then those that expire first; then the older ones."""
    not_before_ms: Micros = 0
    """Unix ms."""
    expires_ms: Micros = 0
    """Unix ms; what is not held by then is lost. 0: never."""


class Ruling(Section):
    """How the members decided a dispute that its parties did not settle."""

    dispute: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest of the dispute's text."""
    upheld_micro: Micros
    """What the payer gets back; the rest of the disputed amount stays charged."""


class Accounting(Section):
    """The rules of the ledger that members may change."""

    LATER: ClassVar[frozenset[str]] = frozenset({"others_see"})

    charge_rejected_percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Share of the metered price that a rejected update costs its payer."""
    contribution_owner_percent: Annotated[int, Field(ge=0, le=100)] = 100
    """Share of the contribution credited to the site's owner when another member pays; the payer has the rest."""
    period: Literal["month", "quarter"] = "month"
    """Of statements, by UTC."""
    dispute_days: Annotated[int, Field(ge=1, le=365)] = 30
    """How long after its period was closed a charge may be disputed."""
    topups: Annotated[int, Field(ge=0, le=16)] = 4
    """Further holds one site may ask for in one round."""
    others_see: Literal["nothing", "budgets", "statements"] = "budgets"
    """Of a member's bill: nothing; budget, lots and charges; or its statements as well. The operator sees all."""
