"""The command line: what a newcomer reads, what a program gets, and what a mistake looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from commons import charter_file
from commons.errors import StoreError
from commons.features import FEATURES
from commons.written import money, size
from hansa.cli import app

ROOT = Path(__file__).parents[2]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def commands(command: object = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command that does something, with its path."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, found in inner.items():
        yield from commands(found, (*path, name))


COMMANDS = dict(commands())
CONTRACT = """demo; key new; charter new; charter show; charter sign; charter check; coordinator start; member join;
site join; site start; site submit; site status; site logs; site stop; site verify; run start; run watch; run stop;
budget show; budget forecast; budget quote; budget disputes; budget dispute; budget rule; budget convert; budget reverse;
proposal open; proposal list; proposal vote; proposal show; proposal pledge; proposal withdraw; proposal veto;
proposal features; site lodge; release make; release verify; journal verify;
journal prove; journal tiles; journal witness; journal fsck;
expert list; expert add; expert retire; expert transfer; expert opt-out-report; expert opt-out-verify;
seed make; tokenizer train; tokenizer check"""


def test_the_registry_of_features_can_be_read() -> None:
    told = json.loads(invoke("proposal", "features", "--json").stdout)
    assert [f["feature"] for f in told] == list(FEATURES)
    assert all(f["title"] and f["undone_by"] and f["parameters"]["type"] == "object" for f in told)
    one = invoke("proposal", "features", "rollback").stdout
    assert "needs a probe" in one and "may change /rollback" in one and '"sigmas"' in one
    assert invoke("proposal", "features", "nonsense").exit_code == 2


def test_every_promised_command_exists() -> None:
    promised = {tuple(name.split()) for name in CONTRACT.replace("\n", " ").split(";")}
    assert promised - set(COMMANDS) == set()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_explains_itself_with_an_example_and_speaks_json(path: tuple[str, ...]) -> None:
    shown = invoke(*path, "--help")
    assert shown.exit_code == 0
    assert "Example" in shown.output, "a newcomer needs an example"
    assert f"hansa {' '.join(path)}" in shown.output
    assert "--json" in shown.output


def test_help_loads_nothing_that_takes_its_time() -> None:
    """What it takes is in the benchmarks: a machine at work would fail a test of seconds."""
    heavy = "torch ray mlflow grpc sqlalchemy pydantic numpy rich starlette jinja2 transformers cryptography tenacity"
    program = (
        "import sys\nfrom hansa.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
        f"sys.exit(' '.join(set({heavy!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "hansa demo" in done.stdout and not done.stderr.strip(), done.stderr


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    made = invoke("key", "new", "alder", "--folder", str(tmp_path), "--json")
    assert made.exit_code == 0
    assert json.loads(made.output)["vkey"].startswith("alder+")
    secret = (tmp_path / "alder.key").read_bytes()
    assert (tmp_path / "alder.key").stat().st_mode & 0o077 == 0
    again = invoke("key", "new", "alder", "--folder", str(tmp_path))
    assert again.exit_code == StoreError.exit_code
    assert "exists" in again.output
    assert (tmp_path / "alder.key").read_bytes() == secret


@pytest.fixture
def founded(tmp_path: Path) -> Path:
    for name in ("quay", "alder", "birch", "elm"):
        assert invoke("key", "new", name, "--folder", str(tmp_path / "keys")).exit_code == 0
    keys = tmp_path / "keys"
    made = invoke(
        "charter", "new", str(tmp_path / "charter.toml"), "--log-key", str(keys / "quay.pub"),
        "--member", str(keys / "alder.pub"), "--member", str(keys / "birch.pub"), "--funder", str(keys / "elm.pub"),
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    return tmp_path


def test_a_new_charter_is_sound_and_its_funder_pays_for_the_last_site(founded: Path) -> None:
    charter = charter_file.load(founded / "charter.toml")
    assert [s.payer for s in charter.sites] == ["alder", "elm"]
    assert charter.consortium.name == "quay"


def test_a_charter_can_start_from_another_familys_model(founded: Path) -> None:
    keys, file = founded / "keys", founded / "other.toml"
    said = ("--log-key", str(keys / "quay.pub"), "--member", str(keys / "alder.pub"))
    assert invoke("charter", "new", str(file), *said, "--model", "llama4-scout").exit_code == 0
    assert charter_file.load(file).model.family == "llama4_text"
    assert invoke("charter", "check", str(file)).exit_code == 0
    file.write_text(file.read_text().replace("hidden_size = 5120", "hidden_size = 0"))
    checked = invoke("charter", "check", str(file))
    assert checked.exit_code == 2 and "model.config.hidden_size" in checked.output
    wrong = invoke("charter", "new", str(founded / "none.toml"), *said, "--model", "llama5")
    assert wrong.exit_code == 1 and "llama4-maverick" in wrong.output


def test_a_charter_says_who_has_still_to_sign(founded: Path) -> None:
    file, founding = str(founded / "charter.toml"), str(founded / "founding")
    for name in ("alder", "elm"):
        signed = invoke(
            "charter", "sign", file, "--key", str(founded / f"keys/{name}.key"), "--founding", founding
        )
        assert signed.exit_code == 0, signed.output
    facts = json.loads(invoke("charter", "check", file, "--founding", founding, "--json").output)
    assert (facts["signed"], facts["unsigned"]) == (["alder", "elm"], ["birch"])


def test_a_charter_changed_after_it_was_signed_is_noticed(founded: Path) -> None:
    file, founding = founded / "charter.toml", str(founded / "founding")
    invoke("charter", "sign", str(file), "--key", str(founded / "keys/alder.key"), "--founding", founding)
    file.write_text(file.read_text().replace("rounds = 4", "rounds = 5"))
    checked = invoke("charter", "check", str(file), "--founding", founding)
    assert checked.exit_code != 0
    assert "alder signed another charter" in checked.output


def test_every_problem_of_a_charter_is_shown_with_its_line(founded: Path) -> None:
    file = founded / "charter.toml"
    file.write_text(
        file.read_text().replace("rounds = 4", 'rounds = "four"').replace("grace_s", "grace_seconds")
    )
    checked = invoke("charter", "check", str(file))
    assert checked.exit_code == 2
    assert "learning.rounds" in checked.output
    assert "grace_seconds" in checked.output
    assert all(f"{file}:" in problem for problem in checked.output.strip().splitlines())


def test_only_a_member_can_sign(founded: Path) -> None:
    signed = invoke("charter", "sign", str(founded / "charter.toml"), "--key", str(founded / "keys/quay.key"))
    assert signed.exit_code == 1
    assert "no key of a member" in signed.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("budget", "show", "--seat", "nowhere"), "this folder holds no seat"),
        (("charter", "check", "nowhere.toml"), "there is no such file"),
        (("journal", "verify", "--home", "nowhere"), "there is no journal"),
        (("site", "start", "nowhere.toml"), "nowhere.toml"),
        (("member", "join", "nowhere.invite", "--key", "nowhere.key"), "ask the coordinator's operator"),
        (("proposal", "open", "uplink-codec", "--set", "int8"), "expected NAME=VALUE"),
        (("demo", "--dir", "nowhere", "--resume"), "no demo to resume"),
    ],
)
def test_a_mistake_is_one_clear_message_without_traceback(
    arguments: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code not in (0, 70), result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_a_mistake_of_ours_is_two_lines_and_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr("hansa.keys.new_key", broken)
    result = invoke("key", "new", "alder")
    assert result.exit_code == 70
    log = Path(result.output.strip().rpartition(" ")[2])
    try:
        assert "ZeroDivisionError: boom" in log.read_text()
    finally:
        log.unlink()


def test_a_demo_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = invoke("demo", "--dir", str(tmp_path), "--fresh")
    assert result.exit_code == StoreError.exit_code
    assert "no demo" in result.output
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["{}", "not json", '{"format": 99}'])
def test_a_broken_demo_folder_is_named_with_the_way_out(content: str, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(content)
    result = invoke("demo", "--dir", str(tmp_path))
    assert result.exit_code == StoreError.exit_code
    assert "--fresh" in result.output


@pytest.mark.parametrize(
    ("micro", "shown"), [(0, "0.00"), (1_500_000, "1.50"), (1, "0.000001"), (-2_250_000, "-2.25")]
)
def test_money_is_shown_exactly(micro: int, shown: str) -> None:
    assert money(micro) == shown


def test_sizes_are_shown_in_powers_of_a_thousand() -> None:
    assert [size(n) for n in (999, 1500, 2_000_000, 3_100_000_000)] == ["999 B", "1.5 kB", "2.0 MB", "3.1 GB"]


def test_benchmarks_find_the_checkout_where_an_installed_package_brings_a_tests_of_its_own(
    tmp_path: Path,
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    asked = """
from commons.errors import HansaError
from hansa.commands.bench import bench
try:
    bench("nosuch")
except HansaError as error:
    print(error)
import benchmarks.ledger
"""
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "there is no benchmark 'nosuch'" in done.stdout) == (0, True), done.stderr
