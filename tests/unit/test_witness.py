"""A witness signs one history of a log, whatever it is sent, by however many at once, whenever it dies."""

from __future__ import annotations

import base64
import multiprocessing
import threading
from pathlib import Path

import pytest

from commons import merkle, witness
from commons.cosignature import Cosigner, cosignature
from commons.errors import StoreError
from commons.log import Checkpoint
from commons.merkle import Frontier
from commons.notes import Signer
from commons.witness import (
    REQUEST_BYTES_MAX,
    FileMemory,
    Witness,
    WitnessRefusal,
    parse_request,
    request_text,
)

LOG = Signer("demo", b"\x05" * 32)
W1 = Cosigner(Signer("w1", b"\x01" * 32))


class Grown:
    """A log of which every size can be asked for."""

    def __init__(self, prefix: str, size: int = 40, *, shared: int = 0) -> None:
        self.nodes: dict[tuple[int, int], bytes] = {}
        self.checkpoints: list[bytes] = []
        frontier = Frontier()
        for n in range(size + 1):
            self.checkpoints.append(Checkpoint("demo", n, frontier.root()).sign(LOG))
            leaf = f"{'' if n < shared else prefix}{n}".encode()
            self.nodes.update({(level, i): h for level, i, h in frontier.append(merkle.leaf_hash(leaf))})

    def proof(self, old: int, new: int) -> list[bytes]:
        return merkle.consistency_proof(old, new, lambda level, index: self.nodes[level, index])


