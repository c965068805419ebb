"""What sites do: join, work, report, send what they made, come back; and what goes wrong on the way.

The network between a site and the coordinator drops, repeats, delays and overtakes. A site's outbox and its meter
survive its death. Its clock is its own, and jumps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from commons.charter import Charter
from commons.codec import encode
from commons.errors import Refusal
from commons.exchange import Exchange
from commons.founding import Delegation
from commons.identity import csr, tls_key_digest
from commons.learning import Codec
from commons.names import RunId, SiteId
from commons.notes import Signer, digest
from commons.records import Record
from commons.updates import lay_out
from commons.work import AssignmentNote, EvaluationNote, UpdateNote, UsageNote
from orchestrator.admit import admit
from orchestrator.charges import TopUp
from orchestrator.desk import Desk
from orchestrator.evaluation import decide_evaluation
from orchestrator.intake import Upload, read_claim
from orchestrator.live import Beat
from orchestrator.orders import order_for
from orchestrator.topups import top_up
from tests.simulation.cast import signer

if TYPE_CHECKING:
    from tests.simulation.world import World

FRAME_BYTES = 4096
SLACK_MS = 300_000
"""How far off a site's clock may be before the coordinator refuses what it signs (`orchestrator.intake`)."""


@dataclass
class SimSite:
    name: SiteId
    partner: str
    key: Signer
    invite: bytes = b""
    online: bool = False
    clock_off_ms: int = 0
    ended_ms: int = 0
    """End of its last usage record: its meter never begins another before it."""
    busy_until_ms: dict[str, int] = field(default_factory=dict)
    """Lease -> when its work is done."""
    topups: dict[str, int] = field(default_factory=dict)
    """Lease -> number of the last top-up it asked for."""
    outbox: dict[str, tuple[Upload, bytes]] = field(default_factory=dict)
    """Lease -> sealed upload and payload: durable, as at a real site."""


