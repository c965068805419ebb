"""What a site's owner allows, whatever the consortium has voted: checked at the site, before training.

Pure. Knows nothing of signatures (`workers.verify`) or of files (`workers.site_file`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.section import Micros, Name, Section


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


def forbids(policy: Policy, charter: Charter, *, site: str, hold_micro: int) -> Refusal | None:
    """Why this site will not work under `charter` with a hold of `hold_micro`, or None when it will."""
    if policy.features != "any":
        unwanted = sorted(f for f, on in charter.features.items() if on and f not in policy.features)
        if unwanted:
            return _refusal(
                site,
                f"charter version {charter.version} switches on {', '.join(unwanted)}, which [policy] features "
                "does not allow",
                remedy="add it there, or propose to switch it off",
            )
    if policy.routing not in ("any", charter.learning.routing):
        return _refusal(
            site,
            f"charter version {charter.version} routes {charter.learning.routing}, [policy] routing allows "
            f"only {policy.routing}",
            remedy="change it there, or propose the other routing",
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


def _refusal(site: str, what: str, *, remedy: str) -> Refusal:
    message = f"site {site} will not train: {what}; its operator can {remedy} and start the site again"
    return Refusal(Code.POLICY_FORBIDS, message)