HONEST = Grown("a")
FORKED = Grown("b", shared=0)
FORKED_LATER = Grown("b", shared=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "witness"


def made(folder: Path) -> Witness:
    return Witness(W1, [LOG.verifier], FileMemory(folder))


def add(w: Witness, old: int, new: int, log: Grown = HONEST, time_s: int = 1000) -> str | WitnessRefusal:
    return w.add(old, log.proof(old, new), log.checkpoints[new], time_s)


def text_of(checkpoint: bytes) -> str:
    return checkpoint.decode().partition("\n\n")[0] + "\n"


def test_a_witness_cosigns_a_log_as_it_grows(folder: Path) -> None:
    w = made(folder)
    for old, new in [(0, 0), (0, 1), (1, 7), (7, 7), (7, 40)]:
        line = add(w, old, new, time_s=1000 + new)
        assert isinstance(line, str)
        assert cosignature(line, text_of(HONEST.checkpoints[new]), W1.cosignatory) == 1000 + new
    assert w.size("demo") == 40
    assert w.size("another") == 0


def test_the_same_checkpoint_again_gets_a_new_cosignature(folder: Path) -> None:
    w = made(folder)
    first, again = add(w, 0, 5, time_s=1), w.add(5, [], HONEST.checkpoints[5], 2)
    assert first != again
    assert isinstance(again, str)


def test_a_witness_remembers_over_a_restart(folder: Path) -> None:
    add(made(folder), 0, 9)
    assert made(folder).size("demo") == 9
    refused = add(made(folder), 0, 9)
    assert isinstance(refused, WitnessRefusal) and (refused.status, refused.size) == (409, 9)


STRANGER = Signer("demo", b"\x06" * 32)


@pytest.mark.parametrize(
    ("old", "proof", "checkpoint", "status", "said"),
    [
        (7, HONEST.proof(7, 9), b"rubbish", 400, "not a checkpoint"),
        (7, HONEST.proof(7, 9), HONEST.checkpoints[9][:-5], 400, "not a checkpoint"),
        (7, HONEST.proof(7, 9), HONEST.checkpoints[9].replace(b"\n", b"\r\n"), 400, "not a checkpoint"),
        (7, HONEST.proof(7, 9), LOG.sign("demo\n9\n"), 400, "three lines"),
        (7, HONEST.proof(7, 9), HONEST.checkpoints[9].replace(b"demo\n9", b"memo\n9"), 404, "does not know the log 'memo'"),
        (7, HONEST.proof(7, 9), Checkpoint("demo", 9, b"x" * 32).sign(STRANGER), 403, "not signed by the log"),
        (7, HONEST.proof(7, 9), HONEST.checkpoints[9].replace(b"\n9\n", b"\n8\n"), 403, "not signed by the log"),
        (10, [], HONEST.checkpoints[9], 400, "cannot extend one of size 10"),
        (0, [], HONEST.checkpoints[9], 409, "cosigned size 7"),
        (5, HONEST.proof(5, 9), HONEST.checkpoints[9], 409, "cosigned size 7"),
        (8, HONEST.proof(8, 9), HONEST.checkpoints[9], 409, "cosigned size 7"),
        (5, [], HONEST.checkpoints[5], 409, "cosigned size 7"),
        (7, [], HONEST.checkpoints[9], 422, "does not extend"),
        (7, HONEST.proof(7, 9)[::-1], HONEST.checkpoints[9], 422, "does not extend"),
        (7, HONEST.proof(7, 9)[:-1], HONEST.checkpoints[9], 422, "does not extend"),
        (7, [*HONEST.proof(7, 9), b"x" * 32], HONEST.checkpoints[9], 422, "does not extend"),
        (7, [b"x" * 32] * 63, HONEST.checkpoints[9], 422, "does not extend"),
        (7, FORKED.proof(7, 9), FORKED.checkpoints[9], 422, "does not extend"),
        (7, [], FORKED.checkpoints[7], 422, "two roots for size 7"),
        (7, [b"x" * 32], HONEST.checkpoints[7], 422, "must be empty"),
    ],
)  # fmt: skip
def test_what_does_not_extend_the_log_is_not_cosigned(
    folder: Path, old: int, proof: list[bytes], checkpoint: bytes, status: int, said: str
) -> None:
    w = made(folder)
    add(w, 0, 7)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = w.add(old, proof, checkpoint, 2000)
    assert isinstance(refused, WitnessRefusal), refused
    assert refused.status == status
    assert said in refused.message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert refused.size == (7 if status in (409, 422) else 0)
    assert refused.cosigned == (HONEST.checkpoints[7] if status == 422 else b""), (
        "both notes are the evidence"
    )


@pytest.mark.parametrize(
    ("checkpoint", "proof"),
    [
        (Checkpoint("demo", 0, b"x" * 32).sign(LOG), []),
        (HONEST.checkpoints[5], [b"x" * 32]),
    ],
)
def test_a_first_checkpoint_has_no_proof_and_an_empty_log_has_one_root(
    folder: Path, checkpoint: bytes, proof: list[bytes]
) -> None:
    refused = made(folder).add(0, proof, checkpoint, 1)
    assert isinstance(refused, WitnessRefusal) and refused.status == 422


def test_signatures_of_unknown_keys_are_ignored_and_known_ones_must_hold(folder: Path) -> None:
    stranger = STRANGER.sign(text_of(HONEST.checkpoints[5])).splitlines(keepends=True)[-1]
    assert isinstance(made(folder).add(0, [], HONEST.checkpoints[5] + stranger, 1), str)
    wrong = LOG.sign(text_of(HONEST.checkpoints[6])).splitlines(keepends=True)[-1]
    refused = made(folder).add(5, HONEST.proof(5, 7), HONEST.checkpoints[7] + wrong, 1)
    assert isinstance(refused, WitnessRefusal) and refused.status == 403


def test_a_log_may_have_two_keys(folder: Path) -> None:
    w = Witness(W1, [LOG.verifier, STRANGER.verifier], FileMemory(folder))
    assert isinstance(add(w, 0, 5), str)
    checkpoint = STRANGER.sign(text_of(HONEST.checkpoints[7]))
    assert isinstance(w.add(5, HONEST.proof(5, 7), checkpoint, 1), str)


def test_nothing_is_cosigned_that_could_not_be_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = made(folder)
    add(w, 0, 5)

    def full(path: Path, data: bytes) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(witness, "write_file", full)
    with pytest.raises(StoreError):
        add(w, 5, 9)
    monkeypatch.undo()
    assert w.size("demo") == 5
    assert isinstance(add(w, 5, 9), str)


@pytest.mark.parametrize("data", [b"", b"rubbish", HONEST.checkpoints[5][:-20], Checkpoint("memo", 1, b"x" * 32).sign(Signer("memo", b"\x05" * 32))])  # fmt: skip
def test_a_witness_whose_memory_is_damaged_signs_nothing_more(folder: Path, data: bytes) -> None:
    w = made(folder)
    add(w, 0, 5)
    next(folder.glob("*.checkpoint")).write_bytes(data)
    with pytest.raises(StoreError, match="restore it from a copy"):
        add(w, 5, 9)
    with pytest.raises(StoreError, match="second history"):
        add(w, 0, 9)


def race(folder: Path, log: Grown, start: threading.Barrier | None = None) -> list[int]:
    """The sizes at which one who shows `log` got a cosignature, beginning wherever the witness is."""
    w, got = made(folder), []
    if start:
        start.wait()
    for new in range(11, 41):
        old = w.size("demo")
        if old <= new and isinstance(add(w, old, new, log), str):
            got.append(new)
    return got


def test_two_threads_with_two_histories_get_one_of_them_cosigned(folder: Path) -> None:
    add(made(folder), 0, 10, FORKED_LATER)
    start = threading.Barrier(4)
    got: dict[int, list[int]] = {}
    logs = [Grown("a", shared=10), FORKED_LATER] * 2
    threads = [
        threading.Thread(target=lambda n=n: got.__setitem__(n, race(folder, logs[n], start)))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = set(got[0]) | set(got[2]), set(got[1]) | set(got[3])
    assert bool(first) != bool(second), "at most one history, and one is cosigned"


def _in_process(folder: Path, prefix: str, results: multiprocessing.Queue[tuple[str, list[int]]]) -> None:
    results.put((prefix, race(folder, Grown(prefix, shared=10))))


def test_two_processes_with_two_histories_get_one_of_them_cosigned(folder: Path) -> None:
    add(made(folder), 0, 10, FORKED_LATER)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_in_process, args=(folder, prefix, results)) for prefix in "abab"]
    for process in processes:
        process.start()
    got: dict[str, set[int]] = {"a": set(), "b": set()}
    for _ in processes:
        prefix, sizes = results.get(timeout=60)
        got[prefix] |= set(sizes)
    for process in processes:
        process.join()
    assert bool(got["a"]) != bool(got["b"])


