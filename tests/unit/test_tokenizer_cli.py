"""`hansa tokenizer`, and a charter that names one, as a person types it: from public text to the coordinator's first start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from commons.errors import HansaError
from commons.experts.tokenizer import FILE
from commons.identity import save_signer, write_file
from hansa.cli import app
from hansa.hosting import furnish
from orchestrator.home import Home
from tests.support.consortium import signer


def hansa(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("quay", "alder", "birch"):
        save_signer(tmp_path / f"{name}.key", signer(name))
        write_file(tmp_path / f"{name}.pub", signer(name).vkey.encode() + b"\n")
    (tmp_path / "public.txt").write_text("\n\n".join(f"the square of {i} is {i * i}" for i in range(60)))
    made = hansa(
        "tokenizer", "train", "--text", "public.txt", "--vocabulary", "300", "--out", "made.json", "--json"
    )
    assert made.exit_code == 0 and json.loads(made.stdout)["tokens"] == 300
    return tmp_path


def charter(*more: str) -> Result:
    members = ("--member", "alder.pub", "--member", "birch.pub")
    return hansa("charter", "new", "c/charter.toml", "--log-key", "quay.pub", *members, *more)


def test_a_tokenizer_goes_from_public_text_to_the_coordinators_home(folder: Path) -> None:
    told = json.loads(hansa("tokenizer", "check", "made.json", "--json").stdout)
    assert (told["end"], told["end_token"]) == (0, "<|endoftext|>")
    assert charter("--tokenizer", "made.json").exit_code == 0
    assert (folder / "c" / FILE).read_bytes() == (folder / "made.json").read_bytes()
    assert "vocab_size = 300" in (folder / "c/charter.toml").read_text()
    for name in ("alder", "birch"):
        assert hansa("charter", "sign", "c/charter.toml", "--key", f"{name}.key").exit_code == 0
    assert f"300 tokens of {told['digest']}" in hansa("charter", "show", "c/charter.toml").stdout
    paths = {"charter": Path("c/charter.toml"), "founding": Path("founding"), "log_key": Path("quay.key")}
    furnish(folder / "home", **paths)
    assert Home.open(folder / "home").tokenizer == folder / "home" / FILE
    (folder / "c" / FILE).write_text("{}")
    for words in (("check",), ("sign", "--key", "alder.key")):
        refused = hansa("charter", words[0], "c/charter.toml", *words[1:])
        assert (
            refused.exit_code == 1
            and refused.stderr.count("sha256:") == 2
            and told["digest"] in refused.stderr
        )
    with pytest.raises(HansaError, match=told["digest"]):
        furnish(folder / "another home", **paths)
    assert not (folder / "another home").exists()


def test_what_cannot_be_named_makes_no_charter(folder: Path) -> None:
    (folder / "bad.json").write_text((folder / "made.json").read_text().replace("endoftext", "stop"))
    for words, said in (
        (("--tokenizer", "bad.json"), "none of <|endoftext|>"),
        (("--tokenizer", "made.json", "--end", "<|stop|>"), "has no token '<|stop|>'"),
        (("--tokenizer", "public.txt"), "public.txt cannot be read as a tokenizer.json"),
        (("--tokenizer", "nowhere.json"), "nowhere.json does not exist"),
        (("--checkpoint", "nowhere"), "nowhere/tokenizer.json does not exist"),
    ):
        refused = charter(*words)
        assert refused.exit_code == 1 and said in refused.stderr, refused.output
        assert not (folder / "c").exists()
    assert charter("--tokenizer", "bad.json", "--end", "<|stop|>").exit_code == 0
    again = hansa("tokenizer", "train", "--text", "public.txt", "--out", "made.json")
    assert again.exit_code == 5 and "was left as it is" in again.stderr
