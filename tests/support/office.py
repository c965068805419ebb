"""The coordinator's chamber as a dashboard's office, in one process: real rules, a real journal, a clock to set."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.middleware import Middleware
from starlette.routing import BaseRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from commons.certificates import Subject
from commons.charter import Charter
from commons.errors import Code, Refusal, Refused
from commons.log import open_proof, proof_text
from commons.roll_views import MembersView, MemberView
from commons.views import View
from commons.wire.v1 import consortium_pb2 as wire
from governance.bell import Bell
from governance.consortium import Consortium
from governance.dashboard.app import dashboard
from governance.dashboard.office import Receipt
from governance.dashboard.viewer import Role, Viewer
from governance.journal import Journal
from governance.ledger import decide_grants
from governance.moments import Moments
from governance.service import Chamber
from governance.statements.issuing import Statements
from hansa.chamber import VIEWS
from tests.support.chamber import LOG, charter, founding_notes, proposal, sign
from tests.support.consortium import MODEL

V = TypeVar("V", bound=View)
CONSORTIUM = "demo"


def small(**changes: Any) -> Charter:
    """A charter whose rounds have a price, and whose votes take an hour."""
    model = {"family": "glm4_moe", "config": MODEL}
    return charter(**{"model": model, "voting": {"window_s": 3600}, **changes})


class Clock:
    """Goes on by itself from where it was set."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms


class Unwitnessed:
    def published(self, at_least: int) -> bytes | None:
        return None

    newest = published

    def wait_published(self, at_least: int, timeout_s: float) -> None: ...

    def unwitnessed_since_ms(self) -> int | None:
        return None


class Office:
    """A consortium of acme, beta and coop in which nothing runs, seen from acme's seat."""

    consortium = CONSORTIUM
    subject = Subject("member", "acme")
    log_key = LOG.vkey

    def __init__(self, folder: Path, of: Charter | None = None) -> None:
        self.clock, self._closed = Clock(), threading.Event()
        self.journal = Journal.open(folder, signer=LOG, clock=self.clock)
        self.house = Consortium(self.journal, self.clock)
        of = of or small()
        self.commit(lambda now_ms: self.house.members.decide_found(of, founding_notes(of), LOG.vkey, now_ms))
        self.commit(lambda now_ms: decide_grants(self.house.ledger, of, now_ms))
        no_run = Refusal(Code.NO_RUN, "no run was started yet")
        more = {
            "run": lambda _: no_run,
            "now": lambda _: no_run,
            "rounds": lambda _: no_run,
            "members": self._members,
        }
        statements = Statements(self.house, LOG)
        self.chamber = Chamber(
            self.house, Moments(Bell(), Bell()), self._closed, more, Unwitnessed(), statements
        )  # type: ignore[arg-type]

    def commit(self, decide: Any) -> list[int]:
        done = self.house.commit(decide)
        assert not isinstance(done, Refusal), done.message
        return done

    def read(self, kind: type[V], key: str = "") -> V:
        name = next(name for name, found in VIEWS.items() if found is kind)
        if name in self.chamber._personal:
            found = self.chamber._personal[name](self.subject, key)
            if isinstance(found, Refusal):
                raise Refused(found)
            return found  # type: ignore[return-value]
        view = self.chamber._view(wire.ReadRequest(view=name, key=key), self.subject)
        if isinstance(view, Refusal):
            raise Refused(view)
        return kind.model_validate_json(view)

    def watch(self, kind: type[V], key: str = "") -> Iterator[V]:
        while not self._closed.is_set():
            size = self.house.size
            yield self.read(kind, key)
            while self.house.wait_beyond(size, 0.05) == size and not self._closed.is_set():
                pass

    def submit(self, note: bytes) -> Receipt:
        with self.house.lock:
            index = self.chamber._take(note)
            if isinstance(index, Refusal):
                raise Refused(index)
            receipt = self.house.receipt(index)
        text = proof_text(index, receipt.path, receipt.checkpoint)
        return Receipt(open_proof(text, receipt.leaf, LOG.verifier), receipt.leaf)

    def propose(self, **changes: Any) -> str:
        """By default acme asks for 20 inner steps; its id."""
        wish = proposal(self.house.charter, **changes)
        self.submit(sign(wish))
        return wish.id

    def execute(self, round_number: int = 2) -> None:
        """As at the next round's boundary."""
        proposals = self.house.proposals
        self.commit(lambda now_ms: proposals.decide_close(now_ms))
        self.commit(lambda now_ms: proposals.decide_execute(self.house.charter, round_number, now_ms, run=""))

    def close(self) -> None:
        self._closed.set()
        self.journal.close()

    def _members(self, key: str) -> MembersView:
        of, keys = self.house.charter, self.house.proposals.ballot_keys
        members = tuple(
            MemberView(
                member=m.name,
                key=m.key,
                ballot_key=keys[m.name].key if m.name in keys else "",
                ballot_key_until_ms=keys[m.name].expires_ms if m.name in keys else 0,
            )
            for m in of.members
        )
        return MembersView(charter_version=of.version, members=members, sites=(), access=())


def viewer(partner: str | None = "acme", *roles: Role) -> Viewer:
    return Viewer(
        partner or "somebody", partner, frozenset(roles or {Role.READER, Role.VOTER, Role.ACCOUNTANT})
    )


class Door:
    """Whoever comes is `who`."""

    def __init__(self, who: Viewer) -> None:
        self.who = who

    def routes(self) -> Sequence[BaseRoute]:
        return ()

    def middleware(self) -> Sequence[Middleware]:
        return (Middleware(_Enter, door=self),)


class _Enter:
    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["viewer"] = self._door.who
        await self._app(scope, receive, send)


@contextmanager
def visited(office: Office, who: Viewer | None = None) -> Iterator[TestClient]:
    """The dashboard of this office as its viewer's browser asks it."""
    with TestClient(dashboard(office, Door(who or viewer())), raise_server_exceptions=False) as client:
        client.headers["accept"] = "text/html"
        yield client
