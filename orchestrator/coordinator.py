"""The coordinator as a program: opens the stores, serves the wire, drives the runs. Owns nothing but composition.

Home: charter.toml, founding/*.note and log.key are brought along; ca/, operator/ (the operator's seat),
invites/, enrolled.json, journal.db, states/, spool/, mlflow.db and mlartifacts/ are made here; drafts/ if states lie
elsewhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from commons.clock import Clock, SystemClock
from commons.errors import HansaError, Refusal
from commons.names import RunId
from commons.states import StateStore
from commons.views import RunView, View
from commons.wire import channel
from commons.wire.v1.consortium_pb2_grpc import (
    add_ChamberServicer_to_server,
    add_EnrolmentServicer_to_server,
    add_OperatorServicer_to_server,
    add_SiteLinkServicer_to_server,
)
from governance.bell import Bell
from governance.consortium import Consortium
from governance.journal import Journal
from governance.ledger import decide_expire, next_expiry_ms
from governance.moments import Moments
from governance.service import Chamber
from governance.statements.closing import decide_close
from governance.statements.issuing import Statements
from governance.watching import WATCHERS_MAX
from orchestrator.board import run_view
from orchestrator.desk import Desk
from orchestrator.enrolment import Enrolments
from orchestrator.evaluation import finish_run
from orchestrator.experts import experts_view
from orchestrator.home import Home, HomeLock, Served
from orchestrator.live import Live
from orchestrator.outsiders import follow_outsiders
from orchestrator.progress import Runs
from orchestrator.roll import members_view, releases_view
from orchestrator.round import carry_out_votes, run_round
from orchestrator.run_views import LAST, curves_view, now_view, rounds_view
from orchestrator.service import Enrolment, Operator, SiteLink
from orchestrator.spool import Spool
from orchestrator.streams import STREAMS_MAX, Streams
from orchestrator.witnesses import Witnesses

if TYPE_CHECKING:
    from governance.tracking.mirror import Mirror

log = logging.getLogger("hansa.coordinator")

THREADS_PER_SITE = 2 * STREAMS_MAX + 4
"""Uploads and downloads, a work stream, a heartbeat, a witness's stream, its cosignature."""
THREADS_MORE = WATCHERS_MAX + 16
JOINING_MAX = 64
"""Sites that may join while the coordinator runs and have threads of their own; a thread costs nothing until it is used."""
STOP_GRACE_S = 0.5
RETRY_S = 5.0
"""Pause after a disk failed, before the round is taken up again."""
NO_MLFLOW = "none"


