"""Go's checksum-database code reads our checkpoint, proofs and tiles; we read what it signs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commons import merkle
from commons.cosignature import Cosignatory, Cosigner, cosigned, with_cosignatures
from commons.log import Checkpoint
from commons.notes import Signer, Verifier
from commons.records import Kind, fact
from governance.journal import Journal
from governance.journal.tiles import publish
from tests.support.chamber import LOG

SOURCE = Path(__file__).with_name("tlog.go")
DEBIAN = Path("/usr/share/gocode")
"""Where golang-golang-x-mod-dev puts golang.org/x/mod, for a Go that is used without modules and without network."""
MODULE = "golang.org/x/mod/sumdb/tlog"
W1 = Cosigner(Signer("w1", b"\x01" * 32))
INDEX, OLD, SIZE = 517, 300, 700


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000


@pytest.fixture(scope="session")
def tlog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built once."""
    go = shutil.which("go")
    if not go:
        pytest.skip("GO IS MISSING: nobody else's code has read our log here; install golang-go")
    if not (DEBIAN / "src" / MODULE).is_dir():
        pytest.skip(
            f"{MODULE} IS MISSING: nobody else's code has read our log here; install golang-golang-x-mod-dev"
        )
    folder = tmp_path_factory.mktemp("go")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": str(DEBIAN),
        "GOCACHE": str(folder / "cache"),
        "CGO_ENABLED": "0",
    }
    command = [go, "build", "-o", str(folder / "tlog"), str(SOURCE)]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert built.returncode == 0, built.stderr
    return folder / "tlog"


@pytest.fixture
def case(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A journal of 700 records as the Go program is shown it: case.json and tiles."""
    journal = Journal.open(tmp_path / "home", signer=LOG, clock=FixedClock())
    journal.append([fact(Kind.TRANSFER, 1000 + n, n=n, name="Zürich") for n in range(OLD)])
    old_root = journal.root()
    journal.append([fact(Kind.TRANSFER, 2000 + n, n=n) for n in range(SIZE - OLD)])
    publish(journal, tmp_path / "tiles", entries=False)
    text = Checkpoint.open(journal.checkpoint(), LOG.verifier).text
    yield {
        "Log": LOG.vkey,
        "Witness": W1.vkey,
        "Checkpoint": with_cosignatures(journal.checkpoint(), [W1.cosign(text, 1_700_000_000)]).decode(),
        "Leaf": base64.b64encode(journal.record(INDEX).leaf).decode(),
        "Index": INDEX,
        "Old": OLD,
        "OldRoot": base64.b64encode(old_root).decode(),
        "Inclusion": [base64.b64encode(value).decode() for value in journal.inclusion(INDEX, SIZE)],
        "Consistency": [base64.b64encode(value).decode() for value in journal.consistency(OLD, SIZE)],
    }
    journal.close()


def check(tlog: Path, folder: Path, case: dict[str, Any]) -> tuple[list[str], str]:
    (folder / "case.json").write_text(json.dumps(case))
    done = subprocess.run([tlog, "check", folder], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split(), done.stderr


def test_go_reads_our_checkpoint_our_proofs_and_our_tiles(
    tlog: Path, case: dict[str, Any], tmp_path: Path
) -> None:
    held, said = check(tlog, tmp_path, case)
    assert held == ["checkpoint", "inclusion", "consistency", "tiles"], said


OTHER = base64.b64encode(b"x" * 32).decode()


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [
        ("Leaf", base64.b64encode(b"another record").decode(), ["checkpoint"]),
        ("Index", INDEX + 1, ["checkpoint"]),
        ("Inclusion", [OTHER], ["checkpoint"]),
        ("OldRoot", OTHER, ["checkpoint", "inclusion"]),
        ("Consistency", [OTHER], ["checkpoint", "inclusion"]),
        ("Log", Signer("demo", b"\x09" * 32).vkey, []),
        ("Witness", Cosigner(Signer("w1", b"\x09" * 32)).vkey, []),
    ],
)
def test_go_refuses_what_is_not_so(
    tlog: Path, case: dict[str, Any], tmp_path: Path, name: str, value: object, held: list[str]
) -> None:
    assert check(tlog, tmp_path, {**case, name: value})[0] == held


def test_go_refuses_a_changed_tile(tlog: Path, case: dict[str, Any], tmp_path: Path) -> None:
    """By Go's tile reader, or, where an old one passes over a full tile at this size, by the proof made from it."""
    path = tmp_path / "tiles" / "tile" / "0" / "001"
    path.write_bytes(b"\x00" + path.read_bytes()[1:])
    held, said = check(tlog, tmp_path, case)
    assert held == ["checkpoint", "inclusion", "consistency"]
    assert "inconsistent tile" in said or "the proofs made from the tiles are others" in said


def test_we_read_a_key_a_checkpoint_and_a_cosignature_made_in_go(tlog: Path) -> None:
    done = subprocess.run([tlog, "make", "demo"], capture_output=True, text=True, timeout=60, check=True)
    made = json.loads(done.stdout)
    log, witness = Verifier.from_vkey(made["vkey"]), Cosignatory.from_vkey(made["witness"])
    assert Signer.from_text(made["skey"]).verifier == log
    checkpoint, times = cosigned(made["checkpoint"].encode(), log, [witness])
    assert checkpoint == Checkpoint("demo", 1, merkle.leaf_hash(b"a record"))
    assert times == {"witness": 1_700_000_000}
