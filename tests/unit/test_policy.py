"""What a site's owner allows, in tables."""

from __future__ import annotations

from typing import Any

import pytest

from commons.charter import Charter
from commons.errors import Code
from tests.support.chamber import charter
from workers.policy import Bounds, Policy, allowed, forbids


def under(**learning: Any) -> Charter:
    base = charter()
    features = learning.pop("features", {})
    changed = base.learning.model_copy(update=learning)
    return base.model_copy(update={"learning": changed, "features": features, "version": 2})


@pytest.mark.parametrize(
    ("policy", "in_force", "hold_micro"),
    [
        (Policy(), under(features={"uplink-codec": True}, routing="lean"), 10**12),
        (Policy(features=("uplink-codec",)), under(features={"uplink-codec": True}), 0),
        (Policy(features=()), under(features={"uplink-codec": False}), 0),
        (Policy(routing="joint"), under(routing="joint"), 0),
        (Policy(max_charge_micro_per_round=500), under(), 500),
        (Policy(changes=()), under(), 0),
        (Policy(changes=("/learning",)), under(inner_steps=500, routing="lean"), 0),
        (Policy(changes=("/learning/inner_steps",)), under(inner_steps=7), 0),
        (
            Policy(bounds=(Bounds(path="/learning/inner_steps", least=10, most=500),)),
            under(inner_steps=500),
            0,
        ),
        (Policy(bounds=(Bounds(path="/privacy/mode", among=("none", "dp")),)), under(), 0),
        (Policy(bounds=(Bounds(path="/model/config/tied", among=(False,)),)), under(), 0),
    ],
)
def test_what_is_allowed_goes_on(policy: Policy, in_force: Charter, hold_micro: int) -> None:
    assert forbids(policy, in_force, founding=charter(), site="north", hold_micro=hold_micro) is None


@pytest.mark.parametrize(
    ("policy", "in_force", "hold_micro", "names"),
    [
        (Policy(features=()), under(features={"uplink-codec": True}), 0, "uplink-codec"),
        (
            Policy(features=("routing",)),
            under(features={"routing": True, "outer-step": True}),
            0,
            "outer-step",
        ),
        (Policy(routing="lean"), under(routing="joint"), 0, "allows only lean"),
        (Policy(max_charge_micro_per_round=500), under(), 501, "501 micro-EUR"),
        (Policy(max_charge_micro_per_round=0), under(), 1, "allows 0"),
        (
            Policy(changes=()),
            under(inner_steps=11),
            0,
            "changes /learning/inner_steps, which [policy] changes",
        ),
        (Policy(changes=("/learning/inner",)), under(inner_steps=11), 0, "/learning/inner_steps"),
        (
            Policy(bounds=(Bounds(path="/learning/inner_steps", most=500),)),
            under(inner_steps=501),
            0,
            "has 501 at /learning/inner_steps, [[policy.bounds]] allows at most 500",
        ),
        (Policy(bounds=(Bounds(path="/learning/inner_steps", least=11),)), under(), 0, "at least 11"),
        (
            Policy(bounds=(Bounds(path="/privacy/mode", among=("secagg", "dp")),)),
            under(),
            0,
            'has "none" at /privacy/mode, [[policy.bounds]] allows one of "secagg", "dp"',
        ),
        (Policy(bounds=(Bounds(path="/learning/inner_step", most=500),)), under(), 0, "has null at"),
        (Policy(bounds=(Bounds(path="/model/config/tied", most=1),)), under(), 0, "has false at"),
        (Policy(bounds=(Bounds(path="/model/config/tied", among=(0,)),)), under(), 0, "one of 0"),
    ],
)
def test_what_is_not_allowed_is_refused_and_the_operator_told_what_to_do(
    policy: Policy, in_force: Charter, hold_micro: int, names: str
) -> None:
    refusal = forbids(policy, in_force, founding=charter(), site="north", hold_micro=hold_micro)
    assert refusal is not None
    assert refusal.code is Code.POLICY_FORBIDS
    assert names in refusal.message
    assert "site north will not train" in refusal.message
    assert "its operator can" in refusal.message


def test_bounds_that_bound_nothing_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="name neither least, most nor among"):
        Bounds(path="/learning/inner_steps")


def test_what_was_found_to_be_within_the_owners_limits_is_told() -> None:
    policy = Policy(
        features=(),
        changes=("/learning", "/rounds"),
        bounds=(Bounds(path="/learning/inner_steps", most=500),),
        max_charge_micro_per_round=7,
    )
    assert allowed(policy, charter()) == (
        "features none; routing any; changes of /learning, /rounds; /learning/inner_steps is 10, at most 500; "
        "at most 7 micro-EUR a round"
    )
