"""A charter says at once when it cannot keep the privacy mode it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from commons import charter_file
from commons.charter import Charter
from commons.charter_file import canonical, digest, from_canonical
from commons.errors import ConfigError
from commons.privacy.terms import DP, Privacy, Robust, SecAgg, conflicts
from tests.support.chamber import charter, with_sites


def private(sites: int, quorum: int, codecs: dict[str, str] | None = None, **privacy: Any) -> Charter:
    return with_sites(sites, rounds__quorum=quorum, privacy=privacy, learning__codecs=codecs or {})


@pytest.mark.parametrize(
    ("sites", "quorum", "codecs", "privacy"),
    [
        (1, 1, {"trunk": "int8", "expert": "bf16"}, {}),
        (2, 1, {}, {"mode": "robust"}),
        (3, 3, {}, {"mode": "robust", "robust": {"rule": "median"}}),
        (3, 3, {}, {"mode": "robust", "robust": {"rule": "trimmed_mean"}}),
        (6, 5, {}, {"mode": "robust", "robust": {"rule": "krum"}}),
        (7, 7, {}, {"mode": "robust", "robust": {"rule": "multi_krum", "faulty": 2, "kept": 5}}),
        (3, 3, {"trunk": "int8"}, {"mode": "robust", "robust": {"rule": "centred_clip"}}),
        (3, 3, {"expert": "int8"}, {"mode": "secagg"}),
        (6, 3, {}, {"mode": "secagg", "secagg": {"threshold": 5, "minimum": 3}}),
        (127, 90, {}, {"mode": "secagg"}),
        (1, 1, {"trunk": "int8"}, {"mode": "dp"}),
        (2, 1, {}, {"mode": "none", "secagg": {"minimum": 9}}),
    ],
)
def test_what_can_be_kept_is_taken_and_read_back(
    sites: int, quorum: int, codecs: dict[str, str], privacy: dict[str, Any], tmp_path: Path
) -> None:
    of = private(sites, quorum, codecs, **privacy)
    assert from_canonical(canonical(of)) == of
    charter_file.write(of, tmp_path / "charter.toml")
    if sites < 100:
        assert charter_file.load(tmp_path / "charter.toml") == of


@pytest.mark.parametrize(
    ("sites", "quorum", "codecs", "privacy", "why"),
    [
        (4, 2, {}, {"mode": "robust", "robust": {"rule": "median"}}, "needs 3 updates, but a round may close with rounds.quorum = 2"),
        (4, 2, {}, {"mode": "robust", "robust": {"rule": "centred_clip"}}, "needs 3 updates"),
        (4, 2, {}, {"mode": "robust", "robust": {"rule": "trimmed_mean"}}, "needs 3 updates of which 1 may be wrong"),
        (9, 4, {}, {"mode": "robust", "robust": {"rule": "trimmed_mean", "faulty": 2}}, "needs 5 updates of which 2"),
        (6, 4, {}, {"mode": "robust", "robust": {"rule": "krum"}}, "needs 5 updates of which 1 may be wrong"),
        (6, 6, {}, {"mode": "robust", "robust": {"rule": "multi_krum", "faulty": 2}}, "needs 7 updates"),
        (5, 5, {}, {"mode": "robust", "robust": {"rule": "multi_krum", "kept": 5}}, "privacy.robust.kept is 5"),
        (2, 2, {}, {"mode": "secagg"}, "there are 2 sites: of fewer than 3 each sees through the sum"),
        (4, 2, {}, {"mode": "secagg"}, "privacy.secagg.minimum is 3 but a round may close with rounds.quorum = 2"),
        (3, 3, {}, {"mode": "secagg", "secagg": {"threshold": 4}}, "threshold is 4 but there are 3 sites"),
        (6, 4, {}, {"mode": "secagg", "secagg": {"threshold": 4}}, "not above two thirds of 6 sites"),
        (128, 90, {}, {"mode": "secagg"}, "fraction_bits is 24, too many for the sum of 128 sites in 32 bits"),
        (3, 3, {"trunk": "int8"}, {"mode": "secagg"}, "learning.codecs.trunk is 'int8': masked values"),
        (2, 1, {}, {"mode": "dp", "dp": {"noise_multiplier": 0.5}}, "privacy.dp.epsilon_max is 8 but one round already spends 11"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_the_reason(
    sites: int, quorum: int, codecs: dict[str, str], privacy: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValidationError) as error:
        private(sites, quorum, codecs, **privacy)
    (found,) = error.value.errors()
    assert why in found["msg"]
    assert ";" not in found["msg"], "one sentence: a file's problems are told apart by semicolons"


@pytest.mark.parametrize(
    ("privacy", "field"),
    [
        (Privacy(mode="robust", robust=Robust(rule="median")), "trunk"),
        (Privacy(mode="robust", robust=Robust(rule="trimmed_mean")), "trunk"),
        (Privacy(mode="robust", robust=Robust(rule="krum")), None),
        (Privacy(mode="dp"), "trunk"),
        (Privacy(mode="dp", dp=DP(slices="all")), "expert"),
        (Privacy(mode="dp"), None),
    ],
)
def test_a_sparse_codec_is_refused_where_it_makes_the_mode_pointless(
    privacy: Privacy, field: str | None
) -> None:
    codecs = {"trunk": "int8", "router": "fp32", "expert": "int8", **({field: "top_k"} if field else {})}
    expert = codecs.pop("expert")
    found = conflicts(privacy, sites=7, quorum=7, expert_codec=expert, shared_codecs=codecs)
    assert len(found) == (field is not None)
    assert all(f"learning.codecs.{field} is 'top_k'" in why for why in found)


def test_experts_that_are_not_noised_may_be_sparse() -> None:
    assert conflicts(Privacy(mode="dp"), sites=2, quorum=1, expert_codec="top_k", shared_codecs={}) == []


@pytest.mark.parametrize(
    ("section", "terms"),
    [
        ("robust", {"rule": "mean"}),
        ("robust", {"faulty": 0}),
        ("robust", {"clip_norm": -1.0}),
        ("robust", {"iterations": 0}),
        ("secagg", {"minimum": 2}),
        ("secagg", {"clip": 0.0}),
        ("secagg", {"fraction_bits": 31}),
        ("dp", {"noise_multiplier": 0.0}),
        ("dp", {"delta": 1.0}),
        ("dp", {"epsilon_max": 0.0}),
        ("dp", {"slices": "experts"}),
        ("dp", {"epsilon": 1.0}),
    ],
)
def test_a_parameter_out_of_its_bounds_is_refused(section: str, terms: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        charter(privacy={section: terms})


def test_a_charter_without_the_section_keeps_its_bytes() -> None:
    """Digest of the same charter when the section did not exist yet."""
    assert digest(charter()) == "sha256:38bd2daef32af801c5611672834aaec70bae19565f010dc6a7a03bed6d96c47c"
    assert b"privacy" not in canonical(charter()) and b"norm_gate" not in canonical(charter())
    assert b'"privacy":{"mode":"dp"}' in canonical(charter(privacy={"mode": "dp"}))


def test_the_mistake_is_named_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    charter_file.write(private(5, 5, mode="robust", robust={"rule": "krum"}), path)
    path.write_text(path.read_text().replace("faulty = 1", "faulty = 2"))
    with pytest.raises(ConfigError) as error:
        charter_file.load(path)
    (problem,) = error.value.problems
    line = path.read_text().splitlines()[int(problem.split(":")[1]) - 1]
    assert line.startswith('rule = "krum"')
    assert "needs 7 updates" in problem


@pytest.mark.parametrize(("began", "needed"), [(3, 3), (4, 3), (5, 4), (6, 5), (9, 7)])
def test_a_sum_is_opened_by_more_than_two_thirds(began: int, needed: int) -> None:
    assert SecAgg().needed(began) == needed
    assert SecAgg(threshold=8).needed(began) == 8
