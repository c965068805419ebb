"""What a vote may change: the registry of features, and the one way to put one into a charter.

A feature names the parts of the charter it may touch; whatever its patch does is compared with that.
Coordinator and sites run this same code, so a passed proposal has exactly one result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jsonpatch
import jsonpointer
from pydantic import BaseModel, ValidationError

from commons.charter import Charter
from commons.charter_file import CHARTER_BYTES_MAX, canonical, diff, digest, document, problems
from commons.errors import Code, Refusal
from commons.experts.map import model_problems
from commons.features.books import BOOKS
from commons.features.counsel import COUNSEL, OVERRIDE, Roadmap
from commons.features.experts import EXPERTS
from commons.features.feature import Feature, Patch
from commons.features.judging import JUDGING
from commons.features.learning import LEARNING
from commons.features.members import MEMBERS
from commons.features.model import MODEL
from commons.features.patching import PATCHING
from commons.features.privacy import PRIVACY
from commons.features.releasing import RELEASING
from commons.features.rounds import ROUNDS
from commons.features.rules import RULES
from commons.features.sites import SITES
from commons.learning import Since
from commons.records import canonical_json
from commons.voting import ProposalType

__all__ = [
    "FAILED", "FEATURES", "OVERRIDE", "Feature", "Patch", "apply", "carry_out", "check", "concerned", "execution_facts", "may_not_propose",
    "parameters",
    "patch", "roadmap", "type_of",
]  # fmt: skip

FAILED = "failed"
"""In the details of a refusal by `carry_out`: no path of the patch has moved, and yet it gives no charter any more."""
_COURSE = (*LEARNING, *MODEL, *EXPERTS, *SITES, *ROUNDS, *PRIVACY, *JUDGING, *BOOKS)
_RULE = (*MEMBERS, *RULES, *RELEASING, *PATCHING, *COUNSEL)
FEATURES: dict[str, Feature] = {feature.key: feature for feature in (*_COURSE, *_RULE)}
"""The registry. Adding one is a new release of the program, which each site installs by its own will."""


def parameters(key: str, raw: Mapping[str, Any]) -> dict[str, Any] | Refusal:
    """Check parameters and give them in the form a proposal carries; a Refusal says what each must be."""
    found = _checked(key, raw)
    return found if isinstance(found, Refusal) else found[1].model_dump(mode="json", exclude_unset=True)


def patch(charter: Charter, key: str, raw: Mapping[str, Any]) -> Patch | Refusal:
    """The operations this feature means on this charter."""
    found = _checked(key, raw)
    return found if isinstance(found, Refusal) else found[0].patch(charter, found[1])


def may_not_propose(charter: Charter, key: str, raw: Mapping[str, Any], proposer: str) -> Refusal | None:
    """Why this member may not propose it on this charter, where only another may; None when it may."""
    found = _checked(key, raw)
    if isinstance(found, Refusal):
        return found
    only = found[0].proposers(charter, found[1])
    if only in (None, proposer):
        return None
    return Refusal(
        Code.NOT_AUTHORISED, f"{key} with {_shown(raw)} is for {only} to propose, not for {proposer}"
    )


def check(charter: Charter, key: str, params: Mapping[str, Any]) -> Refusal | None:
    """Why a proposal of this feature makes no sense on this charter; None when it does."""
    found = _checked(key, params)
    if isinstance(found, Refusal):
        return found
    if not found[0].binding:
        return None
    changed = apply(charter, key, params)
    return changed if isinstance(changed, Refusal) else None


def type_of(charter: Charter, key: str, params: Mapping[str, Any]) -> ProposalType:
    """By which of the charter's rules a proposal that fits it (`check`) is voted.

    One that only moves numbers within the bounds of ``voting.optimistic`` becomes law unless enough object.
    """
    found = _checked(key, params)
    assert not isinstance(found, Refusal), f"a proposal is checked before it is opened: {found}"
    entry, values = found
    bounds = {bound.path: bound for bound in charter.voting.optimistic}
    operations = entry.patch(charter, values) if bounds and entry.binding else []
    small = isinstance(operations, list) and bool(operations)
    for operation in operations if isinstance(operations, list) else ():
        bound, value = bounds.get(operation["path"]), operation.get("value")
        number = value if type(value) in (int, float) and operation["op"] == "replace" else None
        small &= number is not None and bound is not None and bound.least <= number <= bound.most
    return "optimistic" if small else entry.type


def concerned(key: str, params: Mapping[str, Any]) -> tuple[str, ...]:
    """Members who have no vote on it, as it is about them."""
    found = _checked(key, params)
    return () if isinstance(found, Refusal) else found[0].concerns(found[1])


def roadmap(key: str, params: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """(candidates, credits of a quadratic ballot or 0) of a roadmap proposal; nothing for any other."""
    found = _checked(key, params)
    values = None if isinstance(found, Refusal) else found[1]
    return (values.candidates, values.credits) if isinstance(values, Roadmap) else ((), 0)


def apply(charter: Charter, feature: str | Feature, params: Mapping[str, Any]) -> Charter | Refusal:
    """The next charter: the feature's patch, its switch (where it has one), the version raised by one, nothing else.

    Refused when the feature or its parameters are unknown, when it would change nothing, touch a path it
    does not own, leave the schema, make the charter larger than a record, use a key that is none, or leave a model that
    cannot be trained as the charter says.
    """
    found = _checked(feature, params)
    if isinstance(found, Refusal):
        return found
    entry, values = found
    operations = entry.patch(charter, values)
    if isinstance(operations, Refusal):
        return operations
    try:
        patched = jsonpatch.apply_patch(document(charter), operations)
        patched["version"] = charter.version + 1
        if entry.switch:
            patched["features"] = {**patched["features"], entry.key: True}
        changed = Charter.model_validate_json(canonical_json(patched))
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, KeyError, TypeError) as error:
        return Refusal(Code.CHARTER_INVALID, f"feature {entry.key} does not fit this charter: {error}")
    except ValidationError as error:
        return Refusal(Code.CHARTER_INVALID, f"feature {entry.key} gives an invalid charter: {_wrong(error)}")
    switch = ("/version", f"/features/{entry.key}")
    touched = [pointer for pointer, _, _ in diff(charter, changed) if pointer not in switch]
    outside = [pointer for pointer in touched if not any(_below(pointer, path) for path in entry.paths)]
    if outside:
        return Refusal(
            Code.CHARTER_INVALID,
            f"feature {entry.key} may touch {', '.join(entry.paths)}, but would change {', '.join(outside)}",
        )
    if not touched:
        return Refusal(
            Code.FEATURE_PARAMETERS_INVALID,
            f"{entry.key} with {_shown(params)} changes nothing: the charter already says so",
        )
    if (size := len(canonical(changed))) > CHARTER_BYTES_MAX:
        message = f"the charter would take {size} bytes, at most {CHARTER_BYTES_MAX} are one journal record"
        return Refusal(Code.CHARTER_INVALID, message)
    if wrong := _new_problems(charter, changed):
        return Refusal(
            Code.CHARTER_INVALID, f"feature {entry.key} gives an invalid charter: {'; '.join(wrong)}"
        )
    return changed


def _new_problems(before: Charter, changed: Charter) -> list[str]:
    """Of keys and of the model, that were not there before."""

    def found(charter: Charter) -> list[str]:
        of_model = (f"{'.'.join(map(str, p.path))}: {p.what}" for p in model_problems(charter))
        return [*problems(charter), *of_model]

    known = found(before)
    return [problem for problem in found(changed) if problem not in known]


def carry_out(
    history: Sequence[Charter], key: str, params: Mapping[str, Any], *, run: str = "", round_number: int = 1
) -> Charter | Refusal:
    """Apply what was voted on `history[0]` to the charter now in force, `history[-1]`, from that round of `run` on.

    `run`: empty while none goes on. `history` holds every version from the proposal's base to the current one. When a later version changed
    a path this feature's patch touches, the voters saw another charter: the proposal is stale
    (PROPOSAL_STALE). Otherwise the same patch applies to the current one. What is appended to a list stands on
    no ground but its name: any number of such proposals become law, unless two entries would have one name.
    """
    base, current = history[0], history[-1]
    voted, now = patch(base, key, params), patch(current, key, params)
    if isinstance(voted, Refusal):
        return voted
    pointers = [operation["path"] for operation in voted]
    moved = [
        (pointer, newer.version)
        for pointer in pointers
        for older, newer in pairwise(history)
        if any(_overlap(pointer, changed) for changed, _, _ in diff(older, newer))
    ]
    if moved or now != voted:
        why = ", ".join(f"{pointer} changed in version {version}" for pointer, version in moved)
        return Refusal(
            Code.PROPOSAL_STALE,
            f"it was voted on charter version {base.version}; since then {why or 'its meaning changed'}: "
            f"propose it again on version {current.version}",
        )
    changed = apply(current, key, params)
    if isinstance(changed, Refusal):
        return Refusal(Code.PROPOSAL_STALE, f"it no longer applies: {changed.message}", {FAILED: True})
    return _going_on(current, changed, run, round_number)


def _going_on(before: Charter, after: Charter, run: str, round_number: int) -> Charter:
    """`after`, which says at which inner step the run stands where it makes rounds longer or shorter."""
    old, new = before.learning, after.learning
    if (old.inner_steps, old.warm) == (new.inner_steps, new.warm):
        return after
    since = None
    if run and round_number > 1:
        since = Since(run=run, round=round_number, step=old.in_run(run).first_step(round_number))
    return after.model_copy(update={"learning": new.model_copy(update={"since": since})})


def execution_facts(
    proposal: str, number: int, before: Charter, after: Charter, round_number: int, run: str = ""
) -> dict[str, Any]:
    """The fields of the journal's EXECUTION record; the CHARTER record that follows it is `after`."""
    return ({"run": run} if run else {}) | {
        "proposal": proposal,
        "number": number,
        "round": round_number,
        "version": after.version,
        "base": digest(before),
        "charter": digest(after),
    }


