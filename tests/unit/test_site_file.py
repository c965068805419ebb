"""SITE.toml: read with its paths, or refused with every mistake at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from commons.errors import ConfigError
from workers.site_file import load

GOOD = """\
[site]
name = "north"
partner = "alder"
text = "texts/code.txt"

[ray]
address = "10.0.0.7:6379"
cpus = 0.5

[policy]
features = ["uplink-codec"]
max_charge_micro_per_round = 250000
"""


def written(folder: Path, text: str) -> Path:
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "code.txt").write_text("one\n\ntwo")
    (folder / "seat").mkdir(exist_ok=True)
    (folder / "seat" / "seat.toml").touch()
    path = folder / "SITE.toml"
    path.write_text(text)
    return path


def test_paths_count_from_the_files_own_folder(tmp_path: Path) -> None:
    site = load(written(tmp_path, GOOD))
    assert (site.name, site.partner) == ("north", "alder")
    assert site.text == tmp_path / "texts" / "code.txt"
    assert (site.seat, site.home, site.public) == (tmp_path / "seat", tmp_path / "state", None)
    assert site.key == tmp_path / "seat" / "site.key"
    assert (site.ray.address, site.ray.cpus, site.ray.gpus) == ("10.0.0.7:6379", 0.5, 0)
    assert site.policy.features == ("uplink-codec",)
    assert site.policy.max_charge_micro_per_round == 250_000


def test_the_owners_bounds_on_the_charter_stand_in_the_file(tmp_path: Path) -> None:
    bounds = """changes = ["/learning", "/rounds"]

[[policy.bounds]]
path = "/learning/inner_steps"
most = 500

[[policy.bounds]]
path = "/privacy/mode"
among = ["secagg", "dp"]
"""
    policy = load(written(tmp_path, GOOD + bounds)).policy
    assert policy.changes == ("/learning", "/rounds")
    assert [(b.path, b.most, b.among) for b in policy.bounds] == [
        ("/learning/inner_steps", 500, ()),
        ("/privacy/mode", None, ("secagg", "dp")),
    ]


def test_left_out_tables_mean_an_embedded_ray_and_everything_allowed(tmp_path: Path) -> None:
    site = load(written(tmp_path, GOOD.partition("[ray]")[0]))
    assert (site.ray.address, site.ray.cpus) == ("local", 1)
    assert (site.policy.features, site.policy.routing) == ("any", "any")
    assert site.policy.max_charge_micro_per_round is None


def test_all_mistakes_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    wrong = """\
[site]
name = "North"
partner = "alder"
txt = "texts/code.txt"

[ray]
cpus = "two"
address = "10.0.0.7"

[policy]
routing = "both"
"""
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, wrong))
    problems = caught.value.problems
    assert caught.value.exit_code == 2
    for line, names in (
        (2, "site.name"),
        (4, "site.txt"),
        (7, "ray.cpus"),
        (8, "ray.address"),
        (11, "routing"),
    ):
        assert any(f"SITE.toml:{line}: " in p and names in p for p in problems), (line, names, problems)
    assert any("site.text" in p and "missing" in p for p in problems)


@pytest.mark.parametrize(
    ("change", "line", "names"),
    [
        (("texts/code.txt", "texts/none.txt"), 4, "does not exist"),
        (('text = "texts/code.txt"', 'text = "texts/code.txt"\nseat = "elsewhere"'), 5, "holds no seat"),
        (("cpus = 0.5", "cpus = 0"), 8, "ray.cpus"),
        (("max_charge_micro_per_round = 250000", "max_charge_micro_per_round = -1"), 12, "max_charge"),
    ],
)
def test_one_mistake_is_named_at_its_line(
    tmp_path: Path, change: tuple[str, str], line: int, names: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, GOOD.replace(*change)))
    [problem] = caught.value.problems
    assert f"SITE.toml:{line}: " in problem
    assert names in problem


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SITE\.toml: there is no such file"):
        load(tmp_path / "SITE.toml")
