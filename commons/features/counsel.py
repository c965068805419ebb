"""Votes that change no charter: a roadmap's order, which binds nobody, and lifting an officer's veto."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from commons.features.feature import Feature
from commons.section import Name, Section

OVERRIDE = "override-veto"


class Roadmap(Section):
    candidates: Annotated[tuple[Name, ...], Field(min_length=2, max_length=16)]
    credits: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Of a quadratic ballot, for each member: n votes for a candidate cost n^2. 0: candidates are ranked."""

    @model_validator(mode="after")
    def _differ(self) -> Roadmap:
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a candidate is named twice")
        return self


class Veto(Section):
    proposal: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


COUNSEL = (
    Feature(
        "roadmap",
        "Put candidates for later proposals in order; the result is recorded and binds nobody",
        Roadmap,
        (),
        lambda _, __: [],
        type="feature.rank",
        binding=False,
        switch=False,
        undone_by="nothing: it is recorded",
    ),
    Feature(
        OVERRIDE,
        "Let a proposal be carried out that a safety officer vetoed",
        Veto,
        (),
        lambda _, __: [],
        type="veto.override",
        binding=False,
        switch=False,
        needs="a proposal that was vetoed",
        undone_by="nothing: it is final",
    ),
)
