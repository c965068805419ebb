"""A site: it asks for its order, checks it, trains, and hands in what it signed. START HERE: `_Site.carry_out`.

Nothing depends on one message arriving: the order in force is looked at again whenever it is heard, and a finished
round is on disk before it is sent. So a site may be killed at any point; started again it goes on, and sends the
same bytes. Owns the loop and what the operator reads of it; torch stays in the actor's process.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal, NoReturn

from commons import charter_file
from commons.chain import LACKS, VerifiedCharter
from commons.clock import SystemClock
from commons.errors import Code, ConfigError, HansaError, Refusal, Refused, Unreachable
from commons.experts.tokenizer import FILE
from commons.identity import Seat, load_signer
from commons.lodging import LodgedBallot
from commons.notes import NoteError, Signer, parse
from commons.states import StateStore
from commons.work import AssignmentNote
from workers.allowance import Allowance
from workers.backoff import pauses
from workers.computing import Computing
from workers.data import Corpus, CorpusError
from workers.home import alone_in
from workers.link import Directive, Link
from workers.lodging import LodgedFolder, lodge
from workers.masks import SiteMasks
from workers.meter import Meter
from workers.outbox import Outbox, Sealed
from workers.policy import allowed
from workers.site_file import SiteFile
from workers.spending import Spending
from workers.status import Status
from workers.training import Abandoned, Begin, Interrupted, Training
from workers.verify import Order, Verification
from workers.witness import SiteWitness

log = logging.getLogger("hansa.site")

ASK_AGAIN_S = 10.0
"""How long a site that refused an order waits before it checks the same order again."""
UNWITNESSED_S = 2.0
"""The same when only witnesses lack."""
SPENT = "privacy.json"
"""In the site's home: its secret for noise, and what it has sent under it."""


def run_site(file: SiteFile, stop: threading.Event, begin: Begin | None = None) -> None:
    """Be the site of `file` until `stop` is set; a stop takes effect within three seconds.

    `begin` starts what trains, by default an actor in the file's Ray. Raises ConfigError when seat or text cannot be
    used, StoreError when another process is this site already. A lost coordinator, a refused order or a dead training
    process end nothing.
    """
    seat, signer = _seat(file)
    _check_text(file, seat)
    with alone_in(file.home):
        status, store = Status(), StateStore(file.home / "model", durable=False)
        outbox = Outbox(file.home / "outbox")
        spending = Spending(file.home / SPENT, file.policy.epsilon_max)
        verification = Verification(seat, file.policy, file.home / "verified.json", SystemClock(), spending)
        link = Link(seat, status, store, parts=file.home / "parts", stop=stop)
        status.enter("idle", "training is starting")
        run, number = outbox.latest()
        log.info("site %s of %s starts; last finished round: %s", file.name, file.partner, number or "none")
        witness = SiteWitness(signer, seat.log_verifier, file.home, SystemClock())
        link.open(run=run, round_number=number)
        link.witness(witness)
        allowance = Allowance(file.home / "topups.json", file.policy.max_charge_micro_per_round, link.top_up)
        meter = Meter(file.home / "meter.json")
        masks = SiteMasks(link.mask, signer, seat.log_verifier, file.home / "masking", stop)
        try:
            with (begin or _in_ray)(file, stop) as trainer:
                computing = Computing(
                    link, status, store, outbox, trainer, meter, allowance, signer, masks, spending, stop,
                    file.home / FILE,
                )  # fmt: skip
                _Site(link, status, outbox, verification, computing, masks, witness, stop).work()
        except Interrupted:
            log.info("stopped while Ray was starting")
        finally:
            stop.set()
            link.close()
            log.info("site %s stopped", file.name)


def _in_ray(file: SiteFile, stop: threading.Event) -> AbstractContextManager[Training]:
    from workers.actor import in_ray  # takes seconds; the link is open meanwhile

    return in_ray(file, stop)