def _checked(key: str | Feature, raw: Mapping[str, Any]) -> tuple[Feature, BaseModel] | Refusal:
    entry = key if isinstance(key, Feature) else FEATURES.get(key)
    if entry is None:
        return Refusal(Code.FEATURE_UNKNOWN, f"no feature {key!r}; there are {', '.join(FEATURES)}")
    try:
        return entry, entry.parameters.model_validate_json(canonical_json(dict(raw)))
    except ValueError as error:
        wrong = _wrong(error) if isinstance(error, ValidationError) else str(error)
        known = ", ".join(entry.parameters.model_fields)
        return Refusal(
            Code.FEATURE_PARAMETERS_INVALID, f"parameters of {entry.key} ({known}): {wrong}", {"wrong": wrong}
        )


def _wrong(error: ValidationError) -> str:
    found = ((".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False))
    return "; ".join(f"{at}: {what}" if at else what.removeprefix("Value error, ") for at, what in found)


def _below(pointer: str, prefix: str) -> bool:
    steps, wanted = pointer.split("/"), prefix.split("/")
    return len(steps) >= len(wanted) and all(w in ("*", s) for s, w in zip(steps, wanted, strict=False))


def _overlap(one: str, other: str) -> bool:
    return _below(one, other) or _below(other, one)


def _shown(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in params.items()) or "no parameters"
