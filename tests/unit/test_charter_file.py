"""A charter written by hand is read whole or refused with every mistake at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from commons import charter_file, toml_file
from commons.charter import Charter
from commons.errors import ConfigError
from tests.support.chamber import LOG, charter, signer


def saved(tmp_path: Path, change: tuple[str, str] | None = None, *more: tuple[str, str]) -> Path:
    path = tmp_path / "charter.toml"
    charter_file.write(charter(), path)
    text = path.read_text()
    for old, new in (change, *more) if change else ():
        assert text.count(old) >= 1, f"the written charter has no {old!r}"
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def refused(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        charter_file.load(path)
    return [problem.removeprefix(f"{path}:") for problem in error.value.problems]


def line_of(path: Path, start: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(start))


def test_what_is_written_is_read_back_equal_and_with_the_same_digest(tmp_path: Path) -> None:
    for of in (charter(), charter(features={"inner-steps": True}), charter(voting__pass_percent=66)):
        path = tmp_path / "charter.toml"
        charter_file.write(of, path)
        assert charter_file.load(path) == of
        assert charter_file.digest(charter_file.load(path)) == charter_file.digest(of)
    assert [p.name for p in tmp_path.iterdir()] == ["charter.toml"]


def test_the_written_file_explains_itself(tmp_path: Path) -> None:
    text = saved(tmp_path).read_text()
    assert "# Places that compute" in text
    assert "payer" in text and "a sponsor when it is not the partner" in text


def test_precisions_a_site_may_compute_in_must_have_a_price(tmp_path: Path) -> None:
    rates = tuple({"device": "cpu", "precision": p, "micro_per_gflop": 3} for p in ("fp32", "bf16"))
    assert charter(learning__precision="bf16").learning.precision == "bf16", "`any` is a price of both"
    assert charter(learning__precision="bf16", rate_card__rates=rates).learning.precision == "bf16"
    for named, lacks in ((0, "bf16"), (1, "fp32")):
        with pytest.raises(
            ValueError, match=f"learning.precision is 'bf16' but 'cpu' has no rate at {lacks}"
        ):
            charter(learning__precision="bf16", rate_card__rates=(rates[named],))


def test_canonical_bytes_read_back_and_other_writings_are_refused() -> None:
    data = charter_file.canonical(charter())
    assert charter_file.from_canonical(data) == charter()
    for other in (
        data + b"\n",
        data.replace(b'":', b'": ', 1),
        data.replace(b"0.01", b"1e-2", 1),
        b"{}",
        b"\xff",
    ):
        with pytest.raises(ValueError, match=r"charter"):
            charter_file.from_canonical(other)


def test_a_whole_number_and_a_decimal_are_the_same_rate(tmp_path: Path) -> None:
    path = saved(tmp_path, ("learning_rate = 0.01", "learning_rate = 1"))
    assert charter_file.load(path).learning.learning_rate == 1.0
    assert b'"learning_rate":1.0' in charter_file.canonical(charter_file.load(path))


def test_all_mistakes_of_all_kinds_are_reported_at_once_each_at_its_line(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        ("inner_steps = 10", "inner_stepz = 10\nbatch_sizes = [\n  1,\n]"),
        ("rounds = 4", 'rounds = "four"'),
        ("quorum = 1", "quorum = 3"),
        ('payer = "coop"', 'payer = "nobody"'),
        ('licence = "Apache-2.0"', "licence = 2026-01-01"),
    )
    problems = refused(path)
    for start, what in {
        "inner_stepz": "learning.inner_stepz: unknown key (did you mean 'inner_steps'?)",
        "[learning]": "learning.inner_steps: is missing (add it)",
        "batch_sizes": "learning.batch_sizes: unknown key (did you mean 'batch_size'?)",
        "rounds = ": "learning.rounds: expected an integer, found the string 'four'",
        "quorum": "rounds.quorum: rounds.quorum is 3 but there are 2 sites",
        'payer = "nobody"': "sites[turin].payer: site 'turin' names payer 'nobody', who is no member",
        "licence": "release.licence: expected a string in quotes, found the date or time 2026-01-01",
    }.items():
        assert f"{line_of(path, start)}: {what}" in problems
    assert len(problems) == 7
    assert [int(p.split(":")[0]) for p in problems] == sorted(int(p.split(":")[0]) for p in problems)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("quorum = 1", "quorum = true", "expected an integer, found true"),
        ("quorum = 1", "quorum = 1.5", "expected an integer, found the number 1.5"),
        ("nesterov = false", "nesterov = 0", "expected true or false, found the integer 0"),
        ("learning_rate = 0.01", "learning_rate = nan", "expected a finite number, found nan"),
        ("rope_theta = 10000.0", "rope_theta = inf", "expected a finite number, found inf"),
        ("hidden_size = 64", "hidden_size = [6.5]", "found a list of 1"),
        ("learning_rate = 0.01", "learning_rate = 7", "less than or equal to 1, found the integer 7"),
        ('routing = "joint"', 'routing = "loose"', "expected 'joint' or 'lean', found the string 'loose'"),
        (
            'experts = ["law-0"]',
            'experts = "law-0"',
            "expected a list in [brackets], found the string 'law-0'",
        ),
        ('experts = ["law-0"]', 'experts = ["Law 0"]', "expected lower-case letters, digits and hyphens"),
        ('currency = "EUR"', 'currency = "euro"', "expected three capital letters such as EUR"),
        ('experts = ["law-0"]', "experts = []", "at least 1 item"),
        ('experts = ["code-0"]', 'experts = ["law-0"]', "expert 'law-0' is named twice"),
        ('device = "cpu"', 'device = "gpu"', "site 'berlin' runs on 'gpu', which has no rate"),
        ('name = "turin"', 'name = "berlin"', "site 'berlin' is named twice"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_found(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = saved(tmp_path, (old, new))
    problems = [p for p in refused(path) if expected in p]
    assert problems, refused(path)
    line = path.read_text().splitlines()[int(problems[0].split(":")[0]) - 1]
    assert line.startswith(new.partition(" =")[0])


def test_a_list_with_a_broken_element_is_not_called_empty_as_well(tmp_path: Path) -> None:
    path = saved(tmp_path, ("micro_per_gflop = 3", "micro_per_gflopp = 3"))
    assert [p.split(": ", 2)[1:] for p in refused(path)] == [
        ["rate_card.rates[1].micro_per_gflop", "is missing (add it)"],
        ["rate_card.rates[1].micro_per_gflopp", "unknown key (did you mean 'micro_per_gflop'?)"],
    ]


def test_a_missing_section_and_a_misspelt_one_are_both_named(tmp_path: Path) -> None:
    path = saved(tmp_path, ("[voting]", "[votign]"))
    assert any("voting: is missing" in p for p in refused(path))
    assert f"{line_of(path, '[votign]')}: votign: unknown key (did you mean 'voting'?)" in refused(path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("quorum = 1", "quorum = ", "not valid TOML"),
        ("quorum = 1", "quorum = 1\nquorum = 2", "rounds.quorum: given twice, first on line"),
        ("[release]", "[rounds]", "rounds: given twice, first on line"),
        ("quorum = 1", 'quorum = "1', "not valid TOML"),
    ],
)
def test_a_text_that_is_no_toml_is_refused_at_its_line(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = saved(tmp_path, (old, new))
    (problem,) = refused(path)
    assert expected in problem
    place = new.splitlines()[-1]
    assert int(problem.split(":")[0]) == max(
        n for n, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(place)
    )


def test_a_key_that_is_not_its_owners_is_named(tmp_path: Path) -> None:
    acme, beta, coop = (signer(m).vkey for m in ("acme", "beta", "coop"))
    path = saved(tmp_path, (acme, beta), (coop, "paste it here"))
    assert any("this key goes by 'beta', expected 'acme'" in p for p in refused(path))
    assert any("members[beta].key: this is also the key of member acme" in p for p in refused(path))
    assert any("members[coop].key: not a verifier key" in p for p in refused(path))
    borrowed = saved(tmp_path, (acme, LOG.vkey))
    assert any("also the key of the journal" in p for p in refused(borrowed))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        charter_file.load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"\n')
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        charter_file.load(tmp_path / "latin.toml")


def test_a_charter_too_large_for_one_record_is_refused() -> None:
    sites = tuple(
        {**s.model_dump(), "name": f"site-{n}", "experts": (f"e-{n}",), "data_statement": "x" * 2000}
        for n in range(40)
        for s in charter().sites[:1]
    )
    assert any("at most 65471" in p for p in charter_file.problems(charter(sites=sites)))
    assert charter_file.problems(charter()) == []


def test_the_difference_of_two_charters_names_what_changed() -> None:
    changed = charter(learning__inner_steps=20, voting__pass_percent=66, features={"a": True})
    assert charter_file.diff(charter(), changed) == [
        ("/learning/inner_steps", 10, 20),
        ("/voting/pass_percent", 50, 66),
        ("/features/a", None, True),
    ]
    assert charter_file.diff(charter(), charter()) == []


def test_true_and_one_are_different_values() -> None:
    one = charter(model={"family": "glm4_moe", "config": {"x": 1}})
    true = charter(model={"family": "glm4_moe", "config": {"x": True}})
    assert charter_file.diff(one, true) == [("/model/config/x", 1, True)]


def test_the_schema_describes_every_section() -> None:
    assert set(charter_file.schema()["properties"]) == set(Charter.model_fields)


def test_the_stand_ins_for_broken_sections_are_themselves_valid() -> None:
    raw = charter().model_dump()
    for path, value in charter_file._STAND_INS.items():
        table = raw
        for key in path[:-1]:
            table = table[key][0] if isinstance(table[key], tuple) else table[key]
        if path[0] not in ("members", "sites") and "rates" not in path:
            table[path[-1]] = value
    value, problems = toml_file.check(raw, Charter, stand_ins={}, place=lambda *_: ())
    assert value and not problems
