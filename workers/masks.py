"""The site's part in secure aggregation: a thread beside training that answers each step of the round's masking.

Owns the site's secret for a run and what it has bound itself to, kept together in one private file, durable before
anything said under it leaves; what may be said when is `commons.masking.site`. The sum is opened after this site has
handed in, so the thread goes on until the round closes.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commons.errors import Code, HansaError, Refusal, Refused, StoreError, Unreachable
from commons.identity import write_file
from commons.masking import Attempt, Bound, Deal, FixedPoint, Masker, SiteMasking, Step
from commons.notes import Signer, Verifier
from commons.wire.v1 import consortium_pb2 as wire
from workers.backoff import pauses
from workers.seal import Masking
from workers.training import Abandoned
from workers.verify import Order

log = logging.getLogger("hansa.site")

Ask = Callable[[wire.MaskRequest], wire.MaskView]
"""Raises Refused, Unreachable."""
_STEPS = tuple(Step)
_LOOK_S = 0.2


class Memory:
    """The secret of one run, what it is bound to, and the order it was last of use for."""

    def __init__(self, path: Path) -> None:
        """Makes a secret where there is none. Raises StoreError, naming the file when it cannot be read."""
        self._path = path
        self.bound: Bound | None = None
        if not path.exists():
            self.secret, self.order = secrets.token_bytes(32), b""
            self._write()
            return
        try:
            kept = json.loads(path.read_text())
            self.secret, self.order = bytes.fromhex(kept["secret"]), bytes.fromhex(kept["order"])
            self.bound = Bound.from_text(kept["bound"]) if kept["bound"] else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); the operator removes it: this site then masks with a new secret, and "
                "may take part again from the next round on"
            ) from error

    def bind(self, bound: Bound) -> None:
        """Durable on return. Raises StoreError."""
        if bound != self.bound:
            self.bound = bound
            self._write()

    def take_up(self, order: bytes) -> None:
        """The signed order whose masking this site is at; durable on return. Raises StoreError."""
        if order != self.order:
            self.order = order
            self._write()

    def _write(self) -> None:
        bound = self.bound.to_text() if self.bound else ""
        kept = {"secret": self.secret.hex(), "bound": bound, "order": self.order.hex()}
        write_file(self._path, json.dumps(kept).encode(), private=True)


class SiteMasks:
    """One round at a time."""

    def __init__(
        self, ask: Ask, signer: Signer, log_key: Verifier, folder: Path, stop: threading.Event
    ) -> None:
        """`folder`: of the secrets, a file for each run."""
        self._ask, self._signer, self._log_key, self._folder, self._stop = ask, signer, log_key, folder, stop
        self._part: _Part | None = None
        self._resumed = False

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """That of the round's masking, where there is one."""
        return (self._part.thread,) if self._part is not None else ()

    def begin(self, order: Order) -> None:
        """Take part in the masking of the order's round, if its charter asks for one. Raises StoreError."""
        of = (order.note.run, order.note.round)
        if self._part is not None and self._part.of == of and self._part.alive():
            return
        if self._part is not None:
            self._part.over.set()
            self._part = None
        if order.charter.privacy.mode == "secagg":
            memory = Memory(self._folder / f"{order.note.run}.json")
            memory.take_up(order.data)
            self._part = _Part(order, self._ask, self._signer, self._log_key, memory, self._stop)

    def resume(self, verify: Callable[[bytes], Order | Refusal]) -> None:
        """Once, where there is nothing else to do: the sum of a round that this site handed in for before it was started
        again may still wait for its share. Raises HansaError when the order cannot be verified now: ask again.
        """
        if self._resumed:
            return
        newest = max(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)
        data = Memory(newest).order if newest is not None and self._part is None else b""
        order = verify(data) if data else None
        self._resumed = True
        if isinstance(order, Order):
            self.begin(order)

    def masking(self, order: Order, stands: Callable[[], bool]) -> Masking | None:
        """What to pack the order's update with, once everybody has dealt; None when it is sent plain.

        Raises Abandoned when the order does not stand any more, HansaError with what this site found wrong.
        """
        if order.charter.privacy.mode != "secagg":
            return None
        self.begin(order)
        part = self._part
        assert part is not None, "begun above"
        masker = part.masker(stands)
        terms, sites = order.charter.privacy.secagg, len(order.charter.sites)
        slices = {part.name: number for number, part in enumerate(order.exchange.shared)}
        return Masking(FixedPoint.of(terms, sites), masker, slices)


