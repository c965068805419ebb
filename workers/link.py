"""The site's link to the coordinator: its orders, heartbeats, downloads and uploads.

Orders arrive on a stream that reconnects by itself. Downloads and uploads (`workers.fetching`, `workers.sending`) go on
by themselves where their line broke; every other call is one attempt that can be repeated, and the caller decides when.
Knows nothing of what an order means.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from commons.chain import Wanted
from commons.errors import HansaError, Refused, Unreachable
from commons.experts.tokenizer import Tokenizer, check
from commons.identity import Seat, write_file
from commons.names import Digest
from commons.states import StateStore
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import ChamberStub, SiteLinkStub
from commons.work import AssignmentNote
from workers.backoff import pauses
from workers.calls import Calls, begun
from workers.fetching import Fetching
from workers.lines import Lines
from workers.outbox import Sealed
from workers.sending import Sending
from workers.status import Status
from workers.verify import Chain
from workers.witness import SiteWitness

log = logging.getLogger("hansa.site")

BEAT_S = 1.0
RECONNECT_S = 2.0
"""Longest pause before a lost coordinator is called again."""
TOP_UP_S = 3.0


@dataclass(frozen=True)
class Directive:
    """What the coordinator wants of this site, as last heard."""

    number: int
    """Counts what was heard, from 1: a repeated order has a new number."""
    epoch: int
    order: bytes | None
    """A hansa-assignment/v1 note; None: nothing to do."""
    reason: str = ""
    finished: bool = False


class Link:
    """Threads: one follows the order stream, one beats. `close` ends them and every call under way."""

    def __init__(
        self, seat: Seat, status: Status, store: StateStore, *, parts: Path, stop: threading.Event
    ) -> None:
        self.address = seat.address
        self._status, self._store, self._parts, self._stop = status, store, parts, stop
        self._channel = channel.connect(seat)
        self._calls = Calls(seat.address, stop)
        self._lines = Lines(seat, self._channel, self._calls)
        self._sending = Sending(self._calls, self._lines, status, lambda: self._epoch)
        self._fetching = Fetching(self._calls, self._lines, status, store, parts)
        self._site, self._chamber = SiteLinkStub(self._channel), ChamberStub(self._channel)
        self._heard = threading.Condition()
        self._directive: Directive | None = None
        self._unwanted: tuple[str, int] | None = None
        self.trouble = ""
        """Why the coordinator gives no orders now; empty while it does."""

    def open(self, *, run: str, round_number: int) -> None:
        """Begin to follow orders and to beat. `run`, `round_number`: the last result this site holds."""
        self._parts.mkdir(parents=True, exist_ok=True)
        request = wire.WorkRequest(run=run, round=round_number)
        for name, work in (
            ("orders", lambda: self._follow(request)),
            ("heartbeat", self._beat),
            ("end", self._end),
        ):
            threading.Thread(target=work, name=f"link-{name}", daemon=True).start()

    def witness(self, witness: SiteWitness) -> None:
        """Begin to have checkpoints cosigned as they are offered."""
        threading.Thread(
            target=self._follow_offers, args=(witness,), name="link-witness", daemon=True
        ).start()

    def close(self) -> None:
        self._lines.close()
        self._channel.close()

    def directive(self, *, after: int, timeout_s: float) -> Directive | None:
        """The latest directive once its number is above `after`; None when `timeout_s` pass without one."""
        with self._heard:
            self._heard.wait_for(lambda: self._number > after or self._stop.is_set(), timeout_s)
            return self._directive if self._number > after else None

    @property
    def latest(self) -> Directive | None:
        return self._directive

    def unwanted(self, run: str, round_number: int) -> bool:
        """Whether the coordinator has answered a heartbeat that it no longer wants this round's work."""
        return self._unwanted == (run, round_number)

    def chain(self, wanted: Wanted) -> Chain:
        """Records and proofs from the founding to the charter in force. Raises Refused, Unreachable."""
        request = wire.ChainRequest(
            have_size=wanted.have_size, known_version=wanted.known_version, whole=wanted.whole
        )
        shown = self._calls.ask(self._chamber.Chain, request)
        entries = tuple((entry.index, entry.leaf, tuple(entry.path)) for entry in shown.entries)
        return Chain(entries, shown.checkpoint, tuple(shown.consistency), shown.shown)

    def submit(self, note: bytes) -> int:
        """Hand in a member's note, or the site's word on one; its journal index. Raises Refused, Unreachable."""
        return int(self._calls.ask(self._chamber.Submit, wire.NoteRequest(note=note)).index)

    def evaluated(self, note: bytes) -> int:
        """Hand in an evaluation note; its journal index. A repeat has the same answer."""
        return int(self._calls.ask(self._site.Evaluate, wire.NoteRequest(note=note)).index)

    def top_up(self, order: AssignmentNote, n: int, amount_micro: int) -> None:
        """Have that much more held for the order's round; `n` from 1 names the top-up, and asked twice it is one.

        Raises Refused with the coordinator's reason, Unreachable after a few seconds: training waits meanwhile.
        """
        request = wire.TopUpRequest(
            run=order.run, round=order.round, lease=order.lease, number=n, amount_micro=amount_micro
        )
        self._calls.ask(self._site.TopUp, request, timeout_s=TOP_UP_S)

    def mask(self, request: wire.MaskRequest) -> wire.MaskView:
        """Say a word of secure aggregation, and see what was said since. Raises Refused, Unreachable."""
        return self._calls.ask(self._site.Mask, request)  # type: ignore[no-any-return]

    def fetch(self, state: Digest, names: Iterable[str]) -> None:
        """Bring the manifest of `state` and its slices `names` into the store; what is there is not asked for, and a
        slice whose base is there is built from its step.

        Raises Unreachable when no byte comes for a minute (what came stays, a repeat goes on at that byte), Refused,
        StoreError when bytes do not have their digest or the disk is full.
        """
        if not self._store.has(state):
            self._fetching.manifest(state)
        manifest = self._store.manifest(state)
        lacking = [name for name in names if name not in manifest]
        if lacking:
            raise HansaError(
                f"state {state} lacks {lacking[0]} and {len(lacking) - 1} more slices the expert map has"
            )
        self._fetching.slices([manifest[name] for name in names])

    def tokenizer(self, wanted: Tokenizer, path: Path) -> None:
        """Have the charter's tokenizer at `path`; what lies there already is for its reader to check.

        Raises as `fetch` does, HansaError when the coordinator has another one.
        """
        if not wanted.file or path.exists():
            return
        data = self._fetching.file(Digest(wanted.file), wanted.bytes)
        check(data, wanted, "what the coordinator sent", "its operator puts the charter's into its home")
        write_file(path, data)

    def upload(self, sealed: Sealed, *, run: str, round_number: int) -> int | None:
        """Send a sealed round from where the coordinator has it; its journal index, None when admitted before.

        Raises Refused with the coordinator's reason, Unreachable when no byte arrives for a minute, StoreError when
        the payload cannot be read: a repeat goes on.
        """
        return self._sending.send(sealed, run=run, round_number=round_number)

    @property
    def _epoch(self) -> int:
        return self._directive.epoch if self._directive else 0

    @property
    def _number(self) -> int:
        return self._directive.number if self._directive else 0

    def _follow(self, request: wire.WorkRequest) -> None:
        waits = pauses(longest_s=RECONNECT_S)
        while not self._stop.is_set():
            try:
                call = begun(self._site.Work, request)
                with self._calls.under_way(call):
                    for message in call:
                        self._take(message)
                        waits = pauses(longest_s=RECONNECT_S)
                trouble: HansaError = Unreachable(f"the coordinator at {self.address} ended the order stream")
            except HansaError as error:
                trouble = error
            if self._stop.is_set():
                return
            self._troubled(trouble)
            self._stop.wait(next(waits))

    def _take(self, message: wire.Directive) -> None:
        if self.trouble or not self._directive:
            log.info("connected to the coordinator at %s", self.address)
        kind = message.WhichOneof("what")
        order = message.assignment.note if kind == "assignment" else None
        with self._heard:
            self.trouble, self._unwanted = "", None
            self._directive = Directive(
                self._number + 1, message.epoch, order, message.wait.reason, message.wait.finished
            )
            self._heard.notify_all()

    def _troubled(self, trouble: HansaError) -> None:
        """Say it once per kind of trouble, not at every attempt."""
        state = "refused" if isinstance(trouble, Refused) else "waiting for coordinator"
        text = f"{state}: {trouble}"
        if text != self.trouble:
            log.warning("%s; calling again every %.0f s", text, RECONNECT_S)
        self.trouble = text

    def _follow_offers(self, witness: SiteWitness) -> None:
        waits, told = pauses(longest_s=RECONNECT_S), ""
        while not self._stop.is_set():
            try:
                call = begun(self._site.Witness, wire.WitnessRequest(size=witness.size))
                with self._calls.under_way(call):
                    for offer in call:
                        answer = witness.cosign(offer.old, tuple(offer.consistency), offer.checkpoint)
                        if answer is None:
                            call.cancel()  # the next stream begins at what this site did cosign
                            break
                        size, line = answer
                        self._calls.ask(self._site.Cosign, wire.CosignRequest(size=size, line=line))
                        waits, told = pauses(longest_s=RECONNECT_S), ""
            except HansaError as error:
                # The order stream tells of a lost coordinator; what concerns the witness alone is told here.
                if not isinstance(error, Unreachable) and str(error) != told and not self._stop.is_set():
                    told = str(error)
                    log.warning("this site is no witness now: %s", told)
            self._stop.wait(next(waits))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            now = self._status.now
            beat = wire.Beat(
                epoch=self._epoch,
                run=now.run,
                round=now.round,
                state=now.state,
                why=now.why,
                step=now.step,
                steps=now.steps,
                tokens_per_s=now.tokens_per_s,
                loss=math.nan if now.loss is None else now.loss,
                bytes_up=now.bytes_up,
                bytes_down=now.bytes_down,
                model_bytes=now.model_bytes,
            )
            with contextlib.suppress(HansaError):  # the order stream tells of a lost coordinator
                if self._calls.ask(self._site.Heartbeat, beat, timeout_s=3.0).stop:
                    self._unwanted = (now.run, now.round)

    def _end(self) -> None:
        self._stop.wait()
        self._calls.cancel()
        with self._heard:
            self._heard.notify_all()
