"""Money from a seat: forecasts for everybody, disputes and conversions by members, reversals by the operator."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from commons.claims import ConvertNote, DisputeNote, RulingNote
from commons.errors import ConfigError, HansaError, Refused
from commons.identity import read_file, write_file
from commons.notes import NoteError, Signer
from commons.views import BudgetsView, BudgetView, DisputesView, DisputeView
from governance.burndown import forecast_of
from governance.forecast import Forecast
from governance.quoting import latest_run
from governance.reversing import reversal_id, token_for
from hansa.chamber import Chamber
from hansa.hosting import operator_seat
from hansa.settings import read_hours, read_micro
from hansa.signing import member_key

ALL = "all"
_NONCE = re.compile(rb"[0-9a-f]{32}")


@dataclass(frozen=True)
class Reversed:
    id: str
    transfer: str
    amount_micro: int
    currency: str
    index: int
    """Journal record of the reversal."""


@dataclass(frozen=True)
class Converted:
    device: str
    amount_ms: int
    index: int
    """Journal record of the note."""
    budget: BudgetView
    currency: str
    begun_s: float | None
    """When an earlier call began this very conversion and did not learn its end (Unix time); None: it was this one."""


def forecasts(chamber: Chamber, partner: str) -> tuple[list[Forecast], str]:
    """Of one partner, or of all for an empty name; and the currency. Raises HansaError for an unknown partner."""
    view, run = chamber.read(BudgetsView), latest_run(chamber)
    known = [b for b in view.budgets if partner in ("", b.partner)]
    if not known:
        there = ", ".join(b.partner for b in view.budgets)
        raise HansaError(f"there is no partner {partner!r} in the books; there are {there}")
    rounds = max(0, run.rounds - run.round) if run and run.phase == "training" else 0
    now_ms = time.time_ns() // 1_000_000
    return [forecast_of(budget, view, rounds, now_ms) for budget in known], view.currency


def raise_dispute(
    seat: Path, key: Path | None, *, charge: str, amount: str, reason: str, why: str
) -> tuple[DisputeView, str]:
    """Sign and hand in a dispute; it as it stands, and the currency. The same words again are the same dispute."""
    with Chamber.at(seat) as chamber:
        signer, view = member_key(seat, key), chamber.read(BudgetsView)
        transfer = settle_id(charge)
        said = [
            d.amount_micro
            for d in chamber.read(DisputesView).disputes
            if (d.partner, d.transfer, d.reason, d.why) == (signer.name, transfer, reason, why)
        ]
        if amount != ALL:
            amount_micro = read_micro(amount, view.currency)
        else:
            amount_micro = said[-1] if said else _left(view, transfer)
        note = DisputeNote(
            consortium=chamber.seat.consortium,
            partner=signer.name,
            transfer=transfer,
            amount_micro=amount_micro,
            reason=reason,  # type: ignore[arg-type]  # one of the command's choices
            why=why,
        )
        _submit(chamber, signer, note)
        return _dispute(chamber, note.digest), view.currency


def rule_dispute(
    seat: Path, key: Path | None, *, which: str, outcome: Literal["withdrawn", "conceded"]
) -> tuple[DisputeView, str]:
    """Sign and hand in the end of a dispute."""
    with Chamber.at(seat) as chamber:
        signer, view = member_key(seat, key), chamber.read(DisputesView, which)
        found = find_dispute(view, which)
        note = RulingNote(
            consortium=chamber.seat.consortium, partner=signer.name, dispute=found.id, outcome=outcome
        )
        _submit(chamber, signer, note)
        return _dispute(chamber, found.id), view.currency


def convert(seat: Path, key: Path | None, *, device: str, hours: str) -> Converted:
    """Sign and hand in a conversion of pledged device time.

    What makes it this conversion and not a second one is written to the seat before it is sent and removed once the
    receipt is here: after a failure anywhere, the same call again is the same conversion.
    """
    amount_ms = read_hours(hours)
    pending = seat / f"converting-{device}-{amount_ms}"
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        begun_s = pending.stat().st_mtime if pending.exists() else None
        if begun_s is None:
            write_file(pending, secrets.token_hex(16).encode(), private=True)
        nonce = read_file(pending, "remove it to convert anew", private=True)
        if not _NONCE.fullmatch(nonce):
            raise HansaError(f"{pending} was changed; remove it to convert anew")
        note = ConvertNote(
            consortium=chamber.seat.consortium, partner=signer.name, device=device, amount_ms=amount_ms,
            nonce=nonce.decode(),
        )  # fmt: skip
        try:
            index = _submit(chamber, signer, note)
        except Refused:
            pending.unlink()
            raise
        pending.unlink()
        view = chamber.read(BudgetsView)
        budget = next(b for b in view.budgets if b.partner == signer.name)
        return Converted(device, amount_ms, index, budget, view.currency, begun_s)


def reverse(home: Path, *, charge: str, amount: str, reason: str, token: str) -> Reversed:
    """Reverse a charge as the operator. Without a `token` the same arguments again are the same reversal."""
    with Chamber.at(operator_seat(home)) as chamber:
        currency, transfer = chamber.read(BudgetsView).currency, settle_id(charge)
        amount_micro = None if amount == ALL else read_micro(amount, currency)
        token = token or token_for(transfer, amount_micro, reason)
        index, facts = chamber.reverse_charge(token, transfer, amount_micro, reason)
        return Reversed(reversal_id(token), transfer, int(facts["amount_micro"]), currency, index)


def settle_id(charge: str) -> str:
    """`run-1/3/alder`, with or without `hold/` or `settle/` before it."""
    for kind in ("hold/", "settle/"):
        charge = charge.removeprefix(kind)
    return f"settle/{charge}"


def find_dispute(view: DisputesView, which: str) -> DisputeView:
    """By its digest, or by how the digest begins. Raises HansaError when that names none, or several."""
    wanted = which.removeprefix("sha256:")
    found = [d for d in view.disputes if wanted and d.id.removeprefix("sha256:").startswith(wanted)]
    if len(found) == 1:
        return found[0]
    what = (
        "names several disputes; write more of it"
        if found
        else "names no dispute; see `hansa budget disputes`"
    )
    raise HansaError(f"{which!r} {what}")


def _dispute(chamber: Chamber, id_: str) -> DisputeView:
    return find_dispute(chamber.read(DisputesView, id_), id_)


def _left(view: BudgetsView, transfer: str) -> int:
    """Of a charge: what is neither reversed nor disputed."""
    for charge in view.charges:
        if settle_id(charge.id) == transfer and charge.state == "settled":
            return charge.charged_micro - charge.reversed_micro - charge.disputed_micro
    raise HansaError(
        f"{transfer} is not among the latest {len(view.charges)} charges (`hansa budget show --charges`); "
        "write the amount in micro"
    )


def _submit(chamber: Chamber, signer: Signer, note: DisputeNote | RulingNote | ConvertNote) -> int:
    try:
        return chamber.submit(signer.sign(note.text))
    except NoteError as error:
        raise ConfigError([f"the note cannot be written down: {error}"]) from None
