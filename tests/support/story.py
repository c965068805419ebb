"""A short life of a consortium as journal records: two rounds, a vote that binds, a sponsor, a refused budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from commons import charter_file, notes
from commons.ballots import Choice
from commons.errors import Refusal
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.opening import Opening
from commons.records import Kind, Record
from commons.work import EvaluationNote, UpdateNote, UsageNote
from governance.consortium import Consortium
from governance.ledger import Charge, HoldRequest, decide_grants, decide_hold, decide_settle
from governance.ratecard import rate_card_digest
from governance.statements.closing import decide_close
from orchestrator.facts import close_fact, finish_fact, rejection_fact, round_fact, run_fact
from orchestrator.progress import Runs
from orchestrator.release.layout import NOTE_KEYS, NOTE_KIND
from tests.support.chamber import LOG, ballot, charter, founding_notes, proposal, sign, signer

RUN = RunId("first")
PARTNER = {"berlin": "acme", "turin": "beta"}
PAYER = {"berlin": "acme", "turin": "coop"}
DOMAIN = {"berlin": "law", "turin": "code"}
HELD, CHARGED = 1_000, 700


def state(number: int) -> Digest:
    return notes.digest(f"state {number}".encode())


class Story:
    """Tells itself to a consortium, commit by commit."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        self.runs = Runs()
        consortium.follow(self.runs)

    def take(self, *records: Record) -> list[int]:
        indices = self.consortium.commit(lambda _: records)
        assert not isinstance(indices, Refusal)
        return indices

    @property
    def now(self) -> int:
        return self.consortium.now_ms()

    def found(self) -> None:
        def decide(now_ms: int) -> Sequence[Record] | Refusal:
            records = self.consortium.members.decide_found(
                charter(), founding_notes(charter()), LOG.vkey, now_ms
            )
            return records if isinstance(records, Refusal) else [*records, *self._grants(now_ms)]

        assert not isinstance(self.consortium.commit(decide), Refusal)

    def _grants(self, now_ms: int) -> list[Record]:
        return decide_grants(self.consortium.ledger, charter(), now_ms)

    def open_run(self, rounds: int = 2) -> None:
        version = self.consortium.charter.version
        self.take(
            run_fact(
                self.now,
                run=RUN,
                rounds=rounds,
                state=state(0),
                charter_version=version,
                expert_map=state(99),
            )
        )

    def open_round(self, number: int, sites: Sequence[str] = ("berlin", "turin")) -> None:
        card = rate_card_digest(self.consortium.charter.rate_card)
        requests = [
            HoldRequest(
                id=f"hold/{RUN}/{number}/{site}",
                payer=PAYER[site],
                site=site,
                run=RUN,
                round=number,
                amount_micro=HELD,
                expires_ms=self.now + 60_000,
                rate_card=card,
            )
            for site in sites
        ]
        now = self.now
        holds = decide_hold(self.consortium.ledger, requests, now)
        assert not isinstance(holds, Refusal), holds
        opened = round_fact(
            now,
            run=RUN,
            number=RoundNumber(number),
            attempt=1,
            base=state(number - 1),
            charter_version=self.consortium.charter.version,
            charter=charter_file.digest(self.consortium.charter),
            expert_map=state(99),
            quorum=1,
            lease_until_ms=now + 60_000,
            holds={SiteId(site): Micro(HELD) for site in sites},
        )
        self.take(*holds, opened)

    def leave_out(self, number: int, site: str) -> None:
        self.take(
            rejection_fact(
                self.now,
                run=RUN,
                number=RoundNumber(number),
                site=SiteId(site),
                code="exceeds_budget",
                message="coop needs 1000 micro and has 300",
            )
        )

    def admit(self, number: int, site: str, *, routed: str = "-") -> None:
        update = UpdateNote(
            consortium="demo",
            run=RUN,
            round=number,
            site=site,
            base=state(number - 1),
            manifest=state(98),
            payload=state(97),
            payload_bytes=5_000,
            steps=10,
            tokens=640,
            loss=3.0 - number,
            held_out_loss=3.5 - number,
            routed=routed,
        )
        usage = UsageNote(
            consortium="demo",
            run=RUN,
            round=number,
            site=site,
            lease="lease",
            device="cpu",
            device_ids=f"cpu/{site}",
            precision="fp32",
            started_ms=1,
            ended_ms=2,
            device_ms=1,
            steps=10,
            tokens=640,
            gflop=12,
            energy_j=None,
            update=state(97),
        )
        key = signer(f"{PARTNER[site]}/{site}")
        self.take(
            Record(Kind.UPDATE, self.now, key.sign(update.text)),
            Record(Kind.USAGE, self.now, key.sign(usage.text)),
        )

    def close_round(self, number: int, sites: Sequence[str] = ("berlin", "turin")) -> None:
        closed = close_fact(
            self.now,
            run=RUN,
            number=RoundNumber(number),
            base=state(number - 1),
            state=state(number),
            momentum=None,
            contributors=[SiteId(s) for s in sites],
            missing=[],
            bytes_up=10_000,
            bytes_down=20_000,
        )
        self.take(closed)
        for site in sites:
            hold, usage = f"hold/{RUN}/{number}/{site}", str(state(96))
            decided = self.consortium.commit(
                lambda now, hold=hold, usage=usage: decide_settle(
                    self.consortium.ledger, hold, Charge(amount_micro=CHARGED, usage=usage), now
                )
            )
            assert not isinstance(decided, Refusal)

    def propose(self, title: str, steps: int = 0, **changes: Any) -> Opening:
        asked = {"parameters": {"steps": steps}} | changes
        wish = proposal(self.consortium.charter, title=title, **asked)
        indices = self.submit(sign(wish))
        return Opening.from_facts(self.consortium.journal.record(indices[-1]).facts)

    def vote(self, opening: Opening, **choices: Choice) -> None:
        for member, choice in choices.items():
            self.submit(sign(ballot(opening, member, choice)))
        self.take(*self.consortium.proposals.decide_close(self.now))

    def submit(self, note: bytes) -> list[int]:
        taken = self.consortium.commit(
            lambda now: self.consortium.proposals.decide_submit(note, self.consortium.charter, now)
        )
        assert not isinstance(taken, Refusal), taken
        return taken

    def execute(self, number: int) -> None:
        self.take(*self.consortium.proposals.decide_execute(self.consortium.charter, number, self.now))

    def evaluate(self, number: int, site: str) -> None:
        words = EvaluationNote(
            consortium="demo",
            run=RUN,
            site=site,
            state=state(number),
            domain=DOMAIN[site],
            bytes=900,
            loss=0.5,
        )
        self.take(Record(Kind.EVALUATION, self.now, signer(f"{PARTNER[site]}/{site}").sign(words.text)))

    def finish(self, phase: str = "finished", reason: str = "") -> None:
        self.take(finish_fact(self.now, run=self.runs.by_id[RUN], phase=phase, reason=reason))

    def release(self, number: int) -> Digest:
        """The model after a round; the manifest's digest."""
        manifest = notes.digest(f"manifest {number}".encode())
        values = ("demo", RUN, str(number), state(number), manifest, "Apache-2.0")
        note = LOG.sign(notes.compose(NOTE_KIND, list(zip(NOTE_KEYS, values, strict=True))))
        self.take(Record(Kind.RELEASE, self.now, note))
        return manifest

    def vote_to_release(self, manifest: Digest, alias: str = "released") -> None:
        parameters = {"manifest": manifest, "alias": alias, "licence": "Apache-2.0", "gates": state(95)}
        opening = self.propose("Release it", feature="model-release", parameters=parameters)
        self.vote(opening, acme="for", beta="for", coop="for")
        self.execute(3)

    def close_books(self) -> None:
        """Of periods that are over."""
        self.take(*decide_close(self.consortium.ledger, self.now))

    def tell(self) -> None:
        """All of it, but for releases."""
        self.found()
        self.open_run()
        self.open_round(1)
        opening = self.propose("Twice the steps", 20)
        self.vote(opening, acme="for", beta="against", coop="for")
        for site in ("berlin", "turin"):
            self.admit(1, site)
        self.close_round(1)
        self.execute(2)
        lost = self.propose("Many steps", 30)
        self.vote(lost, acme="for", beta="against", coop="against")
        self.open_round(2, ["berlin"])
        self.leave_out(2, "turin")
        self.admit(2, "berlin")
        self.close_round(2, ["berlin"])
        for site in ("berlin", "turin"):
            self.evaluate(2, site)
        self.finish()
