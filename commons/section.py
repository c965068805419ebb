"""What every section of a governed document is: immutable, strict, and able to grow without breaking signatures."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
"""Lower-case letters, digits and hyphens; at most 32 characters."""
Micros = Annotated[int, Field(ge=0, lt=2**63)]
WHOLE = {"charter": "whole"}
"""Serialisation context that leaves no field out (`Section.LATER`)."""


class Section(BaseModel):
    """Base of every charter section: immutable, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after charters had been signed: not in the JSON while they hold their default, so that a
    charter from before them keeps its digest."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(
        self, whole: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = whole(self)
        if info.context is WHOLE:
            return values
        fields = type(self).model_fields
        for name in self.LATER:
            if getattr(self, name) == fields[name].get_default(call_default_factory=True):
                values.pop(name, None)
        return values