def lodge_at_site(file: SiteFile, note: bytes) -> tuple[LodgedBallot, str]:
    """Keep a member's ballot, hand it to the coordinator, and say so: what the site signed, and what the coordinator said.

    Raises Refused when it is no ballot of a member, HansaError when nothing more can be kept.
    """
    seat, signer = _seat(file)
    stop = threading.Event()
    link = Link(
        seat, Status(), StateStore(file.home / "model", durable=False), parts=file.home / "parts", stop=stop
    )
    try:
        charter = charter_file.from_canonical(seat.charter)
        folder = LodgedFolder(file.home / "lodged")
        return lodge(note, charter, signer, folder, link.submit, SystemClock().now_ms())
    finally:
        stop.set()
        link.close()


def verify_site(file: SiteFile) -> VerifiedCharter:
    """Check the consortium once as the site does before training, and the owner's policy; remembers it like the site.

    Raises Refused naming the step that failed, Unreachable.
    """
    seat, signer = _seat(file)
    stop = threading.Event()
    link = Link(
        seat, Status(), StateStore(file.home / "model", durable=False), parts=file.home / "parts", stop=stop
    )
    try:
        witness = SiteWitness(signer, seat.log_verifier, file.home, SystemClock())
        if witness.fork:
            raise Refused(Refusal(Code.LOG_FORKED, witness.fork))
        link.witness(witness)
        spending = Spending(file.home / SPENT, file.policy.epsilon_max)
        verification = Verification(seat, file.policy, file.home / "verified.json", SystemClock(), spending)
        verified = verification.charter(link.chain, whole=True)
    finally:
        stop.set()
        link.close()
    if isinstance(verified, Refusal):
        raise Refused(verified)
    if refusal := verification.forbids(verified.charter):
        raise Refused(refusal)
    policy = f"13 policy: {allowed(file.policy, verified.charter)}"
    return replace(verified, steps=(*verified.steps, policy))


