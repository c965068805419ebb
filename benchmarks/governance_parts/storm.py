"""Thirty partners vote on twenty proposals at the same moment, each over its own connection, and nothing is lost."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from commons.ballots import Proposal
from commons.charter import Charter
from commons.charter_file import digest
from commons.opening import Opening
from commons.records import Kind
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import ChamberStub
from tests.simulation.auditor import count_votes
from tests.support.chamber import ballot
from tests.support.consortium import NAME, charter, enrol, found, signer, started

_CHOICES = ("for", "for", "against", "abstain")


@dataclass(frozen=True)
class Storm:
    partners: int
    proposals: int
    ballots: int
    seconds: float
    """From the first ballot sent to the last receipt."""
    lost: int
    """Receipts whose ballot is not in the journal at the index they name."""
    differing: int
    """Proposals whose recorded outcome is not what an independent count of the ballots' texts comes to."""


def vote_at_once(work: Path, *, partners: int = 30, proposals: int = 20) -> Storm:
    """Real gRPC with a certificate for each partner; the journal is SQLite with synchronous=FULL."""
    of = _charter(partners)
    coordinator = started(found(work, of))
    names = [m.name for m in of.members]
    seats = [enrol(coordinator, "member", name, work / "seats" / name) for name in names]
    lines = [channel.connect(seat) for seat in seats]
    stubs = [ChamberStub(line) for line in lines]
    try:
        openings = [_open(stubs[n % partners], of, names[n % partners], n) for n in range(proposals)]
        notes = {
            name: [
                signer(name).sign(
                    ballot(o, name, _CHOICES[(at + n) % 4], consortium=NAME).compose()  # type: ignore[arg-type]
                )
                for n, o in enumerate(openings)
            ]
            for at, name in enumerate(names)
        }
        together = threading.Barrier(partners)

        def cast(at: int) -> list[tuple[int, bytes]]:
            together.wait()
            return [
                (stubs[at].Submit(wire.NoteRequest(note=note), timeout=120).index, note)
                for note in notes[names[at]]
            ]

        began = time.perf_counter()
        with ThreadPoolExecutor(partners) as pool:
            receipts = [one for cast_by in pool.map(cast, range(partners)) for one in cast_by]
        seconds = time.perf_counter() - began
        records = list(coordinator.desk.consortium.journal.records())
    finally:
        for line in lines:
            line.close()
        coordinator.stop()
    counted = count_votes(records)
    outcomes = [r.facts for r in records if r.kind is Kind.OUTCOME]
    assert len(outcomes) == proposals, f"{len(outcomes)} of {proposals} votes were decided"
    wrong = sum(counted[o["proposal"]] != (o["for"], o["against"], o["abstain"]) for o in outcomes)
    lost = sum(records[index].body != note for index, note in receipts)
    return Storm(partners, proposals, len(receipts), seconds, lost, wrong)


def _charter(partners: int) -> Charter:
    names = [f"p{n:02d}" for n in range(partners)]
    site = charter().sites[0].model_dump()
    return charter(
        members=tuple({"name": n, "key": signer(n).vkey, "budget_micro": 0} for n in names),
        sites=({**site, "partner": names[0], "payer": names[0], "experts": ("law-0", "law-1")},),
        rounds__quorum=1,
        voting__window_s=3600,
    )


def _open(stub: ChamberStub, of: Charter, by: str, number: int) -> Opening:
    wish = Proposal(
        NAME, by, f"Vote {number}", "inner-steps", {"steps": 100 + number}, digest(of), 1000, f"{number:032x}"
    )
    stub.Submit(wire.NoteRequest(note=signer(by).sign(wish.compose())), timeout=60)
    return Opening.of(wish, of, number=number + 1, now_ms=0)
