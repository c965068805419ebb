"""What a round under way may cost: the order's hold and its top-ups. Asks for more in time, says when it is used up.

Prices are the charter's, by `commons.pricing`, at the dearest precision of the device, as the coordinator holds them.
Owns one small file, so that a site that was killed asks for the same top-ups again. Knows nothing of the wire.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from commons.charter import Charter
from commons.errors import HansaError, Refused
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.identity import write_file
from commons.pricing import exact_pico, rates_of, whole_micro
from commons.work import AssignmentNote
from workers.verify import Order

log = logging.getLogger("hansa.site")

ASK_AT_PERCENT = 80
"""Of what is held; asked only if the round would not end within it at this pace."""
SPARE_PERCENT = 10
"""Asked for on top of what the round will cost at this pace."""
ASK_AGAIN_S = 5.0


class Ask(Protocol):
    """Raises Refused with the coordinator's reason, Unreachable. Asked twice with the same `n`, it is one top-up."""

    def __call__(self, order: AssignmentNote, n: int, amount_micro: int) -> None: ...


class Allowance:
    """One round at a time. A file of no use is as none: a top-up it held is then refused when asked for otherwise."""

    def __init__(
        self,
        path: Path,
        limit_micro: int | None,
        ask: Ask,
        *,
        ticks_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit_micro`: what one round may cost at most by the site's own policy."""
        self._path, self._limit_micro, self._ask, self._ticks_s = path, limit_micro, ask, ticks_s
        self._order: Order | None = None
        self._asked: list[dict[str, Any]] = []
        self._again_s = 0.0
        self._why = ""
        self.exhausted = ""
        """Why the round under way ends before its last step; empty while it does not."""

    def begin(self, order: Order) -> None:
        """Work under this order begins, or begins again."""
        self._order, self._why, self.exhausted, self._again_s = order, "", "", 0.0
        self._asked = self._kept(order.note.lease)

    @property
    def held_micro(self) -> int:
        """The order's hold and the top-ups that were granted."""
        assert self._order is not None, "held_micro before begin()"
        granted = sum(int(ask["amount_micro"]) for ask in self._asked if ask["answer"] == "held")
        return self._order.note.hold_micro + granted

    def suffices(self, step: int, device_ms: int) -> bool:
        """Whether the next step may be done after `step` steps took `device_ms`. May ask for a top-up first."""
        assert self._order is not None, "suffices() before begin()"
        charter = self._order.charter
        steps = charter.learning.steps_in(self._order.note.round)
        if step == 0:
            self.exhausted = ""
        if not 0 < step < steps or self.exhausted:
            return not self.exhausted
        total = self._cost(steps, -(-device_ms * steps // step))
        following = self._cost(step + 1, -(-device_ms * (step + 1) // step))
        spent = self._cost(step, device_ms)
        while total > self.held_micro and (
            following > self.held_micro or spent * 100 >= self.held_micro * ASK_AT_PERCENT
        ):
            if not self._top_up(total):
                break
        if following <= self.held_micro:
            return True
        currency = charter.rate_card.currency
        self.exhausted = (
            f"the {self.held_micro} micro-{currency} held are used up after step {step} of {steps}"
            + (f"; {self._why}" if self._why else "")
        )
        log.warning("round %d ends early: %s", self._order.note.round, self.exhausted)
        return False

    def _top_up(self, total_micro: int) -> bool:
        """Ask for what is lacking to that total; whether more is held now."""
        assert self._order is not None
        note, charter = self._order.note, self._order.charter
        if self._asked and self._asked[-1]["answer"] == "refused":
            self._why = f"a top-up was refused: {self._asked[-1]['why']}"
            return False
        if not self._asked or self._asked[-1]["answer"]:
            more = self._lacking(total_micro)
            if more <= 0 or len(self._asked) >= charter.accounting.topups:
                return False
            self._asked.append({"amount_micro": more, "answer": "", "why": ""})
            self._keep()
        elif self._ticks_s() < self._again_s:
            return False
        last, n = self._asked[-1], len(self._asked)
        what = f"round {note.round}: top-up {n} of {last['amount_micro']} micro-{charter.rate_card.currency}"
        try:
            self._ask(note, n, last["amount_micro"])
        except Refused as error:
            last["answer"], last["why"] = "refused", error.refusal.message
            self._why = f"a top-up was refused: {error.refusal.message}"
            log.warning("%s was refused: %s", what, error)
        except HansaError as error:
            self._again_s, self._why = self._ticks_s() + ASK_AGAIN_S, f"a top-up was not answered: {error}"
        else:
            last["answer"], self._why = "held", ""
            log.info("%s is held", what)
        self._keep()
        return bool(last["answer"] == "held")

    def _lacking(self, total_micro: int) -> int:
        """What to ask for: the rest of the round with some to spare, as far as charter, policy and lease go."""
        assert self._order is not None
        charter = self._order.charter
        site = charter.site(self._order.note.site)
        assert site is not None, "an order for this site is under a charter that has it"
        self._why = f"the charter allows {charter.accounting.topups} top-ups a round"
        steps = charter.learning.steps_in(self._order.note.round)
        most = self._cost(steps, charter.rounds.lease_s * 1000 * site.devices)
        if self._limit_micro is not None and self._limit_micro < most:
            most = self._limit_micro
            self._why = f"[policy] max_charge_micro_per_round allows {most}"
        return min(most, total_micro * (100 + SPARE_PERCENT) // 100) - self.held_micro

    def _cost(self, steps: int, device_ms: int) -> int:
        """Micro, rounded up, of so many steps that took so long."""
        assert self._order is not None
        charter, note = self._order.charter, self._order.note
        return cost_micro(charter, self._order.expert_map, note.site, steps, device_ms)

    def _kept(self, lease: str) -> list[dict[str, Any]]:
        try:
            kept = json.loads(self._path.read_bytes())
            asked: list[dict[str, Any]] = kept["asked"] if kept["lease"] == lease else []
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return asked

    def _keep(self) -> None:
        assert self._order is not None
        kept = {"lease": self._order.note.lease, "asked": self._asked}
        write_file(self._path, json.dumps(kept).encode())


def cost_micro(charter: Charter, expert_map: ExpertMap, site: str, steps: int, device_ms: int) -> int:
    """What `steps` of a round that took `device_ms` cost at this site, by the device's dearest rate."""
    entry, learning = charter.site(site), charter.learning
    assert entry is not None, "an order for this site is under a charter that has it"
    gflop = Exchange(expert_map, learning, 1).gflop(steps)
    rates = rates_of(charter.rate_card, entry.device, None)
    return whole_micro(max(exact_pico(rate, gflop, device_ms) for rate in rates))
