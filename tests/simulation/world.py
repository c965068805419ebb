"""A whole consortium in one thread: the real coordinator code over a simulated clock, network and crashing store.

`run_round` waits on a bell; here the bell is the world. While it waits, simulated time passes and the next events
happen: a site asks for its order, an upload arrives, late, twice or never, a reply is lost, a site dies and comes
back, a ballot is cast, the clock jumps. Storage steps may kill the coordinator before or after they became durable;
it is then started again on what is on disk. Everything follows from one seed.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.codec import encode
from commons.errors import Refusal
from commons.experts.map import ExpertMap, Kind
from commons.founding import Delegation, Founding
from commons.names import Digest, RunId, SiteId
from commons.notes import Signer, digest
from commons.records import Record
from commons.states import StateStore
from commons.updates import lay_out
from commons.work import AssignmentNote, EvaluationNote, UpdateNote, UsageNote
from governance.bell import Bell
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import decide_grants
from orchestrator.admit import admit
from orchestrator.desk import Desk
from orchestrator.evaluation import decide_evaluation, finish_run
from orchestrator.intake import Upload, read_claim
from orchestrator.live import Live
from orchestrator.orders import order_for
from orchestrator.progress import Runs, run_fact
from orchestrator.round import run_round
from orchestrator.spool import Spool
from tests.support.chamber import signer

P = ParamSpec("P")
R = TypeVar("R")
START_MS = 1_700_000_000_000
RUN = RunId("r1")
LIMIT_MS = 60 * 60 * 1000
"""Simulated time after which a run that still goes on is stuck."""


class Crash(BaseException):
    """The coordinator's process dies here."""


class Stuck(AssertionError):
    """Nothing will ever happen again and the run is not over."""


@dataclass(frozen=True)
class Faults:
    """Probabilities, each per message or storage step."""

    drop: float = 0.1
    repeat: float = 0.1
    reply_lost: float = 0.1
    site_crash: float = 0.05
    coordinator_crash: float = 0.03
    clock_jump: float = 0.02


@dataclass
class SimSite:
    name: SiteId
    key: Signer
    online: bool = False
    outbox: dict[str, tuple[Upload, bytes]] = field(default_factory=dict)
    """Lease -> sealed upload and payload: durable, as at a real site."""