class Coordinator:
    """Make it, `start`, `wait`, `stop`. Started again in the same home it goes on where it was."""

    def __init__(
        self,
        home: Path | str,
        listen: str = "127.0.0.1:7443",
        store: str | None = None,
        mlflow: str | None = None,
        *,
        dashboard: str = "",
        states: str | None = None,
        enrolment: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`store`: journal URL, default SQLite in the home. `mlflow`: tracking URI, default SQLite in the home;
        "none": no mirror. `dashboard`: address that runs in MLflow link to. `states`: folder or URL of the model states (`commons.states`), default in the home.
        `enrolment`: its address, default the port after `listen`'s; port 0: any free port."""
        self.home = Path(home)
        self.address, self.enrolment_address = listen, enrolment or _next_port(listen)
        self._store, self._mlflow, self._clock = store, mlflow, clock or SystemClock()
        self._states, self._dashboard = states, dashboard
        self._lock = HomeLock(self.home)
        self._closing = ExitStack()
        self._stopped = threading.Event()
        self._desk: Desk | None = None
        self.invites: list[Path] = []
        self.mirror: Mirror | None = None

    @property
    def desk(self) -> Desk:
        assert self._desk is not None, "the coordinator is started"
        return self._desk

    def start(self) -> None:
        """Open everything and serve; on return both ports answer and the invites are written.

        Raises HansaError naming what is in the way (a charter that does not hold, a port in use, a store that
        another process holds); nothing stays open then.
        """
        try:
            self._start()
        except BaseException:
            self._close()
            raise

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody calls `stop`; False when that takes longer."""
        return self._stopped.wait(timeout_s)

    def stop(self) -> None:
        """Stop within three seconds, whatever is going on; what is durable is enough to go on. Asked twice: nothing."""
        self._close()
        self._stopped.set()

    def _start(self) -> None:
        self._lock.acquire()
        self._closing.callback(self._lock.release)
        home = Home.open(self.home)
        journal = Journal.open(self._store or self.home / "journal.db", signer=home.signer, clock=self._clock)
        self._closing.callback(journal.close)
        consortium = Consortium(journal, self._clock)
        home.found(consortium)
        desk, pulse = self._lay_desk(home, consortium)
        witnesses = Witnesses(consortium, desk.bell, desk.stopping)
        self._serve(home, desk, pulse, witnesses)
        home.write_operator_seat(self.address)
        self._run_thread("runs", lambda: _drive(desk))
        self._run_thread("clerk", lambda: _keep_books(desk))
        self._run_thread("witnesses", witnesses.watch)
        self._run_thread("outsiders", lambda: follow_outsiders(witnesses))
        self._mirror(desk)
        self._closing.callback(self._wake, desk, pulse)

    def _lay_desk(self, home: Home, consortium: Consortium) -> tuple[Desk, Bell]:
        bell, pulse, runs = Bell(), Bell(), Runs()
        consortium.follow(runs, bell, pulse)
        self._desk = Desk(
            consortium=consortium,
            runs=runs,
            live=Live(self._clock, bell, pulse),
            store=StateStore(self._states or self.home / "states", drafts=self.home / "drafts"),
            spool=Spool(self.home / "spool"),
            signer=home.signer,
            bell=bell,
            tokenizer=home.tokenizer,
        )
        return self._desk, pulse

    def _serve(self, home: Home, desk: Desk, pulse: Bell, witnesses: Witnesses) -> None:
        served = home.served()
        sites = len(desk.consortium.charter.sites) + JOINING_MAX
        server = _server(sites * THREADS_PER_SITE + THREADS_MORE, channel.SERVER_OPTIONS, enrolment=False)
        link = SiteLink(desk, witnesses, Streams(desk))
        add_SiteLinkServicer_to_server(link, server)
        channel.add_raw_handlers(server, upload=link.Upload, fetch=link.Fetch)
        more: dict[str, Callable[[str], View | Refusal]] = {
            "run": lambda key: _run_view(desk, witnesses, key),
            "now": lambda key: _now_view(desk, witnesses, key),
            "rounds": lambda key: rounds_view(desk, key),
            "curves": lambda key: curves_view(desk, key),
            "experts": lambda _: experts_view(desk),
            "members": lambda _: members_view(desk, enrolments),
            "releases": lambda _: releases_view(desk),
        }
        enrolments = Enrolments(self.home, desk.consortium, home.authority, home.signer, home.founding)
        statements = Statements(desk.consortium, desk.signer)
        moments = Moments(pulse, desk.bell)
        chamber = Chamber(desk.consortium, moments, desk.stopping, more, witnesses, statements)
        add_ChamberServicer_to_server(chamber, server)
        add_OperatorServicer_to_server(Operator(desk), server)
        door = _server(4, channel.ENROLMENT_OPTIONS, enrolment=True)
        add_EnrolmentServicer_to_server(Enrolment(enrolments), door)
        self.address = _bind(server, self.address, served, mutual=True)
        self.enrolment_address = _bind(door, self.enrolment_address, served, mutual=False)
        self._invite(enrolments)
        self._run_thread("door", lambda: self._keep_inviting(desk, enrolments))
        for one in (server, door):
            one.start()
            self._closing.callback(_stop_server, one)

    def _invite(self, enrolments: Enrolments) -> None:
        self.invites = enrolments.write_invites(address=self.address, enrolment=self.enrolment_address)

    def _keep_inviting(self, desk: Desk, enrolments: Enrolments) -> None:
        """Members and sites that come by a vote find their invites in the home as those of the founding do."""
        version = desk.consortium.charter.version
        while not desk.stopping.is_set():
            strokes = desk.bell.strokes
            try:
                if desk.consortium.charter.version != version:
                    self._invite(enrolments)
                    version = desk.consortium.charter.version
                wait_s = None
            except (HansaError, OSError) as error:
                log.error("invites cannot be written: %s", error)
                wait_s = RETRY_S
            desk.bell.wait_beyond(strokes, wait_s)

    def _mirror(self, desk: Desk) -> None:
        """Start the mirror in its own time: importing MLflow takes seconds, and no round waits for it."""
        if self._mlflow == NO_MLFLOW:
            return
        closed = threading.Event()

        def follow() -> None:
            from governance.tracking.mirror import Mirror

            uri = self._mlflow or f"sqlite:///{(self.home / 'mlflow.db').absolute()}"
            cursor = self.home / "mlflow.cursor"
            mirror = Mirror(desk.consortium, desk.signer, uri, cursor, self._dashboard)
            if not closed.is_set():
                self.mirror = mirror
                mirror.start()

        def close() -> None:
            closed.set()
            if self.mirror is not None:
                self.mirror.close(STOP_GRACE_S)

        self._closing.callback(close)
        threading.Thread(target=follow, name="mlflow", daemon=True).start()

    def _run_thread(self, name: str, work: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        self._closing.callback(thread.join, STOP_GRACE_S)

    def _wake(self, desk: Desk, pulse: Bell) -> None:
        desk.stopping.set()
        desk.store.close()
        desk.bell.ring()
        pulse.ring()

    def _close(self) -> None:
        if self._desk is not None:
            self._desk.stopping.set()
        self._closing.close()


def _drive(desk: Desk) -> None:
    """See every run through, one after the other, until the coordinator stops."""
    first = True
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        with desk.consortium.lock:
            active = desk.runs.active
            run, phase = (active.run, active.phase) if active else (None, "")
            fresh = first or (active is not None and not active.closed)
            taken_up = active is not None and active.open_round is not None
        if run is None:
            desk.bell.wait_beyond(strokes)
            continue
        try:
            if phase == "training":
                closed = run_round(desk, run, first=fresh)
                first = first and (taken_up or not closed)  # one that was open gave sites no time to connect
            else:
                finish_run(desk, run)
            desk.live.trouble = ""
        except Exception as error:  # a failing disk must not end the coordinator: the round stays open
            if desk.stopping.is_set():
                return
            known = isinstance(error, HansaError)
            log.error("run %s is held up: %s", run, error, exc_info=not known)
            desk.live.trouble = str(error)
            desk.stopping.wait(RETRY_S)


def _keep_books(desk: Desk) -> None:
    """What comes due by the clock alone: periods of the books that are over; votes whose window ends, carried out while
    no run goes on; holds and grants that expire."""
    consortium, proposals = desk.consortium, desk.consortium.proposals
    while not desk.stopping.is_set():
        strokes = desk.bell.strokes
        try:
            consortium.commit(lambda now_ms: decide_close(consortium.ledger, now_ms))
            consortium.commit(proposals.decide_close)
            consortium.commit(lambda now_ms: decide_expire(consortium.ledger, now_ms))
            with consortium.lock:
                idle, now_ms = desk.runs.active is None, consortium.now_ms()
                vote_ms = proposals.next_moment_ms(now_ms)
                expiry_ms, period = next_expiry_ms(consortium.ledger), consortium.ledger.period()
            if idle:
                carry_out_votes(desk, None)
            ends = [end for end in (vote_ms, expiry_ms, period.end_ms if period else None) if end is not None]
            wait_s = max(0.1, (min(ends) - now_ms) / 1000) if ends else None
        except HansaError as error:
            log.error("the books cannot be kept: %s", error)
            wait_s = RETRY_S
        desk.bell.wait_beyond(strokes, wait_s)


def _run_view(desk: Desk, witnesses: Witnesses, key: str, last: int = 0) -> RunView | Refusal:
    run = desk.runs.find(key)
    if isinstance(run, Refusal):
        return run
    consortium = desk.consortium
    view = run_view(
        run,
        charters=consortium.members.charters,
        ledger=consortium.ledger,
        live=desk.live,
        noised=desk.runs.noised,
        journal_size=consortium.size,
        last=last,
    )
    return view if view.reason else view.model_copy(update={"reason": witnesses.trouble()})


def _now_view(desk: Desk, witnesses: Witnesses, key: str) -> View | Refusal:
    view = _run_view(desk, witnesses, key, LAST)
    return view if isinstance(view, Refusal) else now_view(desk.runs.by_id[RunId(view.run)], view)


def _server(threads: int, options: list[tuple[str, int]], *, enrolment: bool) -> grpc.Server:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="wire")
    return grpc.server(pool, interceptors=[channel.Authz(enrolment=enrolment)], options=options)


def _stop_server(server: grpc.Server) -> None:
    server.stop(STOP_GRACE_S / 2).wait(STOP_GRACE_S)


def _bind(server: grpc.Server, address: str, served: Served, *, mutual: bool) -> str:
    """Bind and give the address as it is reachable here. Raises HansaError when the port is taken."""
    credentials = channel.server_credentials(
        tls_key=served.tls_key, certificate=served.certificate, authority=served.authority, mutual=mutual
    )
    host, _, port = address.rpartition(":")
    try:
        bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise HansaError(
            f"cannot listen on {address}: port {port} is in use or not allowed; stop the program that holds it, "
            "or start the coordinator with another --listen"
        )
    return f"{host}:{bound}"


def _next_port(listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_534:
        raise HansaError(f"{listen!r} is no address to listen on; write HOST:PORT, like 127.0.0.1:7443")
    return f"{host}:{int(port) + 1 if int(port) else 0}"
