"""A feature changes exactly what it may, and two votes on the same ground do not both win."""

from __future__ import annotations

from typing import Any

import pytest

from commons import features
from commons.accounting import Grant
from commons.charter import Charter
from commons.charter_file import canonical, diff
from commons.errors import Code, Refusal
from commons.experts.slices import Kind
from commons.features import FEATURES, Feature, apply, carry_out
from commons.features.learning import InnerSteps
from tests.support.chamber import charter, signer, with_sites
from tests.unit import test_expert_features


def applied(of: Charter, key: str, /, **params: Any) -> Charter:
    result = apply(of, key, params)
    assert isinstance(result, Charter), result
    return result


PROBE = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("key", "params", "changed"),
    [
        (
            "uplink-codec",
            {"trunk": "int8", "expert": "bf16"},
            {"/learning/codecs/trunk", "/learning/codecs/expert"},
        ),
        (
            "uplink-codec",
            {"trunk": "int8", "expert": "fp32", "vector": "fp32"},
            {"/learning/codecs/trunk", "/learning/codecs/vector"},
        ),
        ("downlink-codec", {"down": "int8"}, {"/learning/codecs/down"}),
        ("closing-codec", {"closing": "bf16"}, {"/learning/codecs/closing"}),
        ("inner-steps", {"steps": 20}, {"/learning/inner_steps"}),
        ("fragments", {"fragments": 4}, {"/learning/fragments"}),
        ("fragments", {"owned_every": 5}, {"/learning/owned_every"}),
        ("learning-rate", {"learning_rate": 0.5}, {"/learning/learning_rate"}),
        ("inner-optimizer", {"optimizer": "muon"}, {"/learning/inner_optimizer"}),
        (
            "inner-optimizer",
            {"optimizer": "muon", "learning_rate": 0.02},
            {"/learning/inner_optimizer", "/learning/learning_rate"},
        ),
        ("precision", {"precision": "bf16"}, {"/learning/precision"}),
        ("routing", {"routing": "lean"}, {"/learning/routing"}),
        (
            "outer-step",
            {"learning_rate": 0.7, "momentum": 0.9, "nesterov": True},
            {"/learning/outer/learning_rate", "/learning/outer/momentum", "/learning/outer/nesterov"},
        ),
        ("strategy", {"strategy": "diloco"}, {"/learning/strategy"}),
        (
            "strategy",
            {"strategy": "sovereign", "routing": "lean"},
            {"/learning/strategy", "/learning/routing"},
        ),
        ("merge", {"merge": "radial"}, {"/learning/merge"}),
        ("balancing", {"rate": 0.001}, {"/learning/balance_rate"}),
        ("expert-weights", {"by": "routed"}, {"/learning/expert_weights"}),
        (
            "expert-outer-step",
            {"learning_rate": 0.9, "momentum": 0.5, "nesterov": False},
            {"/learning/expert_outer/learning_rate", "/learning/expert_outer/momentum"},
        ),
        ("public-share", {"share": 0.25}, {"/learning/public_share"}),
        ("late-updates", {"late_rounds": 3}, {"/rounds/late_rounds"}),
        (
            "late-updates",
            {"late_rounds": 3, "late_discount": 0.75},
            {"/rounds/late_rounds", "/rounds/late_discount"},
        ),
        ("probe", {"text": PROBE, "bytes": 5000}, {"/probe/text", "/probe/bytes"}),
        (
            "probe",
            {"text": PROBE, "bytes": 5000, "domains": ["code", "law"]},
            {"/probe/text", "/probe/bytes", "/probe/domains/0", "/probe/domains/1"},
        ),
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


DISPUTE = "sha256:" + "d" * 64
SPRING = {"name": "spring", "member": "coop", "amount": 5_000_000}
GPU = {"device": "gpu", "precision": "bf16", "micro_per_gflop": 0, "micro_per_pflop": 900}


@pytest.mark.parametrize(
    ("key", "params", "changed"),
    [
        ("grant", SPRING, {"/grants/0"}),
        (
            "grant",
            {**SPRING, "unit": "device_ms:gpu", "priority": 1, "not_before_ms": 5, "expires_ms": 9},
            {"/grants/0"},
        ),
        ("rates", {"device": "cpu", "micro_per_gflop": 4}, {"/rate_card/rates/0/micro_per_gflop"}),
        ("rates", GPU, {"/rate_card/rates/1"}),
        ("rates", {"device": "cpu", "precision": "bf16", "micro_per_gflop": 1}, {"/rate_card/rates/1"}),
        (
            "accounting",
            {"topups": 2, "period": "quarter"},
            {"/accounting/topups", "/accounting/period"},
        ),
        ("ruling", {"dispute": DISPUTE, "upheld_micro": 7}, {"/rulings/0"}),
        ("sponsor", {"site": "turin", "payer": "beta"}, {"/sites/1/payer"}),
        ("witnesses", {"quorum": 2}, {"/witnesses/quorum"}),
        (
            "member-admit",
            {"name": "dora", "key": signer("dora").vkey, "budget_micro": 5, "group": "acme"},
            {"/members/3"},
        ),
        ("member-suspend", {"name": "beta", "reason": "Silent."}, {"/members/1/suspended"}),
        (
            "voting-rule",
            {"type": "member", "members": "2/3", "window_s": 9},
            {"/voting/rules/0"},
        ),
        ("voting-power", {"base": "contribution"}, {"/voting/power/base"}),
        ("dormancy", {"on": True}, {"/voting/dormancy"}),
        ("officers", {"names": ("beta",), "pause_s": 60}, {"/voting/officers/0", "/voting/pause_s"}),
        (
            "optimistic-bounds",
            {"bounds": ({"path": "/learning/learning_rate", "least": 0.001, "most": 0.1},)},
            {"/voting/optimistic/0"},
        ),
        ("licence", {"licence": "MIT"}, {"/release/licence"}),
        ("seed-beside", {"on": True}, {"/release/seed_beside"}),
        (
            "model-release",
            {"manifest": DISPUTE, "alias": "stable", "licence": "MIT", "gates": DISPUTE},
            {"/releases/0"},
        ),
        ("pause", {}, {"/rounds/paused"}),
        ("grace", {"grace": "adaptive"}, {"/rounds/grace"}),
        (
            "grace",
            {"grace": "adaptive", "grace_s": 90, "grace_percent": 80, "grace_least_s": 3},
            {"/rounds/grace", "/rounds/grace_s", "/rounds/grace_percent", "/rounds/grace_least_s"},
        ),
    ],
)
def test_a_vote_on_the_books_or_on_the_end_of_rounds_changes_its_own_values_and_switches_nothing_on(
    key: str, params: dict[str, Any], changed: set[str]
) -> None:
    of = charter()
    after = applied(of, key, **params)
    assert {at for at, _, _ in diff(of, after)} == changed | {"/version"}
    assert after.features == {}, "no site has to allow what does not concern its training"


@pytest.mark.parametrize(
    ("key", "before", "params", "changed"),
    [
        ("privacy-none", {"mode": "dp"}, {}, {"/privacy/mode"}),
        (
            "privacy-robust",
            {},
            {"rule": "median", "iterations": 3},
            {"/privacy/mode", "/privacy/robust/rule", "/privacy/robust/iterations"},
        ),
        ("privacy-robust", {"mode": "robust", "robust": {"rule": "median"}}, {}, {"/privacy/robust/rule"}),
        ("privacy-secagg", {}, {"clip": 0.5}, {"/privacy/mode", "/privacy/secagg/clip"}),
        ("privacy-dp", {}, {"clip_norm": 0.5}, {"/privacy/mode", "/privacy/dp/clip_norm"}),
        ("privacy-dp", {"mode": "dp"}, {"epsilon_max": 16.0}, {"/privacy/dp/epsilon_max"}),
        ("norm-gate", {}, {"times": 50}, {"/learning/norm_gate"}),
    ],
)
def test_a_vote_on_privacy_changes_its_own_values_and_every_site_must_allow_it(
    key: str, before: dict[str, Any], params: dict[str, Any], changed: set[str]
) -> None:
    of = with_sites(5, rounds__quorum=4, privacy=before)
    after = applied(of, key, **params)
    assert {at for at, _, _ in diff(of, after)} == changed | {"/version", f"/features/{key}"}
    assert after.features == {key: True}


def test_of_two_votes_on_the_privacy_mode_the_second_is_stale() -> None:
    base = with_sites(5, rounds__quorum=4)
    moved = applied(base, "privacy-robust")
    result = carry_out([base, moved], "privacy-robust", {"rule": "median"})
    assert isinstance(result, Refusal)
    assert result.code == Code.PROPOSAL_STALE


def test_a_vote_for_a_rule_the_charter_cannot_keep_is_refused_before_anybody_votes() -> None:
    result = apply(charter(), "privacy-robust", {"rule": "krum"})
    assert isinstance(result, Refusal)
    assert result.code == Code.CHARTER_INVALID
    assert "needs 5 updates" in result.message


@pytest.mark.parametrize(
    ("privacy", "why"),
    [
        ({"mode": "secagg"}, "'secagg': a masked update opens only together"),
        ({"mode": "robust", "robust": {"rule": "median"}}, "'robust': its rules compare updates of one base"),
    ],
)
def test_late_updates_exclude_privacy_that_needs_all_updates_of_one_round(
    privacy: dict[str, Any], why: str
) -> None:
    result = apply(with_sites(5, rounds__quorum=4, privacy=privacy), "late-updates", {"late_rounds": 1})
    assert isinstance(result, Refusal)
    assert result.code == Code.CHARTER_INVALID
    assert f"rounds.late_rounds is 1 but privacy.mode is {why}" in result.message


@pytest.mark.parametrize(
    ("key", "params", "changed"),
    [
        ("rollback", {"on": True, "sigmas": 4.0}, {"/rollback/on", "/rollback/sigmas"}),
        ("contribution", {"every": 5}, {"/contribution/every"}),
    ],
)
def test_what_rests_on_a_probe_is_refused_without_one(
    key: str, params: dict[str, Any], changed: set[str]
) -> None:
    refused = apply(charter(), key, params)
    assert isinstance(refused, Refusal) and refused.code == Code.CHARTER_INVALID
    assert "there is no probe to measure on (probe.text)" in refused.message
    of = charter(probe={"text": PROBE, "bytes": 5000})
    assert {at for at, _, _ in diff(of, applied(of, key, **params))} == changed | {
        "/version",
        f"/features/{key}",
    }


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        ({"text": PROBE}, "probe.text and probe.bytes belong together"),
        ({"bytes": 5000}, "probe.text and probe.bytes belong together"),
        ({"text": PROBE, "bytes": 3}, "probe.bytes is 3, one window takes"),
        ({"text": PROBE, "bytes": 5000, "rows": 1, "domains": ("a", "b")}, "each of 2 parts needs one"),
        ({"text": PROBE, "bytes": 5000, "domains": ("a", "a")}, "probe.domains names one twice"),
        ({"text": "sha256:short", "bytes": 5000}, "text"),
    ],
)
def test_a_probe_that_cannot_be_measured_on_is_refused(probe: dict[str, Any], why: str) -> None:
    refused = apply(charter(), "probe", probe)
    assert isinstance(refused, Refusal) and why in refused.message


