"""What a site's owner allows, whatever the consortium has voted: checked at the site, before training.

Pure. Knows nothing of signatures (`workers.verify`) or of files (`workers.site_file`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from jsonpointer import resolve_pointer
from pydantic import Field, model_validator

from commons.charter import Charter
from commons.charter_file import diff, document
from commons.errors import Code, Refusal
from commons.section import Micros, Name, Section

Pointer = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_-]{1,64}){1,6}$")]
"""JSON pointer into the charter, as `hansa charter diff` shows it: /learning/inner_steps."""
_FOLLOWS = ("/version", "/features", "/learning/since")
"""What changes with every vote, or with a run; which features a site works under is a rule of its own."""


class Bounds(Section):
    """What the site takes at one place of the charter, whoever voted for it."""

    path: Pointer
    least: float | None = None
    most: float | None = None
    among: Annotated[tuple[str | bool | int | float, ...], Field(max_length=64)] = ()
    """One of these; empty: any."""

    @model_validator(mode="after")
    def _says_something(self) -> Bounds:
        if self.least is None and self.most is None and not self.among:
            raise ValueError(f"bounds of {self.path} name neither least, most nor among")
        return self

    @property
    def words(self) -> str:
        ends = [f"at least {self.least:g}"] if self.least is not None else []
        ends += [f"at most {self.most:g}"] if self.most is not None else []
        ends += [f"one of {', '.join(map(json.dumps, self.among))}"] if self.among else []
        return " and ".join(ends)

    def allow(self, value: Any) -> bool:
        number = value if type(value) in (int, float) else None
        above = self.least is None or (number is not None and number >= self.least)
        below = self.most is None or (number is not None and number <= self.most)
        return (
            above
            and below
            and (not self.among or any(value == v and type(value) is type(v) for v in self.among))
        )


class Policy(Section):
    """The `[policy]` table of a site file. Left out, everything the consortium decides is allowed."""

    features: Literal["any"] | tuple[Name, ...] = "any"
    """Features of the charter this site works under; `any`, or a list (empty: none)."""
    routing: Literal["any", "joint", "lean"] = "any"
    max_charge_micro_per_round: Annotated[Micros | None, Field()] = None
    """Largest hold for one round of this site's work, in 1e-6 of the charter's currency; unset: no limit."""
    epsilon_max: Annotated[float | None, Field(gt=0, le=1e4)] = None
    """Where updates are noised, the most epsilon this site spends over all runs, at the charter's delta; unset: what the
    charter says."""
    changes: Literal["any"] | Annotated[tuple[Pointer, ...], Field(max_length=64)] = "any"
    """Parts of the charter that votes may change for this site, with all below them; elsewhere the charter has to say what the
    founding charter says, which the site's partner was given when it joined."""
    bounds: Annotated[tuple[Bounds, ...], Field(max_length=64)] = ()


def forbids(
    policy: Policy, charter: Charter, *, founding: Charter, site: str, hold_micro: int = 0
) -> Refusal | None:
    """Why this site will not work under `charter` with a hold of `hold_micro`, or None when it will."""
    says = f"charter version {charter.version}"
    if policy.features != "any":
        unwanted = sorted(f for f, on in charter.features.items() if on and f not in policy.features)
        if unwanted:
            return _refusal(
                site,
                f"{says} switches on {', '.join(unwanted)}, which [policy] features does not allow",
                remedy="add it there, or propose to switch it off",
            )
    if policy.routing not in ("any", charter.learning.routing):
        return _refusal(
            site,
            f"{says} routes {charter.learning.routing}, [policy] routing allows only {policy.routing}",
            remedy="change it there, or propose the other routing",
        )
    if policy.changes != "any":
        may = (*policy.changes, *_FOLLOWS)
        moved = [at for at, _, _ in diff(founding, charter) if not any(_below(at, path) for path in may)]
        if moved:
            return _refusal(
                site,
                f"{says} changes {', '.join(moved[:5])}, which [policy] changes does not name",
                remedy="add it there, or propose to change it back",
            )
    whole = document(charter) if policy.bounds else {}
    for bounds in policy.bounds:
        value = resolve_pointer(whole, bounds.path, None)
        if not bounds.allow(value):
            return _refusal(
                site,
                f"{says} has {json.dumps(value)} at {bounds.path}, [[policy.bounds]] allows {bounds.words}",
                remedy="change it there, or propose another value",
            )
    limit = policy.max_charge_micro_per_round
    if limit is not None and hold_micro > limit:
        return _refusal(
            site,
            f"this round may cost {hold_micro} micro-{charter.rate_card.currency}, "
            f"[policy] max_charge_micro_per_round allows {limit}",
            remedy="raise the limit, or propose fewer inner steps",
        )
    return None


def allowed(policy: Policy, charter: Charter) -> str:
    """What was found to be within the owner's limits, for people."""
    whole = document(charter)
    found = [f"features {_named(policy.features)}", f"routing {policy.routing}"]
    found.append(f"changes of {_named(policy.changes)}")
    for bounds in policy.bounds:
        found.append(
            f"{bounds.path} is {json.dumps(resolve_pointer(whole, bounds.path, None))}, {bounds.words}"
        )
    if policy.max_charge_micro_per_round is not None:
        found.append(
            f"at most {policy.max_charge_micro_per_round} micro-{charter.rate_card.currency} a round"
        )
    return "; ".join(found)


def _named(names: Literal["any"] | tuple[str, ...]) -> str:
    return names if isinstance(names, str) else ", ".join(names) or "none"


def _below(pointer: str, prefix: str) -> bool:
    return pointer == prefix or pointer.startswith(f"{prefix}/")


def _refusal(site: str, what: str, *, remedy: str) -> Refusal:
    message = f"site {site} will not train: {what}; its operator can {remedy} and start the site again"
    return Refusal(Code.POLICY_FORBIDS, message)