class _Part:
    """This site in one round's masking."""

    def __init__(
        self, order: Order, ask: Ask, signer: Signer, log_key: Verifier, memory: Memory, stop: threading.Event
    ) -> None:
        self.of = (order.note.run, order.note.round)
        self.over = threading.Event()
        self._order, self._ask, self._signer, self._log_key = order, ask, signer, log_key
        self._memory, self._stop = memory, stop
        self._heard = threading.Condition()
        self._masker: Masker | None = None
        self._wrong: HansaError | None = None
        self._site: SiteMasking | None = None
        self._dealt: Deal | None = None
        self.thread = threading.Thread(target=self._take_part, name="masking", daemon=True)
        self.thread.start()

    def alive(self) -> bool:
        return self.thread.is_alive() or self._masker is not None

    def masker(self, stands: Callable[[], bool]) -> Masker:
        with self._heard:
            while self._masker is None:
                if self._wrong is not None:
                    raise self._wrong
                if self._stop.is_set() or not stands():
                    raise Abandoned
                self._heard.wait(_LOOK_S)
            return self._masker

    def _take_part(self) -> None:
        try:
            self._converse()
        except HansaError as error:
            closed = isinstance(error, Refused) and error.refusal.code is Code.ROUND_CLOSED
            if not (closed or self._stop.is_set() or self.over.is_set()):
                log.warning("round %d: no part in its masked sum: %s", self.of[1], error)
            self._say_wrong(error)

    def _converse(self) -> None:
        waits, fields = pauses(), dict[str, Any]()
        seen = (0, 0)
        while not self._stop.is_set() and not self.over.is_set():
            request = wire.MaskRequest(
                run=self.of[0], round=self.of[1], attempt=seen[0], stage=seen[1], **fields
            )
            try:
                view = self._ask(request)
            except Unreachable:
                self._stop.wait(next(waits))
                continue
            waits, fields = pauses(), {}
            if (view.attempt, view.stage) != seen:
                seen = (view.attempt, view.stage)
                fields = self._answer(view)

    def _answer(self, view: wire.MaskView) -> dict[str, Any]:
        """What this site says to what it is shown. What it said in an earlier life it works out again on the way."""
        site = self._in_attempt(view.attempt)
        said: dict[str, Any] = {}
        for stage in range(min(view.stage, len(_STEPS) - 1) + 1):
            said = self._step(site, _STEPS[stage], view)
            if "complaint" in said:
                break
        self._memory.bind(site.bound)
        return said

    def _step(self, site: SiteMasking, step: Step, view: wire.MaskView) -> dict[str, Any]:
        match step:
            case Step.KEYS:
                return {"keys": site.keys()}
            case Step.SHARES:
                if self._dealt is None:
                    self._dealt = _right(site.deal(view.keys))
                return {"deal": wire.MaskWord(note=self._dealt.note, data=self._dealt.bundle)}
            case Step.MASKED:
                if self._masker is None:
                    masker = site.masker([Deal(deal.note, deal.data) for deal in view.deals])
                    if isinstance(masker, Refusal):
                        self._say_wrong(Refused(masker))
                        accused = masker.details.get("site", "")
                        return {"complaint": site.complain(accused)} if accused else _right(masker)
                    self._memory.bind(site.bound)
                    with self._heard:
                        self._masker = masker
                        self._heard.notify_all()
                return {}
            case Step.AGREEMENT:
                agreed = site.agree(view.survivors)
                # Who is no survivor has nothing to agree to, and may still help to open the sum.
                return {} if isinstance(agreed, Refusal) else {"agreement": agreed}
            case Step.REVEAL:
                reveal = _right(site.reveal(view.survivors, view.agreements))
                return {"reveal": wire.MaskWord(note=reveal.note, data=reveal.shares)}

    def _in_attempt(self, number: int) -> SiteMasking:
        if self._site is not None and self._site.bound.attempt.attempt == number:
            return self._site
        note = self._order.note
        attempt = Attempt(
            consortium=note.consortium, run=note.run, round=note.round, attempt=number, charter=note.charter
        )
        self._site = _right(
            SiteMasking.begin(
                attempt,
                terms=self._order.charter.privacy.secagg,
                site=note.site,
                signer=self._signer,
                secret=self._memory.secret,
                sites=self._order.sites,
                log=self._log_key,
                bound=self._memory.bound,
            )
        )
        self._dealt = self._masker = None
        return self._site

    def _say_wrong(self, error: HansaError) -> None:
        with self._heard:
            self._wrong = error
            self._heard.notify_all()


def _right(answer: Any) -> Any:
    """Raises Refused."""
    if isinstance(answer, Refusal):
        raise Refused(answer)
    return answer