@pytest.mark.parametrize(("key", "params"), [("own-layers", {"begin": 0})])
def test_own_layers_come_by_a_vote_once_and_behind_readers(key: str, params: dict[str, Any]) -> None:
    of = charter(learning__routing="lean")
    refused = apply(of, key, params)
    assert isinstance(refused, Refusal) and "without readers nothing says" in refused.message
    read = applied(of, "readers", width=16)
    after = applied(read, key, **params)
    assert {at for at, _, _ in diff(read, after)} == {"/model/own_from", "/version", f"/features/{key}"}
    again = apply(after, key, params)
    assert isinstance(again, Refusal) and "what they have made of them stays theirs" in again.message


@pytest.mark.parametrize(("key", "params", "changed"), [("readers", {"width": 16}, {"/model/reader"})])
def test_readers_come_by_a_vote_once_and_among_lean_shards(
    key: str, params: dict[str, Any], changed: set[str]
) -> None:
    refused = apply(charter(), key, params)
    assert (
        isinstance(refused, Refusal) and "readers choose among the experts of lean shards" in refused.message
    )
    of = charter(learning__routing="lean")
    after = applied(of, key, **params)
    assert {at for at, _, _ in diff(of, after)} == changed | {"/version", f"/features/{key}"}
    again = apply(after, key, {"width": 8})
    assert isinstance(again, Refusal) and "readers of width 16" in again.message


