"""What a site has spent of its privacy, by its own count, and the secret its noise comes from.

One private file for all runs, durable before anything counted in it leaves: each update sealed under noise counts once,
and sealed again to the same bytes it is the same update. Which of them the coordinator has taken, or says it has, is no
part of it. What epsilon is follows in `commons.privacy.accounting`, how the noise is drawn in `workers.noise`.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from commons.charter import Charter
from commons.errors import Code, HansaError, Refusal, StoreError
from commons.identity import write_file
from commons.privacy.accounting import epsilon_after
from commons.work import AssignmentNote
from workers.noise import Noising


@dataclass(frozen=True)
class Sent:
    """An update that was sealed under noise."""

    work: str
    """Run, round and base."""
    payload: str
    """Digest of its bytes."""
    noise_multiplier: float


class Spending:
    """Read anew whenever it is asked, so that a file put right by the operator is taken up at once."""

    def __init__(self, path: Path, epsilon_max: float | None) -> None:
        """`epsilon_max`: the owner's own limit, where the site's file has one."""
        self._path, self._limit = path, epsilon_max

    def forbids(self, order: AssignmentNote, charter: Charter) -> Refusal | None:
        """Why the order's round would spend more than charter or owner allow; None when it does not, or adds no noise.

        An update of this round from this base that is counted already is not counted twice: made again it has the same
        bytes, and if not `count` refuses it. Raises StoreError.
        """
        if charter.privacy.mode != "dp" or order.work != "train":
            return None
        sent = self._read()[1]
        again = next((one for one in sent if one.work == _work(order)), None)
        return self._beyond([one for one in sent if one is not again], order, charter)

    def noising(self, order: AssignmentNote, charter: Charter) -> Noising | None:
        """How the order's update is noised; None when it leaves as it is. Raises StoreError."""
        if charter.privacy.mode != "dp":
            return None
        return Noising(
            terms=charter.privacy.dp,
            secret=self._secret(),
            consortium=order.consortium,
            run=order.run,
            round=order.round,
            charter=order.charter,
            site=order.site,
        )

    def count(self, order: AssignmentNote, charter: Charter, payload: str) -> None:
        """An update with the bytes `payload` is about to be sealed: counted durably on return, once.

        Raises HansaError when that would spend too much, StoreError.
        """
        secret, sent = self._read()
        if any(one.payload == payload for one in sent):
            return
        if refusal := self._beyond(sent, order, charter):
            raise HansaError(str(refusal))
        self._write(secret, [*sent, Sent(_work(order), payload, charter.privacy.dp.noise_multiplier)])

    def _beyond(self, sent: list[Sent], order: AssignmentNote, charter: Charter) -> Refusal | None:
        terms, site = charter.privacy.dp, order.site
        spent = [one.noise_multiplier for one in sent]
        have = epsilon_after(spent, terms.delta)
        would = epsilon_after([*spent, terms.noise_multiplier], terms.delta)
        what = (
            f"step 14 privacy: site {site} has spent epsilon {have:.3f} at delta {terms.delta:g}, round {order.round} of "
            f"run {order.run} would make it {would:.3f}"
        )
        if would > terms.epsilon_max:
            message = f"{what}, the charter's epsilon_max is {terms.epsilon_max:g}; the members vote for more"
            return Refusal(Code.EXCEEDS_EPSILON, message)
        if self._limit is not None and would > self._limit:
            message = f"{what}, [policy] epsilon_max allows {self._limit:g}; its operator can raise the limit and start the site again"
            return Refusal(Code.POLICY_FORBIDS, message)
        return None

    def _secret(self) -> bytes:
        secret, sent = self._read()
        if not self._path.exists():
            self._write(secret, sent)
        return secret

    def _read(self) -> tuple[bytes, list[Sent]]:
        """A new secret where there is no file yet."""
        if not self._path.exists():
            return secrets.token_bytes(32), []
        try:
            kept = json.loads(self._path.read_text())
            secret, sent = bytes.fromhex(kept["secret"]), [Sent(**one) for one in kept["sent"]]
            if len(secret) != 32 or not all(0 < one.noise_multiplier < float("inf") for one in sent):
                raise ValueError("it holds no secret, or noise of no size")
            return secret, sent
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self._path} cannot be read ({error}); it holds what this site has spent of its privacy: its operator "
                "restores it, or removes it if the site's owner accepts that the count begins at nothing"
            ) from error

    def _write(self, secret: bytes, sent: list[Sent]) -> None:
        kept = {"secret": secret.hex(), "sent": [vars(one) for one in sent]}
        write_file(self._path, json.dumps(kept).encode(), private=True)


def _work(order: AssignmentNote) -> str:
    return f"{order.run}/{order.round}/{order.base}"
