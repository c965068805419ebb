"""The real round code on a real journal, with a clock set by hand and a script of what happens while it waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.charter import Charter
from commons.codec import encode
from commons.errors import Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.founding import Delegation
from commons.learning import Codec
from commons.names import RunId, SiteId
from commons.notes import digest, parse
from commons.records import Kind, Record
from commons.states import StateStore
from commons.tally import Opening
from commons.updates import lay_out
from commons.work import AssignmentNote, UpdateNote, UsageNote
from governance.bell import Bell
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import Budget, Hold, Ledger
from orchestrator.admit import admit
from orchestrator.charges import TopUp
from orchestrator.desk import Desk
from orchestrator.facts import run_fact
from orchestrator.home import Home
from orchestrator.intake import Upload, read_claim
from orchestrator.live import Live
from orchestrator.orders import order_for
from orchestrator.progress import Runs
from orchestrator.round import run_round
from orchestrator.spool import Spool
from orchestrator.topups import top_up
from tests.support.consortium import NAME, found, seed_state, signer

RUN = RunId("run-1")
START_MS = 1_700_000_000_000
Step = Callable[[], object]


class Died(BaseException):
    """The coordinator's process ends here."""


class Stage:
    """A coordinator without a wire. Its sites are all here, and do what the test says."""

    def __init__(self, folder: Path, of: Charter, *, rounds: int = 9) -> None:
        self.of, self.home, self.at_ms = of, found(folder, of), START_MS
        self.map = ExpertMap.from_charter(of)
        self._script: deque[Step] = deque()
        self.waits: list[float | None] = []
        """How long the coordinator would have waited at most, each time it did, in seconds."""
        self._closing = ExitStack()
        self.desk = self._open()
        consortium = self.desk.consortium
        Home.open(self.home).found(consortium)
        state = self.desk.store.save(seed_state(of))
        for site in of.sites:
            self.enrol(site.partner, site.name)
        consortium.commit(
            lambda now_ms: [
                run_fact(
                    now_ms, run=RUN, rounds=rounds, state=state, charter_version=1, expert_map=self.map.digest
                )
            ]
        )

    def enrol(self, partner: str, site: str) -> None:
        consortium, key = self.desk.consortium, signer(f"{partner}/{site}").vkey
        note = signer(partner).sign(Delegation(NAME, partner, site, key, "sha256:" + "0" * 64).compose())
        done = consortium.commit(lambda now_ms: consortium.members.decide_enrol_site(note, now_ms))
        assert not isinstance(done, Refusal), done.message

    def comes(self, site: str) -> None:
        """The site's stream of orders is open from now on."""
        self._closing.enter_context(self.desk.live.stream(SiteId(site)))

    def decides(self, feature: str, *, by: str = "alder", **parameters: Any) -> None:
        """The member proposes it and all vote for it; it is carried out before the next round."""
        consortium, charter = self.desk.consortium, self.desk.consortium.charter
        text = Proposal(
            consortium=NAME, proposer=by, title=feature, feature=feature, parameters=parameters,
            charter=charter_file.digest(charter), effective_round=1, nonce="0" * 16,
        )  # fmt: skip

        def submit(note: bytes) -> list[int]:
            done = consortium.commit(lambda now_ms: consortium.proposals.decide_submit(note, charter, now_ms))
            assert not isinstance(done, Refusal), done.message
            return done

        opening = Opening.from_facts(
            consortium.journal.record(submit(signer(by).sign(text.compose()))[-1]).facts
        )
        for member in opening.electorate:
            ballot = Ballot(
                consortium=NAME, proposal=opening.proposal, rules=opening.rules_digest,
                electorate=opening.electorate_digest, voter=member, choice="for", nonce="1" * 16,
                cast_at="2026-11-23T18:40:12Z",
            )  # fmt: skip
            submit(signer(member).sign(ballot.compose()))

    @property
    def state(self) -> dict[str, np.ndarray]:
        return self.desk.store.load(self.desk.runs.by_id[RUN].state)

    @property
    def charter(self) -> Charter:
        return self.desk.consortium.charter

    def now_ms(self) -> int:
        return self.at_ms

    def passes(self, ms: int) -> None:
        self.at_ms += ms

    def play(self, *script: Step) -> bool:
        """`run_round`, the script's steps happening one by one while it waits. Raises Died after the last of them."""
        self._script = deque(script)
        return run_round(self.desk, RUN, first=True)

    def restart(self) -> None:
        """What is on disk is all that is left."""
        self.close()
        self.desk = self._open()

    def close(self) -> None:
        self._closing.close()
        self.desk.consortium.journal.close()

    @contextmanager
    def dying(self, appends: int, *, after: bool) -> Iterator[None]:
        """The process ends at that append (from 1), before or after it is durable."""
        journal, done = self.desk.consortium.journal, 0
        real = journal.append

        def append(records: Any) -> list[int]:
            nonlocal done
            done += bool(records)
            if done == appends and records and not after:
                raise Died
            indices = real(records)
            if done == appends and records:
                raise Died
            return indices

        journal.append = append  # type: ignore[method-assign]
        try:
            yield
        finally:
            journal.append = real  # type: ignore[method-assign]

    def order(self, site: str) -> AssignmentNote:
        order = order_for(self.desk, SiteId(site), over_before=()).assignment
        assert order is not None, f"{site} has no order"
        return order

    def hands_in(self, site: str, *, meanwhile: Step = lambda: None, **changes: Any) -> int | Refusal:
        """The site hands in what `packed` gives for `changes`; `meanwhile` happens while the payload is under way."""
        return self.sends(self.packed(site, **changes), meanwhile=meanwhile)

    def packed(
        self, site: str, *, ms: int = 1000, value: float = 0.01, codec: Codec | None = None, **changes: Any
    ) -> tuple[Upload, bytes]:
        """What the site hands in for the last `ms` of work, and its payload; `changes` of its notes' fields. `codec` None:
        as the charter says."""
        order = self.order(site)
        charter = self.desk.consortium.members.charters[order.charter_version]
        learning, expert_map = charter.learning, ExpertMap.from_charter(charter)
        steps = changes.get("steps", learning.inner_steps)
        tokens = steps * learning.batch_size * learning.sequence_length
        moves = Exchange(expert_map, learning, order.round)
        parts = [
            (s.name, codec or moves.codecs.of(s.kind), np.full(s.shape, value, np.float32))
            for s in moves.uplink(SiteId(site))
        ]
        manifest, payload = lay_out(
            (name, how, array.shape, encode(how, array)) for name, how, array in parts
        )
        common = {"consortium": NAME, "run": order.run, "round": order.round, "site": site}
        update: dict[str, Any] = {
            "base": order.base, "manifest": digest(manifest.to_bytes()), "payload": manifest.payload_digest,
            "payload_bytes": len(payload), "steps": steps, "tokens": tokens, "loss": 2.0, "held_out_loss": None,
        }  # fmt: skip
        entry = charter.site(site)
        assert entry is not None
        usage: dict[str, Any] = {
            "lease": order.lease, "device": "cpu", "device_ids": f"cpu/{entry.partner}/{site}", "precision": "fp32",
            "started_ms": self.at_ms - ms, "ended_ms": self.at_ms, "device_ms": ms, "steps": steps,
            "tokens": tokens, "gflop": moves.gflop(steps), "energy_j": None,
            "update": manifest.payload_digest,
        }  # fmt: skip
        key = signer(f"{entry.partner}/{site}")
        notes = [
            key.sign(kind(**common, **fields | {k: v for k, v in changes.items() if k in fields}).text)
            for kind, fields in ((UpdateNote, update), (UsageNote, usage))
        ]
        return Upload(self.desk.consortium.journal.epoch, *notes, manifest.to_bytes()), payload

    def sends(self, packed: tuple[Upload, bytes], *, meanwhile: Step = lambda: None) -> int | Refusal:
        upload, payload = packed
        site = SiteId(UpdateNote.from_note(parse(upload.update)).site)
        claim = read_claim(upload, site, self.desk.consortium.members.site_key(site))
        assert not isinstance(claim, Refusal), claim

        def frames() -> Iterator[bytes]:
            half = len(payload) // 2
            yield payload[:half]
            meanwhile()
            yield payload[half:]

        done = admit(self.desk, claim, 0, 1, 0, frames())
        assert done is not None, "all lanes were sent"
        return done

    def asks(self, site: str, n: int, amount_micro: int, **changes: Any) -> Refusal | None:
        """The site asks for a top-up of its open round."""
        order = None if {"lease", "round"} <= changes.keys() else self.order(site)
        fields = {"run": RUN, "round": order.round, "lease": order.lease} if order else {"run": RUN}
        return top_up(
            self.desk, TopUp(site=SiteId(site), n=n, amount_micro=amount_micro, **{**fields, **changes})
        )

    @property
    def ledger(self) -> Ledger:
        return self.desk.consortium.ledger

    def budget(self, partner: str) -> Budget:
        return next(b for b in self.ledger.budgets() if b.partner == partner)

    def hold(self, name: str) -> Hold:
        hold = self.ledger.hold(name)
        assert hold is not None, f"there is no {name}"
        return hold

    def records(self, *kinds: Kind) -> list[Record]:
        return [r for r in self.desk.consortium.journal.records() if not kinds or r.kind in kinds]

    def transfers(self, kind: str, **facts: Any) -> list[dict[str, Any]]:
        found = (dict(r.facts) for r in self.records(Kind.TRANSFER))
        return [f for f in found if f["type"] == kind and facts.items() <= f.items()]

    def _open(self) -> Desk:
        bell, runs = ScriptBell(self), Runs()
        journal = Journal.open(self.home / "journal.db", signer=signer(NAME), clock=self)
        consortium = Consortium(journal, self)
        consortium.follow(runs, bell)
        live = Live(self, bell, Bell())
        self._closing = ExitStack()
        for site in (consortium.charter if consortium.members.founded else self.of).sites:
            self._closing.enter_context(live.stream(SiteId(site.name)))
        store, spool = StateStore(self.home / "states"), Spool(self.home / "spool")
        return Desk(consortium, runs, live, store, spool, signer(NAME), bell)

    def _step(self) -> None:
        if not self._script:
            raise Died
        self._script.popleft()()


class ScriptBell(Bell):
    """Waiting is what lets the script go on."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def wait_beyond(self, strokes: int, timeout_s: float | None = None) -> int:
        if self.strokes <= strokes:
            self._stage.waits.append(timeout_s)
            self._stage._step()
        return self.strokes