def test_every_feature_of_the_registry_is_tried_above() -> None:
    tests = (
        test_own_layers_come_by_a_vote_once_and_behind_readers,
        test_readers_come_by_a_vote_once_and_among_lean_shards,
        test_what_rests_on_a_probe_is_refused_without_one,
        test_each_feature_changes_its_own_values_and_nothing_else,
        test_a_vote_on_privacy_changes_its_own_values_and_every_site_must_allow_it,
        test_a_vote_on_the_books_or_on_the_end_of_rounds_changes_its_own_values_and_switches_nothing_on,
        test_expert_features.test_a_vote_on_experts_or_sites_changes_its_own_values_and_every_site_must_allow_it,
    )
    tried = {case[0] for test in tests for mark in test.pytestmark for case in mark.args[1]}  # type: ignore[attr-defined]
    undone = {"member-readmit", "member-expel", "resume"}
    counsel = {key for key, feature in FEATURES.items() if not feature.binding}
    elsewhere = {"image-modality", "distillation", "tokenizer", "context-length", "top-k"}
    assert tried | undone | counsel | elsewhere | {"config-patch"} == set(FEATURES)


def test_what_nobody_can_carry_out_yet_is_registered_with_the_reason_and_refused() -> None:
    for key, params in (
        ("image-modality", {"encoder": "vit"}), ("distillation", {"teacher": PROBE}), ("tokenizer", {"file": PROBE}),
    ):  # fmt: skip
        refused = apply(charter(), key, params)
        assert isinstance(refused, Refusal) and refused.code is Code.CHARTER_INVALID
        assert FEATURES[key].needs in refused.message and len(FEATURES[key].needs) > 60
    patched = {
        "patch": [{"op": "replace", "path": "/model/tokenizer/end", "value": 1}],
        "base": PROBE,
        "result": PROBE,
    }
    refused = apply(charter(), "config-patch", patched)
    assert isinstance(refused, Refusal) and refused.code is Code.FEATURE_PARAMETERS_INVALID
    assert "fixed at the founding" in refused.message


