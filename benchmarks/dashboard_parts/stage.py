"""A coordinator's home with a long journal and many sites, and the coordinator over it, at work.

The journal is what the product writes: charges held and settled, and a run of which every update is a note signed by
its site. Run as a process it serves the home, lets its sites beat, adds a record every second and says when it did:
``python -m benchmarks.dashboard_parts.stage HOME``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ledger_parts.settle import PER_COMMIT, Till
from commons import charter_file
from commons.charter import Charter
from commons.errors import Refusal
from commons.founding import Delegation
from commons.names import Digest, Micro, RoundNumber, RunId, SiteId
from commons.notes import digest
from commons.records import Kind, Record
from commons.work import UpdateNote, UsageNote, routed_text
from governance.ledger import HoldRequest, decide_hold
from governance.ratecard import rate_card_digest
from orchestrator.coordinator import NO_MLFLOW, Coordinator
from orchestrator.facts import close_fact, round_fact, run_fact
from orchestrator.home import Home
from orchestrator.live import Beat
from tests.support.consortium import NAME, charter, found, signer

SITES = 64
ROUNDS_CLOSED, ROUNDS = 100, 200
BEAT_S = 2.0
"""Every site says where it is so often."""
RECORD_S = 1.0
RUN = RunId("run-1")
_TOKENS = 128


def make(folder: Path, records: int) -> Path:
    """The home, made once; its journal has at least so many records."""
    home = folder / "home"
    if (folder / "made.json").exists():
        return home
    of = _charter()
    found(folder, of)
    till = Till(home / "journal.db", of, signer(NAME))
    try:
        Home.open(home).found(till.consortium)
        run = list(_run(of))
        while till.journal.size + len(run) < records:
            till.settle(PER_COMMIT)
        for site in of.sites:
            _commit(till, [_delegation(site.name)])
        for start in range(0, len(run), 500):
            _commit(till, run[start : start + 500])
        size = till.journal.size
    finally:
        till.close()
    (folder / "made.json").write_text(json.dumps({"records": size}))
    return home


def _charter() -> Charter:
    names = ["alder", "birch", *(f"member-{n:02d}" for n in range(2, SITES))]
    first = charter().sites[0].model_dump()
    return charter(
        members=tuple({"name": n, "key": signer(n).vkey, "budget_micro": 10**12} for n in names),
        sites=tuple(
            {**first, "name": n, "partner": n, "payer": n, "domain": f"{n}-text", "experts": (f"{n}-0",)}
            for n in names
        ),
        learning__rounds=ROUNDS,
        rounds={"quorum": 2, "grace_s": 86_400, "lease_s": 604_800},
    )


def _delegation(site: str) -> Record:
    text = Delegation(NAME, site, site, signer(f"{site}/{site}").vkey, "sha256:" + "0" * 64).compose()
    return Record(Kind.SITE, 0, signer(site).sign(text))


def _run(of: Charter) -> Iterator[Record]:
    """The records of a run half of whose rounds are closed; the clock stands, as that of a replay."""
    named, seed = charter_file.digest(of), digest(b"state 0")
    experts = of.experts
    yield run_fact(0, run=RUN, rounds=ROUNDS, state=seed, charter_version=1, expert_map=digest(b"map"))
    base = seed
    for n in range(1, ROUNDS_CLOSED + 1):
        number, state = RoundNumber(n), digest(f"state {n}".encode())
        sites = [SiteId(s.name) for s in of.sites]
        yield round_fact(
            0, run=RUN, number=number, attempt=1, base=base, charter_version=1, charter=named,
            expert_map=digest(b"map"), quorum=2, lease_until_ms=1, holds=dict.fromkeys(sites, Micro(0)),
        )  # fmt: skip
        for at, site in enumerate(sites):
            yield from _part(site, at, n, base, experts)
        yield close_fact(
            0, run=RUN, number=number, base=base, state=state, momentum=None, contributors=sites, missing=(),
            bytes_up=SITES * 40_000, bytes_down=SITES * 50_000,
        )  # fmt: skip
        base = state


def _part(site: SiteId, at: int, number: int, base: Digest, experts: tuple[str, ...]) -> Iterator[Record]:
    by = signer(f"{site}/{site}")
    loss = 2 + 3 * 0.97**number + at / 200
    payload = digest(f"{site}/{number}".encode())
    update = UpdateNote(
        consortium=NAME, run=RUN, round=number, site=site, base=base, manifest=payload, payload=payload,
        payload_bytes=40_000, steps=4, tokens=_TOKENS, loss=loss, held_out_loss=loss + 0.05,
        routed=routed_text({experts[at]: 100, experts[(at + number) % SITES]: 30}),
    )  # fmt: skip
    usage = UsageNote(
        consortium=NAME, run=RUN, round=number, site=site, lease=f"lease/{RUN}/{number}/{site}/1", device="cpu",
        device_ids=f"cpu/{site}", precision="fp32", started_ms=number * 1000, ended_ms=number * 1000 + 800,
        device_ms=800, steps=4, tokens=_TOKENS, gflop=1, energy_j=None, update=payload,
    )  # fmt: skip
    yield Record(Kind.UPDATE, 0, by.sign(update.text))
    yield Record(Kind.USAGE, 0, by.sign(usage.text))


def _commit(till: Till, records: list[Record]) -> None:
    done = till.consortium.commit(lambda now_ms: [Record(r.kind, now_ms, r.body) for r in records])
    assert not isinstance(done, Refusal), done


def serve(home: Path) -> None:
    """Until standard input ends."""
    coordinator = Coordinator(home, "127.0.0.1:0", mlflow=NO_MLFLOW)
    began = time.perf_counter()
    coordinator.start()
    _say(
        ready_s=time.perf_counter() - began,
        seat=str(home / "operator"),
        records=coordinator.desk.consortium.size,
    )
    stop = threading.Event()
    for work in (_beat, _add):
        threading.Thread(target=work, args=(coordinator, stop), daemon=True).start()
    sys.stdin.read()
    stop.set()
    coordinator.stop()


def _beat(coordinator: Coordinator, stop: threading.Event) -> None:
    """All sites are connected and train; each beats in its turn."""
    desk = coordinator.desk
    sites = [SiteId(s.name) for s in desk.consortium.charter.sites]
    with ExitStack() as streams:
        for site in sites:
            streams.enter_context(desk.live.stream(site))
        step = 0
        while not stop.is_set():
            step += 1
            for at, site in enumerate(sites):
                loss, speed = 2.2 + at / 100, 9_000.0 + step % 7
                beat = Beat(RUN, ROUNDS_CLOSED + 1, "training", "", step % 50, 50, speed, loss, 40_000 * step)
                desk.live.beat(site, beat)
                if stop.wait(BEAT_S / len(sites)):
                    return


def _add(coordinator: Coordinator, stop: threading.Event) -> None:
    """A hold every second, as rounds make them, and when it was durable."""
    consortium = coordinator.desk.consortium
    card = rate_card_digest(consortium.charter.rate_card)
    while not stop.wait(RECORD_S):
        held = HoldRequest(
            id=f"hold/live/{time.time_ns()}/alder", payer="alder", site="alder", run="live", round=1, amount_micro=1,
            expires_ms=2**52, rate_card=card,
        )  # fmt: skip
        done = consortium.commit(partial(decide_hold, consortium.ledger, [held]))
        assert not isinstance(done, Refusal)
        _say(size=done[0] + 1, at_ms=time.time_ns() / 1e6)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
