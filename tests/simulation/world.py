"""A whole consortium in one thread: the real coordinator code over a simulated clock, network and failing disk.

`run_round` waits on a bell; here the bell is the world. While it waits, simulated time passes and the next events
happen: a site asks for its order, an upload arrives, late, twice or never, a reply is lost, a site dies and comes
back, a ballot is cast, a charge disputed, the clock jumps. Any durable step may be the coordinator's last, or find
the disk full; it is then started again on what is on disk. Everything follows from one seed.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from typing_extensions import Self

from commons import charter_file
from commons.charter import Charter
from commons.errors import HansaError, Refusal
from commons.experts.map import ExpertMap
from commons.founding import Founding
from commons.identity import Authority, create_authority
from commons.names import RunId
from commons.records import Record
from commons.statement import StatementNote
from commons.states import StateStore
from governance.bell import Bell
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import decide_expire, decide_grants
from governance.moments import Moments
from governance.service import Chamber
from governance.statements.closing import decide_close
from governance.statements.issuing import Statements
from orchestrator.desk import Desk
from orchestrator.enrolment import Enrolments
from orchestrator.evaluation import finish_run
from orchestrator.facts import run_fact
from orchestrator.live import Live
from orchestrator.progress import Runs
from orchestrator.round import carry_out_votes, run_round
from orchestrator.service import Operator
from orchestrator.spool import Spool
from orchestrator.witnesses import Witnesses
from tests.simulation.cast import begins_ms, random_charter, signer
from tests.simulation.closings import Closings
from tests.simulation.members import Members
from tests.simulation.sites import Sites
from tests.simulation.storage import Crash, Storage

RUN = RunId("r1")
LIMIT_MS = 60 * 60 * 1000
"""Simulated time after which a run that still goes on is stuck."""
RETRY_MS = 5_000
"""Pause of the coordinator after its disk failed."""


class Stuck(AssertionError):
    """Nothing will ever happen again and the run is not over."""


@dataclass(frozen=True)
class Faults:
    """Probabilities, each per message, storage step or turn of a site."""

    drop: float = 0.1
    repeat: float = 0.1
    reply_lost: float = 0.1
    site_crash: float = 0.05
    coordinator_crash: float = 0.015
    disk_full: float = 0.001
    store_closed: float = 0.003
    """The coordinator is told to stop while work is under way."""
    overlap: float = 0.2
    """Something else happens between two frames of an upload, or while updates are combined."""
    clock_jump: float = 0.02
    refusal: float = 0.01
    wrong: float = 0.1
    """A site seals a round that cannot be taken."""
    slow: float = 0.3
    """A site needs long for its order, and says all the while that it is at it."""
    topup: float = 0.3
    """A site at work asks for more to be held."""

    @classmethod
    def none(cls) -> Self:
        return cls(**dict.fromkeys(cls.__dataclass_fields__, 0.0))


class World:
    """`charter` decides the cast; `acknowledged` holds what sites were told is admitted."""

    def __init__(self, folder: Path, charter: Charter, seed: int, faults: Faults) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.random = random.Random(seed)
        self.faults, self.founding_charter, self.folder = faults, charter, folder
        self.time_ms = self.begins_ms = begins_ms(seed)
        self.acknowledged: dict[tuple[str, int, str], int] = {}
        self.receipts: dict[bytes, int | None] = {}
        """What somebody handed in and was told is in the journal -> its index, where one was told."""
        self.topped: set[str] = set()
        """Top-ups that sites were told are held."""
        self.budgets: dict[str, dict[str, Any]] = {}
        """After `run`: partner -> its totals as the coordinator has them."""
        self.notes: list[StatementNote] = []
        """After `run`: every statement that can be asked for."""
        self.crashes, self.troubles = 0, 0
        self.log_key = signer(charter.consortium.name)
        self.expert_map = ExpertMap.from_charter(charter)
        self.storage = Storage(
            folder,
            self.random,
            crash=faults.coordinator_crash,
            full=faults.disk_full,
            overlap=faults.overlap / 2,
        )
        self.storage.meanwhile = lambda: self.happen(self.time_ms + 1000)
        self.desk: Desk | None = None
        self.enrolments: Enrolments | None = None
        self.chamber: Chamber | None = None
        self.statements: Statements | None = None
        self.operator: Operator | None = None
        self.sites, self.members = Sites(self, charter), Members(self)
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._clock_off_ms = 0
        values = np.random.default_rng(seed)
        with patch("commons.states.writing.ThreadPoolExecutor", OneByOne):
            self.seed_state = StateStore(folder / "states").save(
                {s.name: values.standard_normal(s.shape).astype(np.float32) for s in self.expert_map.slices}
            )

    @classmethod
    def of_seed(cls, folder: Path, seed: int) -> Self:
        """With everything drawn from the seed, and every fault."""
        return cls(folder, random_charter(seed), seed, Faults())

    def now_ms(self) -> int:
        """By the coordinator's clock."""
        return self.time_ms + self._clock_off_ms

    @property
    def charter(self) -> Charter:
        assert self.desk is not None
        return self.desk.consortium.charter

    def run(self) -> list[Record]:
        """Everything until the run is over and quarrelled about; the journal's records then."""
        with patch("commons.states.writing.ThreadPoolExecutor", OneByOne), self.storage.watched():
            self.found()
            for name in self.sites.all:
                self.after(self.random.randrange(2000), partial(self.sites.visit, name))
            self.after(self.random.randrange(20_000), self.members.act)
            self.after(self.random.randrange(5_000), self.clerk)
            while True:
                try:
                    self.storage.armed = True
                    self._live()
                    break
                except Crash:
                    self.crashes += 1
                    self.close()
                    self.storage.revive()
                    self.time_ms += self.random.randrange(5000)
            self.storage.armed = False
            desk = self.desk or self.boot()
            assert desk.consortium.journal.verify() == []
            records = list(desk.consortium.journal.records())
            self._compare(desk)
            self.budgets = {budget.partner: vars(budget) for budget in desk.consortium.ledger.budgets()}
            self.notes = self._notes()
            self.close()
            return records

    def _notes(self) -> list[StatementNote]:
        """Every partner's statement of every period, closed or not."""
        assert self.desk is not None and self.statements is not None
        periods = self.desk.consortium.book.periods.values()
        return [self.statements.note(partner, period) for period in periods for partner in self.budgets]

    def _live(self) -> None:
        """One life of the coordinator, or several that end in good order."""
        over_ms, first = 0, True
        while True:
            if self.desk is not None and self.desk.stopping.is_set():
                self.close()
                first = True
            try:
                desk = self.desk or self.boot()
                run = desk.runs.by_id[RUN]
                if run.finished:
                    over_ms = over_ms or self.time_ms + self.random.randrange(40_000)
                    if self.time_ms >= over_ms or not self.happen(over_ms):
                        return
                elif run.phase == "training":
                    first = not run_round(desk, RUN, first=first) and first
                else:
                    finish_run(desk, RUN)
            except HansaError:
                self.trouble()
                if self.desk is not None:
                    self.desk.bell.wait_beyond(1 << 60, RETRY_MS / 1000)

    def trouble(self) -> None:
        """A disk failed. Where the journal wants to be opened again, the operator does as it says."""
        self.troubles += 1
        if self.desk is not None and self.desk.consortium.journal._in_doubt:
            self.desk.stopping.set()
            self.desk.bell.ring()

    def found(self) -> None:
        desk = self.boot()
        charter, consortium = self.founding_charter, desk.consortium
        digest = charter_file.digest(charter)
        founders = [
            signer(m.name).sign(Founding(charter.consortium.name, digest, m.name).compose())
            for m in charter.members
        ]
        opened = partial(
            run_fact, run=RUN, rounds=charter.learning.rounds, state=self.seed_state, charter_version=1,
            expert_map=self.expert_map.digest,
        )  # fmt: skip
        for decide in (
            lambda now: consortium.members.decide_found(charter, founders, self.log_key.vkey, now),
            lambda now: decide_grants(consortium.ledger, charter, now),
            lambda now: [opened(now)],
        ):
            done = consortium.commit(decide)
            assert not isinstance(done, Refusal), done
        self.open_door(desk)
        for name, site in self.sites.all.items():
            site.invite = (self.folder / "invites" / f"site-{name}.invite").read_bytes()

    def boot(self) -> Desk:
        """The coordinator starts on what is on disk."""
        bell, pulse = SimBell(self), Bell()
        journal = Journal.open(self.folder / "journal.db", signer=self.log_key, clock=self)
        try:
            consortium, runs = Consortium(journal, self), Runs()
            consortium.follow(runs, bell, Closings(self))
            store, spool = StateStore(self.folder / "states"), Spool(self.folder / "spool")
            desk = Desk(consortium, runs, Live(self, bell, pulse), store, spool, self.log_key, bell)
            witnesses = Witnesses(consortium, bell, desk.stopping)
            self.statements = Statements(consortium, self.log_key)
            self.chamber = Chamber(
                consortium, Moments(pulse, bell), desk.stopping, {}, witnesses, self.statements
            )
            self.operator = Operator(desk)
            if consortium.members.founded:
                self.open_door(desk)
        except BaseException:
            journal.close()
            raise
        append = journal.append

        def durable(batch: Sequence[Record]) -> list[int]:
            if self.storage.armed and self.chance(self.faults.store_closed):
                desk.stopping.set()
                bell.ring()
                journal.close()
            indices = append(batch)
            if indices:
                self.storage.after_commit()
            return indices

        journal.append = durable  # type: ignore[method-assign]
        self.desk = desk
        return desk

    def open_door(self, desk: Desk) -> None:
        authority, founders = _authority(self.log_key.name), ()
        self.enrolments = Enrolments(self.folder, desk.consortium, authority, self.log_key, founders)
        self.enrolments.write_invites(address="quay:7443", enrolment="quay:7444")

    def close(self) -> None:
        """What the end of the process does: streams end, locks go, memory is lost."""
        desk, self.desk = self.desk, None
        self.enrolments = self.chamber = self.operator = self.statements = None
        self.sites.disconnect()
        if desk is not None:
            desk.consortium.journal.close()

    def _compare(self, desk: Desk) -> None:
        """Every view rebuilt from the records alone is what it was."""
        again, runs = Consortium(desk.consortium.journal, self), Runs()
        again.follow(runs)
        assert again.ledger == desk.consortium.ledger
        assert again.proposals.views() == desk.consortium.proposals.views()
        assert runs.by_id == desk.runs.by_id

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def after(self, delay_ms: int, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.time_ms + delay_ms, next(self._order), event))

    def message(self, arrive: Callable[[], object]) -> None:
        """Something is sent: it arrives late, in any order, twice, or never."""
        if self.chance(self.faults.drop):
            return
        for _ in range(2 if self.chance(self.faults.repeat) else 1):
            self.after(self.random.randrange(10, 3000), arrive)

    def told(self, what: bytes, index: int) -> None:
        """The coordinator answered that it has `what` at `index`; the answer may get lost."""
        if not self.chance(self.faults.reply_lost):
            known = self.receipts.setdefault(what, index)
            assert known == index, f"said to be record {known} first, then {index}: {what!r:.200}"

    def happen(self, until_ms: int | None) -> bool:
        """The next event, or the passing of time up to `until_ms`; False when that is reached."""
        if self.time_ms > self.begins_ms + LIMIT_MS:
            raise Stuck(f"the run still goes on after {LIMIT_MS // 60_000} simulated minutes")
        at_ms = self._events[0][0] if self._events else None
        if at_ms is None and until_ms is None:
            raise Stuck("nobody will ever ring again")
        if at_ms is None or (until_ms is not None and until_ms < at_ms):
            assert until_ms is not None
            self.time_ms = max(self.time_ms, until_ms)
            return False
        _, _, event = heapq.heappop(self._events)
        self.time_ms = max(self.time_ms, at_ms)
        if self.chance(self.faults.clock_jump):
            self.time_ms += self.random.randrange(30_000)
        if self.chance(self.faults.clock_jump):
            self._clock_off_ms = self.random.randrange(-60_000, 10_000)
        try:
            event()
        except HansaError:  # the caller is told that the coordinator is in trouble, and tries again
            self.trouble()
        return True

    def clerk(self) -> None:
        """What the coordinator sees to by itself while no round begins."""
        self.after(self.random.randrange(1_000, 12_000), self.clerk)
        if self.desk is not None:
            consortium = self.desk.consortium
            consortium.commit(lambda now_ms: decide_close(consortium.ledger, now_ms))
            consortium.commit(consortium.proposals.decide_close)
            consortium.commit(lambda now_ms: decide_expire(consortium.ledger, now_ms))
            if self.desk.runs.active is None:
                carry_out_votes(self.desk, None)


class SimBell(Bell):
    """Waiting is what lets the world go on."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def wait_beyond(self, strokes: int, timeout_s: float | None = None) -> int:
        until = None if timeout_s is None else self._world.time_ms + max(1, int(timeout_s * 1000))
        while self.strokes <= strokes and self._world.happen(until):
            pass
        return self.strokes


class OneByOne(ExitStack):
    """In place of a thread pool: a seed's history must not depend on how threads are scheduled."""

    def __init__(self, workers: int) -> None:
        super().__init__()

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done

    def shutdown(self, **how: bool) -> None:
        self.close()

    def map(self, work: Callable[..., Any], *inputs: Any) -> list[Any]:
        return [work(*each) for each in zip(*inputs, strict=False)]


@lru_cache(maxsize=8)
def _authority(consortium: str) -> Authority:
    return create_authority(consortium)


def facts(records: Sequence[Record], kind: str) -> Iterator[dict[str, Any]]:
    return (json.loads(r.body) for r in records if r.kind == kind)
