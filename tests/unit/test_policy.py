"""What a site's owner allows, in tables."""

from __future__ import annotations

from typing import Any

import pytest

from commons.charter import Charter
from commons.errors import Code
from tests.support.chamber import charter
from workers.policy import Policy, forbids


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
