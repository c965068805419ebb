"""What sites can do to the coordinator with requests: get an answer, or a refusal by code, while the rounds go on.

Sites that are honest in the end send mutated requests before they hand in, straight to the servicer, without sockets.
`python -m tests.support.fuzz_services EXECUTIONS [SEED]` does so, three of four executions being documents for the decoders
(`fuzz_decoders`), and tells what came of them, how many there were in a second, and what they took of memory.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from google.protobuf.message import DecodeError

from commons.errors import Code
from commons.names import SiteId
from commons.notes import parse
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import EvaluationNote
from orchestrator.board import run_view
from orchestrator.evaluation import finish_run
from orchestrator.intake import RECORDED
from orchestrator.streams import STREAMS_MAX
from tests.support import fuzz_decoders
from tests.support.consortium import SITES, charter, signer
from tests.support.hostile_uploads import Packed, hostile
from tests.support.mutations import message, number
from tests.support.rounds import RUN, Died, Stage
from tests.support.servicer import Aborted, Port

ROUNDS = 9
"""Of a run of `Stage`."""
MEMORY = Path("/dev/shm")
"""Where a disk costs nothing: syncs are not what is tried here."""


class Box:
    """One run of three sites, each round of it disturbed. Raises AssertionError when something is not as it must be."""

    def __init__(self, folder: Path, random: Random, counts: Counter[str]) -> None:
        self.random, self.counts = random, counts
        self.stage = Stage(folder, charter(rounds__quorum=1, accounting={"topups": 3}))
        self.port = Port(self.stage)
        self.before: dict[str, Packed] = {}
        """What each site handed in last."""
        self.left = 0
        self._present = ExitStack()

    def run(self, executions: int) -> int:
        """So many, or until the run is over; how many there were."""
        self.left = executions
        for _ in range(ROUNDS):
            if self.left <= 0:
                break
            try:
                assert self.stage.play(self._round), "a round closes"
            except Died:
                raise AssertionError("the round did not close with all sites' updates") from None
            self._check_closed()
        else:
            self._end()
        return executions - self.left

    def close(self) -> None:
        self._present.close()
        self.stage.close()

    def _round(self) -> None:
        """Sites disturb until two of them are admitted or rejected; then all that still can hand in what is right."""
        self.stage.passes(5000)
        packed = {site: Packed.of(self.stage, site) for site in SITES}
        for _ in range(200):
            if self.left <= 0 or len(self._waiting()) < 2:
                break
            self._once(self.random.choice(SITES), packed)
        for site in SITES:
            if site in self._waiting():
                self._hand_in(site, packed[site])
        self.before = packed

    def _once(self, site: str, packed: dict[str, Packed]) -> None:
        self.left -= 1
        name, request = self.random.choice(_REQUESTS)
        try:
            came = request(self, site, packed)
        except DecodeError:
            came = "unreadable"  # gRPC answers that itself
        except Aborted as refused:
            came = str(refused)
        self.counts[f"{name} {came}"] += 1
        self._check_rest(packed)

    def _hand_in(self, site: str, packed: Packed) -> None:
        """As a site does that knows nothing of what was sent in its name: asks where it stands, then sends the rest.

        When the beginning of a frame that came before is not its own, it is told so once.
        """
        for attempt in range(2):
            try:
                assert self.port.hand_in(site, packed), "the right update is admitted"
                return
            except Aborted as refused:
                assert str(refused) == Code.UPDATE_DIGEST_MISMATCH and not attempt, refused
                self.counts["round resumed on other bytes"] += 1

    def upload(self, site: str, packed: dict[str, Packed]) -> str:
        if self.before and self.random.random() < 0.1:
            packed = self.before
        messages = hostile(self.random, site, packed)
        return "admitted" if self.port.send(site, messages) else "one lane taken"

    def position(self, site: str, packed: dict[str, Packed]) -> str:
        mine, lanes = packed[site], self.random.randint(0, 9)
        asked = wire.UploadKey(run=RUN, round=mine.order.round, update=mine.key, lanes=lanes)
        reply = self.port.link.UploadOffset(self._wrong(asked), self.port.call(site))
        assert sum(reply.offsets) <= len(packed[site].payload)
        return "answered"

    def fetch(self, site: str, packed: dict[str, Packed]) -> str:
        desk = self.stage.desk
        state = desk.runs.by_id[RUN].state
        blobs = desk.store.manifest(state)
        digests = [state, *self.random.sample([b.digest for b in blobs.values()], 3)]
        sizes = {b.digest: b.bytes for b in blobs.values()} | {state: len(desk.store.read(state))}
        asked = wire.FetchRequest(
            digests=digests, offset=self.random.choice((0, 1, 5000, number(self.random)))
        )
        data = message(self.random, asked)
        frames = self.port.link.Fetch(data, self.port.call(site))
        if self.random.random() < 0.2:  # the site hangs up
            next(frames, None)
            frames.close()  # type: ignore[attr-defined]
            return "left"
        came = sum(map(len, frames))
        read = wire.FetchRequest.FromString(data)
        assert came == max(0, sum(sizes[d] for d in read.digests) - read.offset)
        return "answered"

    def work(self, site: str, packed: dict[str, Packed]) -> str:
        asked = wire.WorkRequest(run=RUN, round=1, expert_map=self.stage.map.digest)
        directives = self.port.link.Work(self._wrong(asked), self.port.call(site))
        said = next(directives)
        directives.close()  # type: ignore[attr-defined]
        self._present.enter_context(self.stage.desk.live.stream(SiteId(site)))
        assert said.assignment.note or said.wait.reason
        return "answered"

    def beat(self, site: str, packed: dict[str, Packed]) -> str:
        beat = wire.Beat(
            run=RUN, round=1, state="idle", step=2, steps=4, tokens_per_s=9.0, loss=math.nan, bytes_up=9
        )
        self.port.link.Heartbeat(self._wrong(beat), self.port.call(site))
        desk = self.stage.desk
        view = run_view(
            desk.runs.by_id[RUN],
            charters=desk.consortium.members.charters,
            ledger=desk.consortium.ledger,
            live=desk.live,
            noised=desk.runs.noised,
            journal_size=desk.consortium.size,
        )
        json.loads(view.model_dump_json(), parse_constant=_no_number)
        self.port.link.Heartbeat(wire.Beat(state="idle"), self.port.call(site))
        return "answered"

    def top_up(self, site: str, packed: dict[str, Packed]) -> str:
        order = packed[site].order
        asked = wire.TopUpRequest(run=RUN, round=order.round, lease=order.lease, number=1, amount_micro=5)
        self.port.link.TopUp(self._wrong(asked), self.port.call(site))
        return "answered"

    def evaluate(self, site: str, packed: dict[str, Packed]) -> str:
        note = fuzz_decoders.signed(self.random, self._evaluation(site).text, signer(f"{site}/{site}"))
        self.port.link.Evaluate(self._wrong(wire.NoteRequest(note=note)), self.port.call(site))
        return "answered"

    def cosign(self, site: str, packed: dict[str, Packed]) -> str:
        line = parse(packed[site].upload.update).signatures[0].line
        self.port.link.Cosign(self._wrong(wire.CosignRequest(size=3, line=line)), self.port.call(site))
        return "answered"

    def restart(self, site: str, packed: dict[str, Packed]) -> str:
        """What a new process knows: what is on disk."""
        self.stage.desk.spool._held.clear()
        self.port = Port(self.stage)
        return "done"

    def _wrong(self, honest: Any) -> Any:
        return type(honest).FromString(message(self.random, honest))

    def _evaluation(self, site: str) -> EvaluationNote:
        entry = self.stage.of.site(SiteId(site))
        assert entry is not None
        return EvaluationNote(
            consortium=self.stage.of.consortium.name, run=RUN, site=site, state=self.stage.desk.runs.by_id[RUN].state,
            domain=entry.domain, bytes=9, loss=2.0,
        )  # fmt: skip

    def _waiting(self) -> tuple[str, ...]:
        opened = self.stage.desk.runs.by_id[RUN].open_round
        return tuple(opened.waiting) if opened else ()

    def _check_rest(self, packed: dict[str, Packed]) -> None:
        """No stream is left open; on disk is at most one update of each site, in memory at most a frame of each lane."""
        until = time.monotonic() + 30
        while (
            any(self.port.streams._open.values()) or self.port.streams._newest
        ):  # a refused stream's worker may just be ending
            assert time.monotonic() < until, "a stream is left open"
            time.sleep(0)
        for site in SITES:
            files = [f for f in self.stage.desk.spool._root.glob("*/*/*") if f.name.startswith(f"{site}.")]
            parts = [f.stat().st_size for f in files if f.suffix == ".part"]
            assert len(files) - len(parts) <= 1 and len(parts) <= STREAMS_MAX, files
            assert sum(parts) <= len(packed[site].payload)
            tails = [len(tail.data) for (of, _), tail in self.port.streams._tails.items() if of == site]
            assert len(tails) <= STREAMS_MAX and max(tails, default=0) < 1 << 20
        for site, (_, claim) in self.port.streams._claims.items():
            most = 2 * len(packed[site].upload.manifest)
            assert len(claim.upload.manifest) < most, "a claim that was not in order is kept"

    def _check_closed(self) -> None:
        desk = self.stage.desk
        closed = desk.runs.by_id[RUN].history[-1]
        assert closed.state and set(closed.admitted) | set(closed.rejected) == set(SITES)
        for why in closed.rejected.values():
            assert why.code in RECORDED, why
            self.counts[f"round rejected {why.code}"] += 1
        assert not list(desk.spool._root.glob("*/*/*"))
        spare = [file.stat().st_size for file in desk.spool._root.glob(".spare/*")]
        assert sum(spare) <= sum(len(packed.payload) for packed in self.before.values()), (
            "more than the round took"
        )
        assert all(math.isfinite(float(abs(t).max())) for t in desk.store.load(closed.state).values())

    def _end(self) -> None:
        """The run's last state is evaluated."""
        for site in SITES:
            for _ in range(20):
                with suppress(Aborted, DecodeError):
                    self.evaluate(site, {})
            honest = wire.NoteRequest(note=signer(f"{site}/{site}").sign(self._evaluation(site).text))
            with suppress(Aborted):  # one that was wrong may have been taken before it
                self.port.link.Evaluate(honest, self.port.call(site))
        finish_run(self.stage.desk, RUN)
        assert self.stage.desk.runs.by_id[RUN].finished == "finished"
        self.left -= 20 * len(SITES)


