"""Features that change when a round closes, and what becomes of an update that comes after it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from commons.charter import Charter
from commons.features.feature import Feature, Patch, replaced
from commons.section import Section


class Grace(Section):
    """Only what is named changes."""

    grace: Literal["fixed", "adaptive"] = "fixed"
    grace_s: Annotated[int, Field(ge=0, le=86_400)] = 0
    grace_percent: Annotated[int, Field(ge=1, le=1000)] = 50
    grace_least_s: Annotated[int, Field(ge=0, le=86_400)] = 1


class LateUpdates(Section):
    """Only what is named changes."""

    late_rounds: Annotated[int, Field(ge=0, le=16)] = 0
    late_discount: Annotated[float, Field(gt=0, le=1)] = 0.5


def _named(_: Charter, rules: Grace | LateUpdates) -> Patch:
    fields = type(rules).model_fields
    return [
        replaced(f"/rounds/{name}", getattr(rules, name)) for name in fields if name in rules.model_fields_set
    ]


ROUNDS = (
    Feature(
        "grace",
        "Set how long a round waits for the rest once its quorum is met: fixed, or by the others' time",
        Grace,
        tuple(f"/rounds/{name}" for name in Grace.model_fields),
        _named,
        switch=False,
    ),
    Feature(
        "late-updates",
        "Let updates that come after their round count in a later one, for less",
        LateUpdates,
        tuple(f"/rounds/{name}" for name in LateUpdates.model_fields),
        _named,
        needs="neither robust nor masked updates",
    ),
)
