"""A feature changes exactly what it may, and two votes on the same ground do not both win."""

from __future__ import annotations

from typing import Any

import pytest

from commons import features
from commons.charter import Charter
from commons.charter_file import diff
from commons.errors import Code, Refusal
from commons.features import FEATURES, Feature, InnerSteps, apply, carry_out
from tests.support.chamber import charter


def applied(of: Charter, key: str, **params: Any) -> Charter:
    result = apply(of, key, params)
    assert isinstance(result, Charter), result
    return result


@pytest.mark.parametrize(
    ("key", "params", "changed"),
    [
        (
            "uplink-codec",
            {"trunk": "int8", "expert": "bf16"},
            {"/learning/codecs/trunk", "/learning/codecs/expert"},
        ),
        ("inner-steps", {"steps": 20}, {"/learning/inner_steps"}),
        ("learning-rate", {"learning_rate": 0.5}, {"/learning/learning_rate"}),
        ("routing", {"routing": "lean"}, {"/learning/routing"}),
        (
            "outer-step",
            {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
            {"/learning/outer/learning_rate", "/learning/outer/momentum", "/learning/outer/nesterov"},
        ),
        ("public-share", {"share": 0.25}, {"/learning/public_share"}),
    ],
)
def test_each_feature_changes_its_own_values_and_nothing_else(
    key: str, params: dict[str, Any], changed: set[str]
) -> None:
    of = charter()
    after = applied(of, key, **params)
    assert {at for at, _, _ in diff(of, after)} == changed | {"/version", f"/features/{key}"}
    assert after.version == of.version + 1
    assert after.features == {key: True}


def test_every_feature_of_the_registry_is_tried_above() -> None:
    tried = {mark.args[1][i][0] for mark in test_each_feature_changes_its_own_values_and_nothing_else.pytestmark for i in range(6)}  # type: ignore[attr-defined]  # fmt: skip
    assert tried == set(FEATURES)


@pytest.mark.parametrize(
    ("key", "params", "code"),
    [
        ("no-such", {}, Code.FEATURE_UNKNOWN),
        ("inner-steps", {}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": 0}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": "20"}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": 20, "rounds": 1}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": 10}, Code.FEATURE_PARAMETERS_INVALID),
        ("uplink-codec", {"trunk": "fp8", "expert": "fp32"}, Code.FEATURE_PARAMETERS_INVALID),
    ],
)
def test_an_unknown_feature_or_parameters_it_does_not_take_are_refused(
    key: str, params: dict[str, Any], code: Code
) -> None:
    result = apply(charter(), key, params)
    assert isinstance(result, Refusal)
    assert result.code == code


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/voting/pass_percent", "value": 51},
        {"op": "replace", "path": "/members/0/key", "value": "x"},
        {"op": "replace", "path": "/sites/1/payer", "value": "acme"},
        {"op": "replace", "path": "/release/licence", "value": "MIT"},
        {"op": "replace", "path": "/learning/inner_step", "value": 3},
        {"op": "add", "path": "/features/routing", "value": True},
        {"op": "replace", "path": "/learning/learning_rate", "value": 0.5},
        {"op": "replace", "path": "", "value": {}},
        {"op": "remove", "path": "/learning/inner_steps"},
        {"op": "move", "from": "/rounds/quorum", "path": "/learning/inner_steps"},
        {"op": "test", "path": "/learning/inner_steps", "value": 11},
    ],
)
def test_a_patch_outside_the_features_paths_or_the_schema_is_refused(operation: dict[str, Any]) -> None:
    greedy = Feature(
        "greedy", "", InnerSteps, ("/learning/inner_steps",), lambda _, p: [
            {"op": "replace", "path": "/learning/inner_steps", "value": p.steps}, operation
        ],
    )  # fmt: skip
    result = apply(charter(), greedy, {"steps": 20})
    assert isinstance(result, Refusal)
    assert result.code == Code.CHARTER_INVALID


def test_a_prefix_of_a_path_is_not_the_path() -> None:
    near = Feature(
        "near", "", InnerSteps, ("/learning/inner",),
        lambda _, p: [{"op": "replace", "path": "/learning/inner_steps", "value": p.steps}],
    )  # fmt: skip
    result = apply(charter(), near, {"steps": 20})
    assert isinstance(result, Refusal)
    assert "would change /learning/inner_steps" in result.message


def test_what_was_voted_still_applies_when_other_ground_moved() -> None:
    base = charter()
    moved = applied(base, "routing", routing="lean")
    after = carry_out([base, moved], "inner-steps", {"steps": 20})
    assert isinstance(after, Charter)
    assert (after.version, after.learning.routing, after.learning.inner_steps) == (3, "lean", 20)
    assert after.features == {"routing": True, "inner-steps": True}


def test_what_was_voted_is_stale_when_its_own_ground_moved() -> None:
    base = charter()
    moved = applied(base, "inner-steps", steps=15)
    result = carry_out([base, moved], "inner-steps", {"steps": 20})
    assert isinstance(result, Refusal)
    assert result.code == Code.PROPOSAL_STALE
    assert "/learning/inner_steps changed in version 2" in result.message


def test_ground_that_moved_and_came_back_has_moved() -> None:
    base = charter()
    there = applied(base, "inner-steps", steps=15)
    back = applied(there, "inner-steps", steps=10)
    result = carry_out([base, there, back], "inner-steps", {"steps": 20})
    assert isinstance(result, Refusal)
    assert result.code == Code.PROPOSAL_STALE


def test_a_value_left_alone_by_the_patch_still_counts_as_its_ground() -> None:
    base = charter()
    moved = applied(base, "uplink-codec", trunk="bf16", expert="fp32")
    result = carry_out([base, moved], "uplink-codec", {"trunk": "fp32", "expert": "int8"})
    assert isinstance(result, Refusal)
    assert result.code == Code.PROPOSAL_STALE


def test_a_meaning_that_depends_on_other_ground_is_stale_when_that_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    double = Feature(
        "double", "", InnerSteps, ("/learning/inner_steps",),
        lambda c, p: [{"op": "replace", "path": "/learning/inner_steps", "value": p.steps * c.version}],
    )  # fmt: skip
    monkeypatch.setitem(FEATURES, "double", double)
    base = charter()
    result = carry_out([base, applied(base, "routing", routing="lean")], "double", {"steps": 20})
    assert isinstance(result, Refusal)
    assert result.code == Code.PROPOSAL_STALE


def test_parameters_are_given_back_in_the_schemas_types() -> None:
    assert features.parameters("learning-rate", {"learning_rate": 1}) == {"learning_rate": 1.0}
    result = features.parameters("inner-steps", {"step": 3})
    assert isinstance(result, Refusal)
    assert "steps: Field required" in result.message