class World:
    """`charter` decides the cast; `acknowledged` holds what sites were told is admitted."""

    def __init__(self, folder: Path, charter: Charter, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults, self.founding_charter, self.folder = faults, charter, folder
        self.time_ms = START_MS
        self.acknowledged: dict[tuple[str, int, str], int] = {}
        self.crashes = 0
        self.log_key = signer(charter.consortium.name)
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._map = ExpertMap.from_charter(charter)
        self.sites = {
            SiteId(s.name): SimSite(SiteId(s.name), signer(f"{s.partner}/{s.name}")) for s in charter.sites
        }
        self.store = StateStore(folder / "states")
        values = np.random.default_rng(seed)
        self.seed_state = self.store.save(
            {s.name: values.standard_normal(s.shape).astype(np.float32) for s in self._map.slices}
        )
        self.desk: Desk | None = None
        self._streams: dict[SiteId, ExitStack] = {}

    def now_ms(self) -> int:
        return self.time_ms

    def run(self) -> list[Record]:
        """Everything until the run is over; the journal's records then."""
        self.found()
        for site in self.sites:
            self.after(self.random.randrange(2000), lambda site=site: self.visit(site))
        self.after(self.random.randrange(20_000), self.propose)
        while True:
            try:
                desk = self.desk or self.boot()
                first = True
                while desk.runs.by_id[RUN].phase == "training" and run_round(desk, RUN, first=first):
                    first = False
                if desk.runs.by_id[RUN].finished is None:
                    finish_run(desk, RUN)
                assert desk.runs.by_id[RUN].finished, (
                    "the coordinator stopped working on a run that is not over"
                )
                records = list(desk.consortium.journal.records())
                assert desk.consortium.journal.verify() == []
                self.close()
                return records
            except Crash:
                self.crashes += 1
                self.close()
                self.time_ms += self.random.randrange(5000)

    def found(self) -> None:
        desk = self.boot(safely=True)
        charter = self.founding_charter
        founders = [
            signer(m.name).sign(
                Founding(charter.consortium.name, charter_file.digest(charter), m.name).compose()
            )
            for m in charter.members
        ]
        consortium = desk.consortium
        consortium.commit(
            lambda now: consortium.members.decide_found(charter, founders, self.log_key.vkey, now)
        )
        consortium.commit(lambda now: decide_grants(consortium.ledger, charter, now))
        for entry in charter.sites:
            site = self.sites[SiteId(entry.name)]
            delegation = Delegation(
                charter.consortium.name,
                entry.partner,
                entry.name,
                site.key.verifier.vkey,
                "sha256:" + "0" * 64,
            )
            note = signer(entry.partner).sign(delegation.compose())
            consortium.commit(lambda now, note=note: consortium.members.decide_enrol_site(note, now))
        consortium.commit(
            lambda now: [
                run_fact(
                    now,
                    run=RUN,
                    rounds=charter.learning.rounds,
                    state=self.seed_state,
                    charter_version=1,
                    expert_map=self._map.digest,
                )
            ]
        )
        self.close()

    def boot(self, *, safely: bool = False) -> Desk:
        bell = SimBell(self)
        journal = Journal.open(self.folder / "journal.db", signer=self.log_key, clock=self)
        if not safely:
            journal.append = self.deadly(journal.append)  # type: ignore[method-assign]
        store = StateStore(self.folder / "states")
        if not safely:
            store.publish = self.deadly(store.publish)  # type: ignore[method-assign]
        consortium = Consortium(journal, self)
        runs = Runs()
        consortium.follow(runs)
        consortium.follow(bell)
        live = Live(self, bell, Bell())
        spool = Spool(self.folder / "spool")
        self.desk = Desk(consortium, runs, live, store, spool, self.log_key, bell)
        return self.desk

    def close(self) -> None:
        """What the death of the process does: streams end, locks go, memory is lost."""
        desk, self.desk = self.desk, None
        for stack in self._streams.values():
            stack.close()
        self._streams.clear()
        for site in self.sites.values():
            site.online = False
        if desk is not None:
            desk.consortium.journal.close()

    def deadly(self, step: Callable[P, R]) -> Callable[P, R]:
        """A storage step that now and then is the last one, before or after it took effect."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            if self.chance(self.faults.coordinator_crash / 2):
                raise Crash
            done = step(*args, **kwargs)
            if self.chance(self.faults.coordinator_crash / 2):
                raise Crash
            return done

        return wrapped

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def after(self, delay_ms: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.time_ms + delay_ms, next(self._order), event))

    def happen(self, until_ms: int | None) -> bool:
        """The next event, or the passing of time up to `until_ms`; False when that is reached."""
        if self.time_ms > START_MS + LIMIT_MS:
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
        event()
        return True

    def visit(self, name: SiteId) -> None:
        """One turn of a site: come, ask for the order, work, or die and come back."""
        self.after(self.random.randrange(200, 4000), lambda: self.visit(name))
        site = self.sites[name]
        desk = self.desk
        if desk is None:
            return
        if self.chance(self.faults.site_crash):
            site.online = False
            self._streams.pop(name, ExitStack()).close()
            return
        if not site.online:
            site.online = True
            stack = ExitStack()
            stack.enter_context(desk.live.stream(name))
            self._streams[name] = stack
        order = order_for(desk, name, over_before=()).assignment
        if order is None:
            return
        if order.work == "evaluate":
            self.message(lambda: self.evaluate(site, order))
            return
        if order.lease not in site.outbox:
            site.outbox[order.lease] = self.train(site, order, desk)
        upload, payload = site.outbox[order.lease]
        sent = Upload(desk.consortium.journal.epoch, upload.update, upload.usage, upload.manifest)
        self.message(lambda: self.deliver(site, sent, payload))

    def message(self, arrive: Callable[[], None]) -> None:
        """The network: late, lost, or more than once."""
        if self.chance(self.faults.drop):
            return
        for _ in range(2 if self.chance(self.faults.repeat) else 1):
            self.after(self.random.randrange(10, 3000), arrive)

    def train(self, site: SimSite, order: AssignmentNote, desk: Desk) -> tuple[Upload, bytes]:
        charter = desk.consortium.members.charters[order.charter_version]
        learning = charter.learning
        noise = np.random.default_rng([order.round, len(self.sites), int(site.key.verifier.key_id.hex(), 16)])
        encoded = []
        for part in self._map.uplink(site.name):
            codec = learning.codecs.expert if part.kind is Kind.EXPERT else learning.codecs.trunk
            delta = (noise.standard_normal(part.shape) * 0.01).astype(np.float32)
            encoded.append((part.name, codec, part.shape, encode(codec, delta)))
        manifest, payload = lay_out(encoded)
        tokens = learning.inner_steps * learning.batch_size * learning.sequence_length
        steps = learning.inner_steps
        update = UpdateNote(
            consortium=order.consortium, run=order.run, round=order.round, site=site.name, base=order.base,
            manifest=digest(manifest.to_bytes()), payload=digest(payload), payload_bytes=len(payload), steps=steps,
            tokens=tokens, loss=1.5, held_out_loss=None,
        )  # fmt: skip
        entry = charter.site(site.name)
        assert entry is not None
        usage = UsageNote(
            consortium=order.consortium, run=order.run, round=order.round, site=site.name, lease=order.lease,
            device=entry.device, device_ids=f"cpu/{entry.partner}/{site.name}", precision="fp32",
            started_ms=self.time_ms, ended_ms=self.time_ms, device_ms=0, steps=steps, tokens=tokens,
            gflop=self.random.randrange(1, self._map.training_gflop(tokens) + 1), energy_j=None,
            update=update.payload,
        )  # fmt: skip
        return (
            Upload(0, site.key.sign(update.text), site.key.sign(usage.text), manifest.to_bytes()),
            payload,
        )

    def deliver(self, site: SimSite, sent: Upload, payload: bytes) -> None:
        """An upload arrives. The site only knows of an admission whose reply reached it."""
        if self.desk is None:
            return
        claim = read_claim(sent, site.name, self.desk.consortium.members.site_key(site.name))
        assert not isinstance(claim, Refusal), claim
        offset = self.desk.spool.offset(RUN, claim.update.round, site.name, claim.key)
        answer = admit(self.desk, claim, offset, [payload[offset:]])
        if isinstance(answer, int) and not self.chance(self.faults.reply_lost):
            key = (claim.update.run, claim.update.round, str(site.name))
            assert self.acknowledged.setdefault(key, answer) == answer, (
                "asked twice, answered twice differently"
            )

    def evaluate(self, site: SimSite, order: AssignmentNote) -> None:
        if self.desk is None:
            return
        consortium, runs = self.desk.consortium, self.desk.runs
        entry = consortium.charter.site(site.name)
        assert entry is not None
        note = EvaluationNote(
            consortium=order.consortium, run=order.run, site=site.name, state=order.base, domain=entry.domain,
            bytes=1000, loss=1.25,
        )  # fmt: skip
        signed = site.key.sign(note.text)

        def decide(now_ms: int) -> list[Record] | Refusal:
            key = consortium.members.site_key(site.name)
            decided = decide_evaluation(runs, consortium.charter, site.name, key, signed, now_ms)
            return [] if isinstance(decided, int) else decided

        consortium.commit(decide)

    def propose(self) -> None:
        """Somebody proposes other inner steps; ballots follow, some late, some twice."""
        if self.desk is None:
            self.after(1000, self.propose)
            return
        consortium = self.desk.consortium
        charter = consortium.charter
        proposer = self.random.choice(charter.members).name
        proposal = Proposal(
            consortium=charter.consortium.name, proposer=proposer, title="Other steps", feature="inner-steps",
            parameters={"steps": self.random.randrange(1, 4)}, charter=charter_file.digest(charter),
            effective_round=self.random.randrange(1, charter.learning.rounds + 2),
            nonce=self.random.randbytes(16).hex(),
        )  # fmt: skip
        note = signer(proposer).sign(proposal.compose())
        consortium.commit(lambda now: consortium.proposals.decide_submit(note, charter, now))
        for member in charter.members:
            self.message(lambda member=member: self.vote(proposal, member.name))

    def vote(self, proposal: Proposal, voter: str) -> None:
        if self.desk is None:
            return
        consortium = self.desk.consortium
        view = next((p for p in consortium.proposals.views() if p.id == proposal.id), None)
        if view is None:
            return
        ballot = Ballot(
            consortium=proposal.consortium, proposal=proposal.id, rules=Digest(view.rules),
            electorate=Digest(view.electorate_digest), voter=voter,
            choice=self.random.choice(("for", "for", "against", "abstain")),
            nonce=self.random.randbytes(16).hex(), cast_at="2026-11-23T18:40:12Z",
        )  # fmt: skip
        note = signer(voter).sign(ballot.compose())
        consortium.commit(lambda now: consortium.proposals.decide_submit(note, consortium.charter, now))


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


def facts(records: Sequence[Record], kind: str) -> Iterator[dict[str, object]]:
    return (json.loads(r.body) for r in records if r.kind == kind)