Request = Callable[[Box, str, dict[str, Packed]], str]
_REQUESTS: tuple[tuple[str, Request], ...] = (
    *(("upload", Box.upload),) * 6,
    ("upload position", Box.position),
    ("fetch", Box.fetch),
    ("work", Box.work),
    ("heartbeat", Box.beat),
    ("top-up", Box.top_up),
    ("evaluate", Box.evaluate),
    ("cosign", Box.cosign),
    ("restart", Box.restart),
)


def disturb(executions: int, seed: int, counts: Counter[str]) -> None:
    """So many requests, over as many runs as they take."""
    random, left = Random(seed), executions
    while left > 0:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            box = Box(Path(folder), random, counts)
            left -= box.run(left)
            box.close()


def decode(executions: int, seed: int, counts: Counter[str]) -> None:
    random = Random(seed)
    for _ in range(executions):
        counts[fuzz_decoders.one(random)] += 1


def _no_number(text: str) -> NoReturn:
    raise AssertionError(f"{text} stands in a view, which is no JSON")


def tell(run: Callable[[int, int, Counter[str]], None]) -> None:
    """Run as many executions as the command line says, from its seed, and print what came of them."""
    executions = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    logging.disable(logging.CRITICAL)
    counts: Counter[str] = Counter()
    began, before, batch = time.monotonic(), 0, max(1, executions // 20)
    for done in range(0, executions, batch):
        run(batch, seed + done, counts)
        taken_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = before if done else taken_kib
        print(f"{done + batch} executions, peak {taken_kib >> 10} MiB", file=sys.stderr, flush=True)
    took_s = time.monotonic() - began
    for what, times in sorted(counts.items()):
        print(f"{times:9} {what}")
    print(
        f"{executions} executions, {executions / took_s:.0f}/s, memory grew {taken_kib - before} KiB after the first twentieth"
    )


def both(executions: int, seed: int, counts: Counter[str]) -> None:
    decode(executions - executions // 4, seed, counts)
    disturb(executions // 4, seed, counts)


if __name__ == "__main__":
    tell(both)