class _Site:
    def __init__(
        self,
        link: Link,
        status: Status,
        outbox: Outbox,
        verification: Verification,
        computing: Computing,
        masks: SiteMasks,
        witness: SiteWitness,
        stop: threading.Event,
    ) -> None:
        self._link, self._status, self._outbox = link, status, outbox
        self._verification, self._computing, self._masks = verification, computing, masks
        self._witness, self._stop = witness, stop
        self._said_of: dict[tuple[str, int, str], bytes] = {}
        self._said = ""

    def carry_out(self, data: bytes) -> None:
        """One order, from note to receipt. Done before, it is only handed in again."""
        claimed = _claimed(data)
        self._status.set(
            state="verifying",
            why="",
            run=claimed.run,
            round=claimed.round,
            step=0,
            steps=0,
            tokens_per_s=0.0,
            loss=None,
        )
        if self._witness.fork:
            raise _RefusedHere(Refusal(Code.LOG_FORKED, self._witness.fork))
        order = self._verification.order(data, self._link.chain)
        if isinstance(order, Refusal):
            raise _Unwitnessed(order) if LACKS in order.details else _RefusedHere(order)
        if order.note.work != "train":
            self._measure(order)
            return
        self._masks.begin(order)
        sealed = self._outbox.find(order.note) or self._computing.train(order)
        self._upload(order, sealed)
        self._computing.anticipate(order, sealed)

    def work(self) -> None:
        """Carry out whatever is ordered, until stopped."""
        seen, again_s, waits = 0, None, pauses()
        while not self._stop.is_set():
            directive = self._link.directive(after=seen, timeout_s=1.0 if again_s is None else again_s)
            if directive is None and again_s is not None:
                directive = self._link.latest
            if directive is None:
                self._idle_if_alone()
                continue
            seen = directive.number
            again_s = self._handle(directive, next(waits))
            if again_s is None:
                waits = pauses()

    def _handle(self, directive: Directive, pause_s: float) -> float | None:
        """Carry a directive out; the seconds after which to try it again, None when there is nothing to try."""
        try:
            if directive.order is None:
                self._status.enter("idle", directive.reason)
                self._say(logging.INFO, directive.reason or "waiting for an order")
                self._masks.resume(lambda data: self._verification.order(data, self._link.chain))
            else:
                self.carry_out(directive.order)
                self._said = ""
            return None
        except Abandoned:
            if not self._stop.is_set():
                self._status.enter("idle", "the coordinator no longer wants this round")
                log.info("left round %s: the coordinator no longer wants it", self._status.now.round)
            return None
        except Refused as error:
            self._trouble("idle", f"the coordinator refused: {error}")
            return pause_s if error.refusal.code is Code.EPOCH_STALE else ASK_AGAIN_S
        except Unreachable as error:
            if not self._stop.is_set():
                self._trouble("idle", f"waiting for coordinator: {error}")
            return pause_s
        except _Unwitnessed as error:
            self._trouble("verifying", str(error))
            return min(pause_s, UNWITNESSED_S)
        except HansaError as error:
            self._trouble("refused", str(error))
            return ASK_AGAIN_S

    def _upload(self, order: Order, sealed: Sealed) -> None:
        self._status.enter("uploading")
        if order.charter.privacy.mode in ("secagg", "dp"):
            # The same masks must never hide two different updates, nor two noises the same one.
            sealed.secure()
        with ThreadPoolExecutor(1, thread_name_prefix="secure") as beside:
            secured = beside.submit(sealed.secure)
            index = self._link.upload(sealed, run=order.note.run, round_number=order.note.round)
            secured.result()
        what = "was admitted before" if index is None else f"is admitted, record {index} of the journal"
        log.info("round %d: the update %s", order.note.round, what)
        self._status.enter("idle", "waiting for the round to close")

    def _measure(self, order: Order) -> None:
        """The final state on this site's held-out text, or a round's on the probe; measured before, said again."""
        probe, asked = order.note.work == "probe", (order.note.work, order.note.round, order.note.base)
        if asked not in self._said_of:
            note = self._computing.probe(order) if probe else self._computing.evaluate(order)
            self._said_of = {asked: note}
        self._status.enter("uploading")
        self._link.evaluated(self._said_of[asked])
        self._status.enter("idle", "measured; waiting for the round to close" if probe else "evaluated")

    def _idle_if_alone(self) -> None:
        if self._status.now.state == "idle" and self._witness.fork:
            self._status.enter("refused", self._witness.fork)
        elif self._status.now.state == "idle" and self._link.trouble:
            self._status.enter("idle", self._link.trouble)

    def _trouble(self, state: Literal["idle", "refused", "verifying"], why: str) -> None:
        self._status.set(state=state, why=why)
        self._say(logging.WARNING, why)

    def _say(self, level: int, text: str) -> None:
        """Log it unless it is what was said last: an order tried again and again makes one line."""
        if text != self._said:
            log.log(level, "%s", text)
            self._said = text


class _RefusedHere(HansaError):
    """This site refuses the order; it checks it again later."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))


class _Unwitnessed(_RefusedHere):
    """Too few witnesses have seen the journal yet; the others may come any moment."""


def _claimed(data: bytes) -> AssignmentNote:
    """What an order says of itself, so that heartbeats name the round that is being checked, or refused."""
    try:
        return AssignmentNote.from_note(parse(data))
    except NoteError as error:
        raise _RefusedHere(Refusal(Code.NOTE_MALFORMED, f"the order cannot be read: {error}")) from error


def _seat(file: SiteFile) -> tuple[Seat, Signer]:
    seat, signer = Seat.load(file.seat), load_signer(file.key)
    if (seat.subject.role, seat.subject.partner, seat.subject.site) != ("site", file.partner, file.name):
        _wrong(file, f"its seat speaks for {seat.subject}, the file names site {file.name} of {file.partner}")
    if signer.name != f"{file.partner}/{file.name}":
        _wrong(
            file, f"{file.key} is the key of {signer.name}, the file names site {file.name} of {file.partner}"
        )
    return seat, signer


def _check_text(file: SiteFile, seat: Seat) -> None:
    """Read the text once before anything starts, so that a mistake shows now and not in the first round."""
    try:
        length = charter_file.from_canonical(seat.charter).learning.sequence_length
        for path in filter(None, (file.text, file.public)):
            Corpus.load(path, sequence_length=length)
    except CorpusError as error:
        _wrong(file, str(error))


def _wrong(file: SiteFile, what: str) -> NoReturn:
    raise ConfigError([f"{file.path}: {what}"])
