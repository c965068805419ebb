"""`hansa journal`: what a coordinator proves, a stranger checks with one file and one key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from commons.cosignature import Cosigner, with_cosignatures
from commons.errors import HansaError, Refused, StoreError
from commons.identity import write_file
from commons.log import Checkpoint, open_proof_file
from commons.notes import Signer
from commons.records import Kind, Record, fact
from commons.tiles import published
from commons.witness_policy import Policy
from governance.journal import Journal
from hansa.cli import app
from tests.support.chamber import LOG

SIZE = 600
W1 = Cosigner(Signer("w1", b"\x01" * 32))


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000


def record(n: int) -> Record:
    if n == 5:
        return Record(
            Kind.BALLOT, 1_700_000_000_005, Signer("acme", b"\x02" * 32).sign("ballot/v1\nchoice yes\n")
        )
    return fact(Kind.TRANSFER, 1_700_000_000_000 + n, id=f"settle/{n}", amount_micro=n, name="Bücher\u202e")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    journal = Journal.open(folder, signer=LOG, clock=FixedClock())
    journal.append([record(n) for n in range(SIZE - 10)])
    text = Checkpoint.open(journal.checkpoint(), LOG.verifier).text
    journal.publish(SIZE - 10, with_cosignatures(journal.checkpoint(), [W1.cosign(text, 1_700_000_001)]))
    journal.append([record(n) for n in range(SIZE - 10, SIZE)])
    journal.close()
    yield folder


def prove(home: Path, out: Path, *arguments: str | Path) -> Result:
    return invoke("journal", "prove", *arguments, "--home", home, "--out", out, "--json")


@pytest.mark.parametrize(
    ("index", "size"), [(0, SIZE - 10), (5, SIZE - 10), (SIZE - 11, SIZE - 10), (SIZE - 1, SIZE)]
)
def test_a_record_is_proven_under_the_newest_cosigned_checkpoint_that_covers_it(
    home: Path, tmp_path: Path, index: int, size: int
) -> None:
    made = prove(home, tmp_path / "p", str(index))
    assert made.exit_code == 0, made.output
    facts = json.loads(made.output)
    assert (facts["log"], facts["index"], facts["size"]) == ("demo", index, size)
    proof, leaf = open_proof_file((tmp_path / "p").read_text(), LOG.verifier)
    assert (proof.index, leaf) == (index, record(index).leaf)


def test_a_transfer_is_found_by_its_id(home: Path, tmp_path: Path) -> None:
    assert json.loads(prove(home, tmp_path / "p", "--transfer", "settle/42").output)["index"] == 42
    missing = prove(home, tmp_path / "q", "--transfer", "settle/4")
    assert json.loads(missing.output)["index"] == 4, "not the first id that begins so"
    for wrong in ("settle/9999", "amount_micro", ""):
        refused = prove(home, tmp_path / "q", "--transfer", wrong)
        assert refused.exit_code == HansaError.exit_code


def test_a_file_is_checked_with_nothing_but_a_key(home: Path, tmp_path: Path) -> None:
    prove(home, tmp_path / "p", "5")
    (tmp_path / "log.pub").write_text(LOG.vkey + "\n")
    for key in (LOG.vkey, tmp_path / "log.pub"):
        checked = invoke("journal", "verify", tmp_path / "p", "--key", key)
        assert checked.exit_code == 0, checked.output
        assert "Proven: record 5 of the 590 of demo; cosigned by no witness asked for." in checked.output
        assert "ballot, 2023-11-14 22:13:20 UTC" in checked.output
        assert "choice yes" in checked.output


def test_what_a_record_holds_is_shown_without_what_reorders_a_screen(home: Path, tmp_path: Path) -> None:
    prove(home, tmp_path / "p", "7")
    checked = invoke("journal", "verify", tmp_path / "p", "--key", LOG.vkey)
    assert '"name": "Bücher\\u202e"' in checked.output
    facts = json.loads(invoke("journal", "verify", tmp_path / "p", "--key", LOG.vkey, "--json").output)
    assert facts["verified"] and facts["kind"] == "transfer"
    assert json.loads(facts["body"])["amount_micro"] == 7


def test_a_policy_says_whose_cosignatures_are_needed(home: Path, tmp_path: Path) -> None:
    policy, other = tmp_path / "policy", tmp_path / "other"
    policy.write_bytes(Policy.of(LOG.verifier, [W1.cosignatory], 1).compose())
    stranger = Cosigner(Signer("w2", b"\x03" * 32))
    other.write_bytes(Policy.of(LOG.verifier, [W1.cosignatory, stranger.cosignatory], 2).compose())
    prove(home, tmp_path / "p", "5")
    prove(home, tmp_path / "late", SIZE - 1)
    checked = invoke("journal", "verify", tmp_path / "p", "--policy", policy)
    assert checked.exit_code == 0, checked.output
    assert "cosigned by w1." in checked.output
    for file, rules, said in (
        (tmp_path / "p", other, "'w2'"),
        (tmp_path / "late", policy, "cosigned by nobody"),
    ):
        refused = invoke("journal", "verify", file, "--policy", rules)
        assert refused.exit_code == Refused.exit_code
        assert said in refused.output and "[proof_invalid]" in refused.output


def test_a_seat_knows_its_log_even_when_its_certificate_has_expired(home: Path, tmp_path: Path) -> None:
    prove(home, tmp_path / "p", "5")
    (tmp_path / "seat.toml").write_text(f'consortium = "demo"\nlog_key = "{LOG.vkey}"\n')
    assert invoke("journal", "verify", tmp_path / "p", "--seat", tmp_path).exit_code == 0


@pytest.mark.parametrize("text", ["", "rubbish", "log_key = 5", "log_key = [", 'log_key = "demo+1+2"'])
def test_a_seat_without_a_log_key_is_named(home: Path, tmp_path: Path, text: str) -> None:
    prove(home, tmp_path / "p", "5")
    (tmp_path / "seat.toml").write_text(text)
    refused = invoke("journal", "verify", tmp_path / "p", "--seat", tmp_path)
    assert refused.exit_code == HansaError.exit_code
    assert "names no log key" in refused.output


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"index 5", b"index 6"),
        (b"\n", b"\r\n"),
        (b"demo\n590", b"demo\n591"),
        (b"@v1", b"@v\xff"),
        (b"extra ", b"xtra "),
    ],
)
def test_a_file_that_was_touched_is_refused(home: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
    prove(home, tmp_path / "p", "5")
    write_file(tmp_path / "q", (tmp_path / "p").read_bytes().replace(old, new))
    refused = invoke("journal", "verify", tmp_path / "q", "--key", LOG.vkey)
    assert refused.exit_code == Refused.exit_code
    assert "proves nothing" in refused.output


def test_a_proof_of_another_log_is_refused(home: Path, tmp_path: Path) -> None:
    prove(home, tmp_path / "p", "5")
    refused = invoke("journal", "verify", tmp_path / "p", "--key", Signer("demo", b"\x09" * 32).vkey)
    assert refused.exit_code == Refused.exit_code


def test_what_a_person_forgets_is_said(home: Path, tmp_path: Path) -> None:
    prove(home, tmp_path / "p", "5")
    for arguments, said in (
        ((tmp_path / "p",), "Whose journal?"),
        ((tmp_path / "p", "--key", "nowhere.pub"), "nowhere.pub does not exist"),
        ((tmp_path / "p", "--key", W1.vkey), "no log key"),
        ((tmp_path / "p", "--policy", tmp_path / "p"), "is no trust policy"),
        ((tmp_path / "missing", "--key", LOG.vkey), "does not exist"),
    ):
        refused = invoke("journal", "verify", *arguments)
        assert refused.exit_code == HansaError.exit_code
        assert said.lower() in refused.output.lower()
    for arguments in ((), ("5", "--transfer", "settle/5")):
        assert "name one record" in prove(home, tmp_path / "q", *arguments).output
    for index in ("600", "99999"):
        assert "has 600 records" in prove(home, tmp_path / "q", index).output


def test_tiles_are_published_with_their_cosignatures_and_prove_the_same(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    done = json.loads(invoke("journal", "tiles", folder, "--entries", "--home", home, "--json").output)
    assert (done["size"], done["entries"]) == (SIZE - 10, True)
    assert len(published(folder).split(b"\n")) == 7, "the log's signature and the witness's"  # type: ignore[union-attr]
    prove(home, tmp_path / "p", "5")
    made = prove(Path("nowhere"), tmp_path / "q", "5", "--tiles", folder)
    assert made.exit_code == 0, made.output
    assert (tmp_path / "p").read_bytes() == (tmp_path / "q").read_bytes()
    assert (
        json.loads(prove(home, tmp_path / "q", "--transfer", "settle/42", "--tiles", folder).output)["index"]
        == 42
    )
    again = json.loads(invoke("journal", "tiles", folder, "--home", home, "--json").output)
    assert (again["written"], again["pruned"]) == (0, 0)


def test_broken_tiles_prove_nothing(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    assert prove(home, tmp_path / "q", "5", "--tiles", folder).exit_code == StoreError.exit_code
    invoke("journal", "tiles", folder, "--home", home)
    assert "only hashes" in prove(home, tmp_path / "q", "5", "--tiles", folder).output
    invoke("journal", "tiles", folder, "--home", home, "--entries")
    path = folder / "tile" / "0" / "000"
    path.write_bytes(b"\x00" + path.read_bytes()[1:])
    refused = prove(home, tmp_path / "q", "5", "--tiles", folder)
    assert refused.exit_code == StoreError.exit_code
    assert "does not prove its own record 5" in refused.output
    assert not (tmp_path / "q").exists()


def test_without_a_name_the_file_is_named_after_what_it_proves(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = invoke("journal", "prove", "12", "--home", home)
    assert "Wrote demo-12.tlog-proof: record 12 of the 590 of demo." in made.output
    assert (tmp_path / "demo-12.tlog-proof").is_file()


def test_verify_without_a_file_reads_the_whole_journal(home: Path) -> None:
    assert "The journal is intact: 600 records" in invoke("journal", "verify", "--home", home).output