def test_a_longer_sequence_makes_the_models_context_longer_and_a_shorter_one_leaves_it() -> None:
    of = test_expert_features.of()
    shorter = applied(of, "context-length", tokens=of.learning.sequence_length // 2)
    assert shorter.model == of.model
    longer = applied(of, "context-length", tokens=10_000)
    assert longer.learning.sequence_length == longer.model.config["max_position_embeddings"] == 10_000
    refused = apply(of, "top-k", {"experts": 99})
    assert isinstance(refused, Refusal) and "99 but the sites own" in refused.message
    broken = apply(charter(), "context-length", {"tokens": 100})
    assert isinstance(broken, Refusal) and "model.config" in broken.message


def test_what_was_done_to_a_member_or_to_the_rounds_is_undone_by_another_vote() -> None:
    suspended = applied(charter(), "member-suspend", name="beta", reason="Silent.")
    assert applied(suspended, "member-readmit", name="beta").members == charter().members
    paused = applied(charter(), "pause")
    assert applied(paused, "resume").rounds == charter().rounds
    freed = applied(charter(), "sponsor", site="turin", payer="beta")
    granted = applied(freed, "grant", **SPRING)
    assert [m.name for m in applied(granted, "member-expel", name="coop", reason="Left.").members] == [
        "acme",
        "beta",
    ]
    assert applied(granted, "member-expel", name="coop", reason="Left.").grants == ()


@pytest.mark.parametrize(
    ("key", "params", "why"),
    [
        ("member-expel", {"name": "coop", "reason": "Left."}, "coop has or pays for turin"),
        ("member-expel", {"name": "zeta", "reason": "Left."}, "there is no member 'zeta'"),
        ("member-suspend", {"name": "beta", "reason": ""}, "at least 1 character"),
        ("member-readmit", {"name": "beta"}, "changes nothing"),
        ("member-admit", {"name": "beta", "key": signer("dora").vkey, "budget_micro": 0}, "is a member already"),
        ("member-admit", {"name": "dora", "key": signer("beta").vkey, "budget_micro": 0}, "goes by 'beta'"),
        ("member-admit", {"name": "dora", "key": "nonsense", "budget_micro": 0}, "not a verifier key"),
        ("voting-rule", {"type": "member", "share": "3/2", "window_s": 9}, "more than all"),
        ("voting-rule", {"type": "member", "share": "0/2", "window_s": 9}, "share"),
        ("voting-rule", {"type": "member", "extend_s": 10, "window_s": 9}, "at most"),
        ("voting-rule", {"type": "member", "delay_s": 10**9, "window_s": 9}, "delay_s"),
        ("voting-rule", {"type": "anything", "window_s": 9}, "type"),
        ("officers", {"names": ("zeta",)}, "who is no member"),
        ("officers", {"names": ("beta", "beta")}, "named twice"),
        ("optimistic-bounds", {"bounds": ({"path": "/members/0/name", "least": 0, "most": 1},)}, "path"),
        ("optimistic-bounds", {"bounds": ({"path": "/learning/seed", "least": 2, "most": 1},)}, "nothing"),
        ("roadmap", {"candidates": ("a",)}, "at least 2"),
        ("roadmap", {"candidates": ("a", "a")}, "named twice"),
    ],
)  # fmt: skip
def test_a_vote_on_members_or_rules_that_cannot_be_carried_out_is_refused_before_anybody_votes(
    key: str, params: dict[str, Any], why: str
) -> None:
    refusal = features.check(charter(), key, params)
    assert isinstance(refusal, Refusal)
    assert why in refusal.message


def test_a_rule_takes_the_place_of_the_one_for_its_type() -> None:
    first = applied(charter(), "voting-rule", type="member", window_s=9)
    other = applied(first, "voting-rule", type="licence.change", window_s=8)
    again = applied(other, "voting-rule", type="member", window_s=7)
    assert [(r.type, r.window_s) for r in again.voting.rules] == [("member", 7), ("licence.change", 8)]
    assert again.voting.rule("member").members == "", "a rule of its own says all that is needed"
    assert again.voting.rule("rules.change").share == "2/3"


def test_the_last_member_cannot_be_suspended() -> None:
    alone = tuple({**m.model_dump(), "suspended": m.name != "acme"} for m in charter().members)
    refusal = features.check(charter(members=alone), "member-suspend", {"name": "acme", "reason": "All."})
    assert isinstance(refusal, Refusal) and "every member is suspended" in refusal.message


@pytest.mark.parametrize(
    ("key", "params", "code"),
    [
        ("no-such", {}, Code.FEATURE_UNKNOWN),
        ("inner-steps", {}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": 0}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": "20"}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": 20, "rounds": 1}, Code.FEATURE_PARAMETERS_INVALID),
        ("inner-steps", {"steps": 10}, Code.FEATURE_PARAMETERS_INVALID),
        ("uplink-codec", {"trunk": "fp7", "expert": "fp32"}, Code.FEATURE_PARAMETERS_INVALID),
        ("closing-codec", {"closing": "int4"}, Code.FEATURE_PARAMETERS_INVALID),
        ("grant", {**SPRING, "amount": 0}, Code.FEATURE_PARAMETERS_INVALID),
        ("grant", {**SPRING, "amount": 2**63}, Code.FEATURE_PARAMETERS_INVALID),
        ("grant", {**SPRING, "amount": 1.5}, Code.FEATURE_PARAMETERS_INVALID),
        ("grant", {**SPRING, "unit": "EUR"}, Code.FEATURE_PARAMETERS_INVALID),
        ("grant", {**SPRING, "member": "dora"}, Code.CHARTER_INVALID),
        ("grant", {**SPRING, "not_before_ms": 9, "expires_ms": 9}, Code.CHARTER_INVALID),
        ("rates", {"device": "cpu", "micro_per_gflop": 3}, Code.FEATURE_PARAMETERS_INVALID),
        ("rates", {"device": "cpu", "micro_per_gflop": -1}, Code.FEATURE_PARAMETERS_INVALID),
        ("rates", {"device": "cpu"}, Code.FEATURE_PARAMETERS_INVALID),
        ("grace", {}, Code.FEATURE_PARAMETERS_INVALID),
        ("grace", {"grace_least_s": 1}, Code.FEATURE_PARAMETERS_INVALID),
        ("grace", {"grace": "adaptive", "grace_least_s": 86_400}, Code.CHARTER_INVALID),
        ("late-updates", {}, Code.FEATURE_PARAMETERS_INVALID),
        ("late-updates", {"late_rounds": 17}, Code.FEATURE_PARAMETERS_INVALID),
        ("late-updates", {"late_discount": 0.0}, Code.FEATURE_PARAMETERS_INVALID),
        ("accounting", {}, Code.FEATURE_PARAMETERS_INVALID),
        ("accounting", {"topups": 4}, Code.FEATURE_PARAMETERS_INVALID),
        ("accounting", {"period": "week"}, Code.FEATURE_PARAMETERS_INVALID),
        ("ruling", {"dispute": "D-1", "upheld_micro": 1}, Code.FEATURE_PARAMETERS_INVALID),
        ("sponsor", {"site": "oslo", "payer": "beta"}, Code.FEATURE_PARAMETERS_INVALID),
        ("sponsor", {"site": "turin", "payer": "dora"}, Code.CHARTER_INVALID),
        ("sponsor", {"site": "turin", "payer": "coop"}, Code.FEATURE_PARAMETERS_INVALID),
        ("witnesses", {"quorum": 3}, Code.CHARTER_INVALID),
        ("witnesses", {"quorum": 16}, Code.FEATURE_PARAMETERS_INVALID),
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


def test_a_kind_without_a_codec_of_its_own_follows_the_trunk_and_may_do_so_again() -> None:
    one = applied(charter(), "uplink-codec", trunk="int8", expert="bf16")
    codecs = one.learning.codecs
    assert [codecs.of(kind) for kind in Kind] == [*["int8"] * 3, *["bf16"] * 3, "int8"]
    two = applied(one, "uplink-codec", trunk="int8", expert="bf16", vector="fp32", router="bf16")
    assert [two.learning.codecs.of(kind) for kind in Kind] == ["int8", "fp32", *["bf16"] * 4, "int8"]
    three = applied(two, "uplink-codec", trunk="int8", expert="bf16", vector=None, router=None)
    assert three.learning.codecs == codecs
    assert b"vector" not in canonical(three), "a charter from before these fields keeps its digest"


def test_a_last_round_is_encoded_finer_and_nothing_coarser_and_the_others_as_ever() -> None:
    coarse = applied(charter(), "uplink-codec", trunk="int4", expert="int8", router="fp32")
    coarse = applied(coarse, "downlink-codec", down="top_k")
    assert b"closing" not in canonical(coarse), "a charter from before this field keeps its digest"
    last = coarse.learning.rounds
    assert coarse.learning.codecs_in(last) == coarse.learning.codecs
    for wanted, found in (("bf16", "bf16"), ("int8", "int8"), ("fp32", "fp32")):
        closing = applied(coarse, "closing-codec", closing=wanted).learning
        before, codecs = closing.codecs_in(last - 1), closing.codecs_in(last)
        assert [before.of(kind) for kind in Kind] == ["int4", "int4", "fp32", *["int8"] * 3, "int4"]
        assert [codecs.of(kind) for kind in Kind] == [found, found, "fp32", *[found] * 4]
        assert (before.down, codecs.down) == ("top_k", found)


def test_a_value_left_alone_by_the_patch_still_counts_as_its_ground() -> None:
    base = charter()
    moved = applied(base, "uplink-codec", trunk="bf16", expert="fp32")
    result = carry_out([base, moved], "uplink-codec", {"trunk": "fp32", "expert": "int8"})
    assert isinstance(result, Refusal)
    assert result.code == Code.PROPOSAL_STALE


def voted(*wishes: tuple[str, dict[str, Any]]) -> list[Charter | Refusal]:
    """Proposals that were all made on the first charter, carried out one after the other."""
    history, results = [charter()], list[Charter | Refusal]()
    for key, params in wishes:
        results.append(carry_out(history, key, params))
        if isinstance(results[-1], Charter):
            history.append(results[-1])
    return results


@pytest.mark.parametrize(
    ("key", "one", "two", "field"),
    [
        ("grant", SPRING, {**SPRING, "name": "summer"}, "grants"),
        ("grant", SPRING, {"name": "pledge", "member": "acme", "unit": "device_ms:cpu", "amount": 1}, "grants"),
        ("ruling", {"dispute": DISPUTE, "upheld_micro": 7}, {"dispute": "sha256:" + "e" * 64, "upheld_micro": 0}, "rulings"),
    ],
)  # fmt: skip
def test_entries_appended_by_two_votes_on_one_charter_both_become_law(
    key: str, one: dict[str, Any], two: dict[str, Any], field: str
) -> None:
    first, second = voted((key, one), (key, two))
    assert isinstance(first, Charter) and isinstance(second, Charter), second
    assert [entry.model_dump(exclude_unset=True).items() >= wish.items() for entry, wish in zip(getattr(second, field), (one, two), strict=True)] == [True, True]  # fmt: skip
    assert second.version == 3


def test_rates_of_two_devices_voted_on_one_charter_both_become_law() -> None:
    other = {"device": "tpu", "micro_per_gflop": 2}
    _, _, last = voted(("rates", GPU), ("rates", other), ("rates", {"device": "cpu", "micro_per_gflop": 9}))
    assert isinstance(last, Charter)
    assert [(r.device, r.micro_per_gflop) for r in last.rate_card.rates] == [
        ("cpu", 9),
        ("gpu", 0),
        ("tpu", 2),
    ]


@pytest.mark.parametrize(
    ("key", "one", "two", "why"),
    [
        ("grant", SPRING, {**SPRING, "member": "acme"}, "grant 'spring' is named twice"),
        ("grant", SPRING, SPRING, "grant 'spring' is named twice"),
        ("ruling", {"dispute": DISPUTE, "upheld_micro": 7}, {"dispute": DISPUTE, "upheld_micro": 8}, "named twice"),
        ("rates", GPU, {**GPU, "micro_per_pflop": 800}, "its meaning changed"),
        ("rates", {"device": "cpu", "micro_per_gflop": 4}, {"device": "cpu", "micro_per_gflop": 5},
         "/rate_card/rates/0 changed in version 2"),
        ("accounting", {"topups": 2}, {"topups": 3}, "/accounting/topups changed in version 2"),
        ("sponsor", {"site": "turin", "payer": "beta"}, {"site": "turin", "payer": "acme"},
         "/sites/1/payer changed in version 2"),
        ("witnesses", {"quorum": 1}, {"quorum": 2}, "/witnesses/quorum changed in version 2"),
    ],
)  # fmt: skip
def test_of_two_votes_on_one_name_or_value_the_second_is_stale(
    key: str, one: dict[str, Any], two: dict[str, Any], why: str
) -> None:
    first, second = voted((key, one), (key, two))
    assert isinstance(first, Charter)
    assert isinstance(second, Refusal)
    assert second.code == Code.PROPOSAL_STALE
    assert why in second.message


def test_a_sponsor_touches_the_payer_of_a_site_and_nothing_else_of_it() -> None:
    greedy = Feature(
        "greedy", "", InnerSteps, FEATURES["sponsor"].paths,
        lambda _, p: [{"op": "replace", "path": "/sites/1/partner", "value": "acme"}],
    )  # fmt: skip
    result = apply(charter(), greedy, {"steps": 20})
    assert isinstance(result, Refusal)
    assert "would change /sites/1/partner" in result.message


def test_a_grant_that_makes_the_charter_larger_than_a_record_is_refused_before_anybody_votes() -> None:
    grants = [Grant(name=f"grant-{n}", member="coop", amount=1) for n in range(600)]
    result = apply(charter(grants=tuple(g.model_dump() for g in grants)), "grant", SPRING)
    assert isinstance(result, Refusal)
    assert result.code == Code.CHARTER_INVALID
    assert "one journal record" in result.message


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
