"""A patch in its own words, for what no other feature changes: RFC 6902 operations on named parts of the charter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import jsonpatch
import jsonpointer
from pydantic import Field, field_validator

from commons.charter import Charter
from commons.charter_file import document
from commons.errors import Code, Refusal
from commons.features.feature import Feature, Patch
from commons.names import Digest
from commons.notes import digest
from commons.records import canonical_json
from commons.section import Section

PATHS = ("/learning", "/rounds", "/privacy", "/accounting")
"""Nothing about members, money, rules of votes, licence or releases: those have types, and majorities, of their own."""


FIXED = ("/model/tokenizer/", "/model/config/vocab_size")
"""What no vote changes."""
RESERVED = ("/rounds/paused", "/learning/since")
"""Paused and resumed by votes of their own; what follows from where a run stands."""


class Operation(Section):
    op: Literal["add", "remove", "replace", "test"]
    path: Annotated[str, Field(pattern=r"^(/[a-z0-9_-]{1,64}){2,6}$")]
    value: Any = None


class ConfigPatch(Section):
    patch: Annotated[tuple[dict[str, Any], ...], Field(min_length=1, max_length=16)]
    base: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest of what the operations' paths held when it was proposed (`ground`)."""
    result: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest of what they hold afterwards."""

    @field_validator("patch")
    @classmethod
    def _operations(cls, patch: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for operation in patch:
            found = Operation.model_validate(operation)
            if (found.op == "remove") == ("value" in operation):
                raise ValueError(
                    f"{found.op} of {found.path} {'has' if found.op == 'remove' else 'needs'} a value"
                )
            if found.path.startswith(FIXED):
                raise ValueError(
                    f"{found.path} is fixed at the founding: with other tokens it is another model"
                )
            if not any(found.path.startswith(f"{path}/") for path in PATHS):
                raise ValueError(f"{found.path} is not below {', '.join(PATHS)}")
            if found.path.startswith(RESERVED):
                raise ValueError(f"{found.path} is changed by votes of its own, or by none")
        return patch


def ground(document: dict[str, Any], patch: Patch) -> Digest:
    """Digest of what the operations' paths hold in a charter's document: path -> value, None where there is none."""
    return digest(canonical_json({o["path"]: _value(document, o["path"]) for o in patch}))


def patch_parameters(charter: Charter, patch: Patch) -> dict[str, Any]:
    """The parameters of a proposal of this patch on this charter. Raises JsonPatchException when it does not apply."""
    before = document(charter)
    after = jsonpatch.apply_patch(before, patch)
    return {"patch": patch, "base": ground(before, patch), "result": ground(after, patch)}


def _value(found: Any, path: str) -> Any:
    """None where there is none. What a patch may touch has no lists."""
    for step in path.split("/")[1:]:
        if not isinstance(found, dict):
            return None
        found = found.get(step)
    return found


def _patch(charter: Charter, wish: ConfigPatch) -> Patch | Refusal:
    operations = list(wish.patch)
    try:
        found = patch_parameters(charter, operations)
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, KeyError, TypeError) as error:
        return Refusal(
            Code.CHARTER_INVALID, f"the patch does not fit charter version {charter.version}: {error}"
        )
    for what, said in (("base", wish.base), ("result", wish.result)):
        if found[what] != said:
            message = (
                f"the {what} of the patch is said to be {said}, in charter version {charter.version} it is"
            )
            return Refusal(Code.PROPOSAL_STALE, f"{message} {found[what]}")
    return operations


PATCHING = (
    Feature(
        "config-patch",
        "Change values of learning, rounds, privacy or accounting by a JSON patch",
        ConfigPatch,
        PATHS,
        _patch,
        type="config.patch",
    ),
)