class Sites:
    """All sites of a world. Every method is one event."""

    def __init__(self, world: World, charter: Charter) -> None:
        self._world = world
        self.all = {
            SiteId(s.name): SimSite(SiteId(s.name), s.partner, signer(f"{s.partner}/{s.name}"))
            for s in charter.sites
        }
        self._streams: dict[SiteId, ExitStack] = {}

    def disconnect(self) -> None:
        """The coordinator is gone: every stream ends."""
        for stack in self._streams.values():
            stack.close()
        self._streams.clear()
        for site in self.all.values():
            site.online = False

    def visit(self, name: SiteId) -> None:
        """One turn of a site: come, ask for the order, work, or die and come back."""
        world, site = self._world, self.all[name]
        world.after(world.random.randrange(200, 4000), lambda: self.visit(name))
        desk = world.desk
        if desk is None:
            return
        if world.chance(world.faults.site_crash):
            site.online = False
            self._streams.pop(name, ExitStack()).close()
            return
        if world.chance(world.faults.clock_jump):
            site.clock_off_ms = world.random.choice((0, 0, -1, 1)) * world.random.randrange(2 * SLACK_MS)
        if name not in desk.consortium.members.enrolled:
            world.message(lambda: self.enrol(site))
            return
        if not site.online:
            site.online = True
            self._streams[name] = ExitStack()
            self._streams[name].enter_context(desk.live.stream(name))
        order = order_for(desk, name, over_before=()).assignment
        if order is not None:
            self._obey(site, order, desk)

    def enrol(self, site: SimSite) -> None:
        """By the invite it was handed; a lost answer is asked for again."""
        world = self._world
        if world.enrolments is None:
            return
        key = _tls_key(site.name)
        words = Delegation(
            world.charter.consortium.name,
            site.partner,
            site.name,
            site.key.verifier.vkey,
            tls_key_digest(key),
        )
        note = signer(site.partner).sign(words.compose())
        done = world.enrolments.enrol(site.invite, _request(site.name), note)
        assert not isinstance(done, Refusal), f"{site.name} was invited: {done}"
        if not world.chance(world.faults.reply_lost):
            world.receipts[note] = None

    def deliver(self, site: SimSite, upload: Upload, payload: bytes) -> None:
        """An upload arrives, maybe not to its end. The site only knows of an admission whose reply reached it."""
        world = self._world
        desk = world.desk
        if desk is None:
            return
        claim = read_claim(upload, site.name, desk.consortium.members.site_key(site.name))
        assert not isinstance(claim, Refusal), claim
        run, number = RunId(claim.update.run), claim.update.round
        cut = claim.manifest.lanes(1 + len(site.outbox) % 3)
        answer: int | Refusal | None = None
        for lane in cut:
            offset = desk.spool.positions(run, number, site.name, claim.key, len(cut))[lane.number]
            data = payload[lane.offset + offset : lane.offset + lane.bytes]
            answer = admit(desk, claim, lane.number, len(cut), offset, self._frames(data))
            if isinstance(answer, Refusal):
                break
        if isinstance(answer, int) and not world.chance(world.faults.reply_lost):
            key = (str(run), number, str(site.name))
            known = world.acknowledged.setdefault(key, answer)
            assert known == answer, "asked twice, answered twice differently"

    def evaluate(self, site: SimSite, order: AssignmentNote) -> None:
        world = self._world
        if world.desk is None:
            return
        consortium, runs = world.desk.consortium, world.desk.runs
        entry = consortium.charter.site(site.name)
        assert entry is not None
        note = EvaluationNote(
            consortium=order.consortium, run=order.run, site=site.name, state=order.base, domain=entry.domain,
            bytes=1000, loss=1.25,
        )  # fmt: skip
        signed = site.key.sign(note.text)
        known: list[int] = []

        def decide(now_ms: int) -> list[Record] | Refusal:
            key = consortium.members.site_key(site.name)
            decided = decide_evaluation(runs, consortium.charter, site.name, key, signed, now_ms)
            if isinstance(decided, int):
                known.append(decided)
                return []
            return decided

        done = consortium.commit(decide)
        if not isinstance(done, Refusal):
            world.told(signed, (*done, *known)[0])

    def _report(self, site: SimSite, beat: Beat) -> None:
        if self._world.desk is not None:
            self._world.desk.live.beat(site.name, beat)

    def _obey(self, site: SimSite, order: AssignmentNote, desk: Desk) -> None:
        world = self._world
        if order.work == "evaluate":
            world.message(lambda: self.evaluate(site, order))
            return
        if world.chance(world.faults.refusal):
            beat = Beat(run=order.run, round=order.round, state="refused", why="its policy forbids it")
            world.message(lambda: self._report(site, beat))
            return
        if world.chance(world.faults.topup):
            known = site.topups.get(order.lease, 0)
            site.topups[order.lease] = n = known + world.random.choice((0, 1, 1))
            wanted = world.random.choice((0, 1, 30, 100, 500, 5_000, 10**12))
            world.message(partial(self._top_up, site, order, n, wanted))
        at_work = Beat(run=order.run, round=order.round, state="training")
        if not world.chance(world.faults.drop):
            self._report(site, at_work)
        longest_ms = 1200 * world.charter.rounds.lease_s
        needs_ms = world.random.randrange(longest_ms) if world.chance(world.faults.slow) else 0
        if world.time_ms < site.busy_until_ms.setdefault(order.lease, world.time_ms + needs_ms):
            return
        if order.lease not in site.outbox:
            site.outbox[order.lease] = self._train(site, order, desk)
        upload, payload = site.outbox[order.lease]
        sent = replace(upload, epoch=desk.consortium.journal.epoch)
        world.message(lambda: self.deliver(site, sent, payload))

    def _top_up(self, site: SimSite, order: AssignmentNote, n: int, amount_micro: int) -> None:
        world = self._world
        if world.desk is None:
            return
        asked = TopUp(
            site=site.name,
            run=RunId(order.run),
            round=order.round,
            lease=order.lease,
            n=n,
            amount_micro=amount_micro,
        )
        if top_up(world.desk, asked) is None and not world.chance(world.faults.reply_lost):
            world.topped.add(f"{order.hold}/top{n}")

    def _frames(self, payload: bytes) -> Iterator[bytes]:
        """Between two frames the line may break, and other things happen."""
        world = self._world
        for start in range(0, len(payload), FRAME_BYTES):
            if world.chance(world.faults.drop / 4):
                return
            while world.chance(world.faults.overlap) and world.happen(world.time_ms + 1000):
                pass
            yield payload[start : start + FRAME_BYTES]

    def _train(self, site: SimSite, order: AssignmentNote, desk: Desk) -> tuple[Upload, bytes]:
        """A sealed round: in order, or wrong in a way that its site can be told."""
        world, dice = self._world, self._world.random
        charter = desk.consortium.members.charters[order.charter_version]
        wrong = (
            dice.choice(("base", "gflop", "device", "lease", "value", "value", "value"))
            if world.chance(world.faults.wrong)
            else ""
        )
        exchange = desk.exchange(desk.runs.by_id[RunId(order.run)].history[order.round - 1])
        steps = dice.randrange(1, charter.learning.inner_steps + 1)
        tokens = steps * charter.learning.batch_size * charter.learning.sequence_length
        may = exchange.may_route_to(site.name)
        chosen = [n for n, allowed in enumerate(may) if allowed][: exchange.expert_map.experts_per_token]
        routed = tuple(tokens * (n in chosen) for n in range(len(may)))
        manifest, payload = lay_out(
            self._deltas(site, exchange, nan=wrong == "value"), routed=(routed,) if exchange.counts else ()
        )
        update = UpdateNote(
            consortium=order.consortium, run=order.run, round=order.round, site=site.name,
            base=order.base if wrong != "base" else digest(b"another"), manifest=digest(manifest.to_bytes()),
            payload=manifest.payload_digest, payload_bytes=len(payload), steps=steps, tokens=tokens, loss=1.5,
            held_out_loss=None,
        )  # fmt: skip
        entry = charter.site(site.name)
        assert entry is not None
        started_ms = max(world.time_ms + site.clock_off_ms, site.ended_ms)
        site.ended_ms = started_ms + dice.randrange(3_000)
        gflop = exchange.gflop(steps)
        device = f"cpu/{entry.partner}/{site.name}"
        usage = UsageNote(
            consortium=order.consortium, run=order.run, round=order.round, site=site.name,
            lease=order.lease if wrong != "lease" else "lease/r0/1/s0/1", device=entry.device,
            device_ids=device if wrong != "device" else f"{device},cpu/somebody/else",
            precision=dice.choice(("fp32", "bf16")), started_ms=started_ms, ended_ms=site.ended_ms,
            device_ms=dice.randrange(site.ended_ms - started_ms + 1), steps=steps, tokens=tokens,
            gflop=gflop if wrong != "gflop" else gflop + 10**6, energy_j=dice.choice((None, 7)),
            update=update.payload,
        )  # fmt: skip
        upload = Upload(0, site.key.sign(update.text), site.key.sign(usage.text), manifest.to_bytes())
        return upload, payload

    def _deltas(
        self, site: SimSite, exchange: Exchange, *, nan: bool
    ) -> Iterator[tuple[str, Codec, tuple[int, ...], bytes]]:
        noise = np.random.default_rng([exchange.number, int(site.key.verifier.key_id.hex(), 16)])
        codecs = exchange.codecs
        for part in exchange.uplink(site.name):
            codec = codecs.of(part.kind)
            delta = (noise.standard_normal(part.shape) * 0.01).astype(np.float32)
            data = encode(codec, delta)
            yield part.name, codec, part.shape, b"\xff" * len(data) if nan else data


@lru_cache(maxsize=64)
def _tls_key(name: str) -> bytes:
    """The same in every run: its digest is in the journal."""
    number = int.from_bytes(sha256(name.encode()).digest()[:31], "big") + 1
    return ec.derive_private_key(number, ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@lru_cache(maxsize=64)
def _request(name: str) -> bytes:
    return csr(_tls_key(name))
