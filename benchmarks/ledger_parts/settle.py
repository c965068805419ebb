"""How many charges a second are held and settled durably, and whether a long journal makes it slower.

A settled transfer is one hold that was made and settled: two decisions, the records of both (hold, contribution,
settle), their place in the tree, a signed checkpoint and an fsync for each commit, and the fold of the records,
all through `Consortium.commit`, as the coordinator does it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from commons import charter_file
from commons.charter import Charter
from commons.errors import Refusal
from commons.founding import Founding
from commons.names import Digest
from commons.notes import Signer, digest
from commons.records import Record
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import Charge, HoldRequest, decide_grants, decide_hold, decide_settle
from governance.ratecard import rate_card_digest

PER_COMMIT = 100
"""Transfers of one commit; a settled transfer is in two commits."""
_START_MS = 1_700_000_000_000
_HELD_MICRO, _CHARGED_MICRO = 1_000, 900
_PARTNERS = ("alder", "birch")
Decide = Callable[[int], Sequence[Record] | Refusal]


@dataclass(frozen=True)
class Slowdown:
    """The same work on a short and on a long journal, in turns, the best of several."""

    small_records: int
    large_records: int
    small_per_s: float
    large_per_s: float

    @property
    def percent(self) -> float:
        """How much slower the long one is; negative when it is faster."""
        return 100 * (self.small_per_s / self.large_per_s - 1)


class Ticking:
    """A clock that moves on by a millisecond whenever it is read."""

    def __init__(self, now_ms: int = _START_MS) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        self._now_ms += 1
        return self._now_ms


class Till:
    """A small consortium over the journal at `url`, founded if it is new. The one place that knows the ledger's calls.

    Another `charter`, whose log `signer` signs for, is founded by the caller; it has alder and birch with a site each.
    """

    def __init__(self, url: str | Path, charter: Charter | None = None, signer: Signer | None = None) -> None:
        self.journal = Journal.open(url, signer=signer or _signer("bench"), clock=Ticking())
        self.consortium = Consortium(self.journal, Ticking())
        own, charter = charter is None, charter or _charter()
        self._card = rate_card_digest(charter.rate_card)
        self._run = f"bench-{self.journal.epoch}"
        self._round = 0
        if self.journal.size == 0 and own:
            self._found(charter)

    def settle(self, count: int, per_commit: int = PER_COMMIT) -> None:
        """Make `count` holds and settle each, `per_commit` at a time."""
        for _ in range(count // per_commit):
            rounds = range(self._round, self._round + per_commit)
            self._round += per_commit
            self._commit(partial(self._hold, rounds))
            self._commit(partial(self._charge, rounds))

    def close(self) -> None:
        self.journal.close()

    def _hold(self, rounds: range, now_ms: int) -> list[Record] | Refusal:
        requests = [
            HoldRequest(
                id=self._id(number),
                payer=_PARTNERS[number % 2],
                site=_PARTNERS[number % 2],
                run=self._run,
                round=number,
                amount_micro=_HELD_MICRO,
                expires_ms=now_ms + 60_000,
                rate_card=self._card,
            )
            for number in rounds
        ]
        return decide_hold(self.consortium.ledger, requests, now_ms)

    def _charge(self, rounds: range, now_ms: int) -> list[Record]:
        records: list[Record] = []
        for number in rounds:
            name = self._id(number)
            charge = Charge(
                amount_micro=_CHARGED_MICRO,
                usage=digest(name.encode()),
                device="cpu",
                precision="fp32",
                gflop=300,
                device_ms=2_000,
                tokens=65_536,
            )
            decided = decide_settle(self.consortium.ledger, name, charge, now_ms)
            assert not isinstance(decided, Refusal), decided
            records += decided
        return records

    def _id(self, number: int) -> str:
        return f"hold/{self._run}/{number}/{_PARTNERS[number % 2]}"

    def _found(self, charter: Charter) -> None:
        named = charter_file.digest(charter)
        founding = [_founding(partner, named) for partner in _PARTNERS]
        members, key = self.consortium.members, charter.consortium.log_key
        self._commit(lambda now_ms: members.decide_found(charter, founding, key, now_ms))
        self._commit(lambda now_ms: decide_grants(self.consortium.ledger, charter, now_ms))

    def _commit(self, decide: Decide) -> None:
        done = self.consortium.commit(decide)
        assert not isinstance(done, Refusal), done
        assert done, "every commit of the benchmark adds records"


def settled_per_s(url: str | Path, *, settles: int = 20_000, per_commit: int = PER_COMMIT) -> float:
    """Settled transfers per second on the journal at `url`: what `settles` of them took, after a short warm-up."""
    till = Till(url)
    try:
        till.settle(5 * per_commit, per_commit)
        return _rate(till, settles, per_commit)
    finally:
        till.close()


def fill(url: str | Path, records: int) -> int:
    """Settle transfers until the journal has at least `records` records; how many it has. Resumes where it was."""
    till = Till(url)
    try:
        while till.journal.size < records:
            till.settle(PER_COMMIT)
        return till.journal.size
    finally:
        till.close()


def slowdown(folder: Path, small: int = 10_000, large: int = 1_000_000, *, turns: int = 60) -> Slowdown:
    """Settle on a copy of a journal of `small` records and of one of `large`, 500 transfers a turn, in turns.

    The two journals stay in `folder` and are made only once (the large one takes about two minutes). SQLite.
    """
    sizes = {records: fill(kept(folder, records), records) for records in (small, large)}
    workers = {records: _Worker(_copy(folder, records)) for records in (small, large)}
    try:
        best = dict.fromkeys(workers, 0.0)
        for _ in range(turns):
            for records, worker in workers.items():
                best[records] = max(best[records], worker.rate())
    finally:
        for worker in workers.values():
            worker.close()
    return Slowdown(sizes[small], sizes[large], best[small], best[large])


class _Worker:
    """A process of its own for each journal, so that one's memory does not slow the other."""

    _SETTLES = 500

    def __init__(self, url: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(url, theirs, self._SETTLES), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def rate(self) -> float:
        self._pipe.send(True)
        rate: float = self._pipe.recv()
        return rate

    def close(self) -> None:
        self._pipe.send(False)
        self._process.join()


def _serve(url: Path, pipe: Connection, settles: int) -> None:
    till = Till(url)
    till.settle(settles)
    pipe.send(0.0)
    while pipe.recv():
        pipe.send(_rate(till, settles, PER_COMMIT))
    till.close()


def _rate(till: Till, settles: int, per_commit: int) -> float:
    began = time.perf_counter()
    till.settle(settles, per_commit)
    return settles // per_commit * per_commit / (time.perf_counter() - began)


def kept(folder: Path, records: int) -> Path:
    """Where `slowdown` keeps its journal of so many records."""
    return folder / f"{records}-records" / "journal.db"


def _copy(folder: Path, records: int) -> Path:
    """The measured transfers go into a copy, so that the next measurement begins at the same size."""
    copy = folder / f"{records}-measured" / "journal.db"
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir(parents=True)
    shutil.copyfile(kept(folder, records), copy)
    return copy


def _signer(name: str) -> Signer:
    """The same key in every run, so that a journal can be taken up again."""
    return Signer(name, hashlib.sha256(name.encode()).digest())


def _founding(partner: str, charter: Digest) -> bytes:
    return _signer(partner).sign(Founding("bench", charter, partner).compose())


def _charter() -> Charter:
    return Charter.model_validate(
        {
            "version": 1,
            "consortium": {"name": "bench", "log_key": _signer("bench").vkey},
            "members": tuple({"name": p, "key": _signer(p).vkey, "budget_micro": 10**15} for p in _PARTNERS),
            "sites": tuple(
                {
                    "name": p,
                    "partner": p,
                    "payer": p,
                    "domain": p,
                    "experts": (f"{p}-0",),
                    "device": "cpu",
                    "data_statement": "None: nothing is trained here.",
                }
                for p in _PARTNERS
            ),
            "model": {"family": "glm4_moe", "config": {"hidden_size": 64}},
            "learning": {
                "rounds": 1,
                "inner_steps": 1,
                "batch_size": 1,
                "sequence_length": 64,
                "learning_rate": 0.01,
            },
            "rounds": {"quorum": 1, "grace_s": 5, "lease_s": 60},
            "rate_card": {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 3},)},
            "voting": {"window_s": 60},
            "release": {"licence": "Apache-2.0"},
        }
    )
