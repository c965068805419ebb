"""What a feature is: its parameters, the part of the charter it may touch, and what it does there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from commons.charter import Charter
from commons.errors import Refusal
from commons.voting import ProposalType

Patch = list[dict[str, Any]]
"""RFC 6902 operations."""


@dataclass(frozen=True)
class Feature:
    key: str
    title: str
    parameters: type[BaseModel]
    paths: tuple[str, ...]
    """JSON pointers into the charter; it may touch these and what lies below them. ``*`` stands for any one step."""
    patch: Callable[[Charter, Any], Patch | Refusal]
    """(charter, validated parameters) -> operations. Pure."""
    type: ProposalType = "feature.enable"
    """Which of the charter's rules a proposal of it is voted by."""
    concerns: Callable[[Any], tuple[str, ...]] = lambda _: ()
    """(parameters) -> members who have no vote on it."""
    binding: bool = True
    """False: its vote is recorded and changes no charter (`commons.features.counsel`)."""
    switch: bool = True
    """Carried out, it is switched on in `charter.features`, which a site may decline to work under. False for what
    concerns the books or when a round ends, and not what a site trains: no site has to allow it."""
    needs: str = ""
    """What has to hold besides, in words; what does not is refused when it is proposed, and again when it is carried out."""
    undone_by: str = "the same feature, with the values from before"
    proposers: Callable[[Charter, Any], str | None] = lambda _, __: None
    """(charter, validated parameters) -> the one member who may propose it; None: any member. Pure."""


def replaced(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def removed(path: str) -> dict[str, Any]:
    return {"op": "remove", "path": path}


def appended(path: str, value: Any) -> dict[str, Any]:
    """One more entry of the list at `path`: it moves nobody else's ground, and nobody's append moves its."""
    return {"op": "add", "path": f"{path}/-", "value": value}