def test_the_race_of_the_specification_cannot_roll_the_witness_back(folder: Path) -> None:
    """A (size 20) is checked, then B (size 30) is asked for: B must wait for A and then fail, or come first."""

    class Slow(FileMemory):
        def store(self, checkpoint: Checkpoint, note: bytes) -> None:
            if checkpoint.size == 20:
                storing.set()
                asked.wait()
            super().store(checkpoint, note)

    storing, asked = threading.Event(), threading.Event()
    slow = Witness(W1, [LOG.verifier], Slow(folder))
    other = made(folder)
    add(slow, 0, 10)
    answers: dict[str, str | WitnessRefusal] = {}
    a = threading.Thread(target=lambda: answers.__setitem__("a", add(slow, 10, 20)))
    a.start()
    storing.wait()
    b = threading.Thread(target=lambda: answers.__setitem__("b", add(other, 10, 30)))
    b.start()
    asked.set()
    a.join()
    b.join()
    assert isinstance(answers["a"], str)
    refused = answers["b"]
    assert isinstance(refused, WitnessRefusal) and (refused.status, refused.size) == (409, 20)
    assert other.size("demo") == 20


def test_a_request_is_written_and_read_back() -> None:
    body = request_text(7, HONEST.proof(7, 40), HONEST.checkpoints[40])
    assert body.startswith(b"old 7\n")
    assert parse_request(body) == (7, HONEST.proof(7, 40), HONEST.checkpoints[40])
    assert parse_request(request_text(0, [], HONEST.checkpoints[1])) == (0, [], HONEST.checkpoints[1])


GOOD = request_text(7, HONEST.proof(7, 9), HONEST.checkpoints[9])
HASH = base64.b64encode(b"x" * 32).decode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n",
        b"old 7",
        GOOD.replace(b"old 7", b"old 07"),
        GOOD.replace(b"old 7", b"old -7"),
        GOOD.replace(b"old 7", b"old  7"),
        GOOD.replace(b"old 7", b"old 99999999999999999999"),
        GOOD.replace(b"old 7", b"new 7"),
        GOOD.replace(b"old 7", "old ७".encode()),
        GOOD.replace(b"old 7\n", b"old 7\r\n"),
        GOOD.replace(b"old 7\n", b""),
        GOOD.replace(b"old 7\n", b"old 7\nAAAA\n"),
        GOOD.replace(b"old 7\n", b"old 7\nrubbish\n"),
        GOOD.replace(b"old 7\n", f"old 7\n{HASH[:-2]}9=\n".encode()),
        b"old 7\n" + f"{HASH}\n".encode() * 64 + b"\n" + HONEST.checkpoints[9],
        GOOD + b"x" * REQUEST_BYTES_MAX,
    ],
)
def test_a_body_that_is_no_request_is_refused_before_it_is_believed(folder: Path, body: bytes) -> None:
    w = made(folder)
    add(w, 0, 7)
    status, kind, said = w.add_request(body, 1)
    assert (status, kind) == (400, "text/plain; charset=utf-8")
    assert said.endswith(b"\n") and len(said) < 400
    assert w.size("demo") == 7


def test_a_request_is_answered_as_http_has_it(folder: Path) -> None:
    w = made(folder)
    status, kind, line = w.add_request(request_text(0, [], HONEST.checkpoints[7]), 55)
    assert (status, kind) == (200, "text/plain; charset=utf-8")
    assert cosignature(line.decode(), text_of(HONEST.checkpoints[7]), W1.cosignatory) == 55
    assert w.add_request(request_text(0, [], HONEST.checkpoints[9]), 56) == (409, "text/x.tlog.size", b"7\n")
    assert w.add_request(GOOD, 57)[0] == 200
    assert w.add_request(request_text(9, [], FORKED.checkpoints[9]), 58)[0] == 422


def test_sixty_three_proof_lines_are_read() -> None:
    assert len(parse_request(request_text(7, [b"x" * 32] * 63, HONEST.checkpoints[9]))[1]) == 63
