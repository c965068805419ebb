"""Secure aggregation at the coordinator: what sites said in a round's masking attempt, kept, shown, and put together.

Owns durability and patience; what may be said when is `commons.masking.round`. Every word is on disk before it is shown
to anybody, so a coordinator that starts again shows the same. An attempt is one of the round's: begun again only where
all leases ended and nobody had handed in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from commons.charter import Charter
from commons.errors import Code, Refusal, StoreError
from commons.identity import write_file
from commons.masking import Attempt, Deal, FixedPoint, Reveal, RoundMasking, Step, Stream, speaker, strength
from commons.names import RunId, SiteId
from commons.notes import Signer, Verifier
from orchestrator.combine import Opening

log = logging.getLogger("hansa.coordinator")

PATIENCE_MS = 30_000
"""How long keys and shares are waited for once enough sites have sent theirs: work begins with whoever is there."""
NOTE_BYTES_MAX, DATA_BYTES_MAX = 4096, 16_384
_STEPS = tuple(Step)
_CLOSED = "closed"


@dataclass(frozen=True)
class Said:
    """One word of a site."""

    step: Step
    note: bytes
    data: bytes = b""
    """Of a deal the bundle, of a reveal the shares."""
    complains: bool = False


@dataclass(frozen=True)
class Shown:
    """What every site may see of an attempt."""

    attempt: int
    stage: int
    """Number of the step that it waits for, from 0."""
    keys: tuple[bytes, ...] = ()
    deals: tuple[Deal, ...] = ()
    survivors: bytes = b""
    agreements: tuple[bytes, ...] = ()


class MaskingAttempt:
    """One attempt, with its words in `folder`. Safe for many threads."""

    _keys: tuple[bytes, ...]
    _deals: tuple[Deal, ...]
    _survivors: bytes
    _agreements: tuple[bytes, ...]
    _streams: tuple[Stream, ...] | Refusal | None
    _lost: Refusal | None
    """Why nothing can come of it any more."""

    def __init__(
        self,
        folder: Path,
        attempt: Attempt,
        charter: Charter,
        *,
        log_key: Signer,
        sites: Mapping[str, Verifier],
        admitted: Iterable[SiteId] = (),
    ) -> None:
        """Takes in what another process kept. Raises StoreError when that cannot be read.

        `admitted`: sites whose masked update is.
        """
        self.attempt, self._folder = attempt, folder
        self._lock = threading.RLock()
        self._terms, self._log_key, self._sites = charter.privacy.secagg, log_key, sites
        self._fixed = FixedPoint.of(self._terms, len(charter.sites))
        self._handed_in = set(admitted)
        self._enough_ms: int | None = None
        self._take_up()

    def say(self, site: SiteId, said: Said) -> Refusal | None:
        """Take in a word and keep it; the same again changes nothing. Raises StoreError when the disk is full."""
        if len(said.note) > NOTE_BYTES_MAX or len(said.data) > DATA_BYTES_MAX:
            return Refusal(Code.REQUEST_INVALID, f"site {site} says more than {DATA_BYTES_MAX} bytes at once")
        with self._lock:
            kept = self._folder / f"{said.step}{'-complaint' if said.complains else ''}.{site}"
            whole = _framed(said)
            if kept.exists() and kept.read_bytes() == whole:
                return None
            refusal = self._refuse(site, said) or self._hear(said)
            if refusal is None and not kept.exists():  # the first of two writings of a word is the one shown
                with self._forgotten_unless_kept():
                    write_file(kept, whole)
            return refusal

    def hand_in(self, site: SiteId) -> Refusal | None:
        """Whether the site's masked update can be in the sum. If so, it has nothing to complain of any more."""
        with self._lock:
            deals = self._round.deals
            if self._survivors:
                message = f"the sum of {self.attempt} is being opened without site {site}; the next round takes it in"
                return Refusal(Code.ROUND_CLOSED, message)
            if self._lost or deals is None or site not in deals.names or site in self._round.complaints:
                message = f"site {site} has not masked with the others in {self.attempt}: its update cannot be in their sum"
                return Refusal(Code.MASK_ATTEMPT_REFUSED, f"{message}; it looks again what was said")
            self._handed_in.add(site)
            return None

    def shown(self) -> Shown:
        with self._lock:
            return Shown(
                self.attempt.attempt,
                _STEPS.index(self._round.waiting.step),
                self._keys,
                self._deals,
                self._survivors,
                self._agreements,
            )

    def move(self, now_ms: int) -> bool:
        """Close keys or shares when all are there, or enough and the rest had their time. Whether another step began."""
        with self._lock:
            waiting = self._round.waiting
            if self._lost or waiting.step not in (Step.KEYS, Step.SHARES):
                return False
            there = len(list(self._folder.glob(f"{waiting.step}.*"))) if self._folder.exists() else 0
            began = there if waiting.step is Step.KEYS else there + len(waiting.sites)
            if there < strength(self._terms, began).crowd:
                return False
            self._enough_ms = now_ms if self._enough_ms is None else self._enough_ms
            if waiting.sites and now_ms < self._enough_ms + PATIENCE_MS:
                return False
            if isinstance(self._close(waiting.step), Refusal):
                return False
            self._enough_ms = None
            with self._forgotten_unless_kept():
                write_file(self._folder / f"{waiting.step}-{_CLOSED}", b"")
            return True

    def left_out(self) -> Mapping[SiteId, str]:
        """Site -> why it has no part in the sum, of those asked; known once the deals are closed."""
        with self._lock:
            if self._round.deals is None:
                return {}
            late = {
                SiteId(
                    name
                ): "its keys and shares came after the others had gone on without it; the next round takes it in"
                for name in self._round.asked
                if name not in self._round.deals.names
            }
            complaints = {
                SiteId(
                    name
                ): f"it cannot use the shares that {accused} dealt to it; one of the two is at fault, both operators look"
                for name, accused in self._round.complaints.items()
            }
            return {**late, **complaints}

    @property
    def crowd(self) -> int:
        """Updates that a sum is taken of, at the least; more than can be while the deals are not closed, or when the
        attempt is lost."""
        with self._lock:
            deals = self._round.deals
            return len(self._round.asked) + 1 if deals is None or self._lost else deals.roster.crowd

    def list_survivors(self, sites: tuple[SiteId, ...]) -> Refusal | None:
        """These updates, and no others, are in the sum: said once and for all, durable on return. Raises StoreError."""
        with self._lock:
            if self._survivors:
                return None
            assert self._round.deals is not None, "sites hand in under closed deals"
            for site in sites:
                if refusal := self._round.take_masked(site, self._round.deals.digest):
                    return refusal
            survivors = self._round.close_masked()
            if isinstance(survivors, Refusal):
                return survivors
            with self._forgotten_unless_kept():
                write_file(self._folder / "survivors", survivors)
            self._survivors = survivors
            return None

    @property
    def listed(self) -> bool:
        """Whether the survivor list is made: whoever hands in now comes too late."""
        return bool(self._survivors)

    def opening(self) -> Opening | Refusal:
        """What opens the sum; a Refusal while too few have agreed or revealed, or when somebody dealt falsely."""
        with self._lock:
            if self._lost is not None:
                return self._lost
            if self._round.waiting.step is Step.AGREEMENT:
                agreements = self._round.close_agreements()
                if isinstance(agreements, Refusal):
                    return agreements
                self._agreements = agreements
            if not isinstance(self._streams, tuple):
                self._streams = self._round.close_reveals()
            streams = self._streams
            return streams if isinstance(streams, Refusal) else Opening(streams, self._fixed)

    def _take_up(self) -> None:
        """Know what is kept, and nothing else. Raises StoreError."""
        self._round = RoundMasking(self.attempt, terms=self._terms, log=self._log_key, sites=self._sites)
        self._keys, self._deals, self._survivors, self._agreements = (), (), b"", ()
        self._streams = None
        self._lost = self._unusable("it cannot be read")
        try:
            wrong = next((w for step in _STEPS if (w := self._take_up_step(step))), None)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {self._folder}: {error}; its operator restores it") from error
        # Wrong as when a site's key is another since: the others masked with what it said before.
        self._lost = self._unusable(wrong.message) if wrong is not None else None
        if self._lost is not None:
            log.warning("%s", self._lost.message)

    def _unusable(self, why: str) -> Refusal:
        message = f"{self.attempt} cannot go on from what was said in it: {why}"
        return Refusal(
            Code.MASK_ATTEMPT_REFUSED, f"{message}; the coordinator begins another attempt or round"
        )

    def _take_up_step(self, step: Step) -> Refusal | None:
        for complains in (False, True):
            label = f"{step}-complaint" if complains else step
            for file in sorted(self._folder.glob(f"{label}.*")):
                if wrong := self._hear(_unframed(step, file.read_bytes(), complains=complains)):
                    return wrong
        if (self._folder / f"{step}-{_CLOSED}").exists() and (wrong := self._close(step)):
            return wrong
        if step is Step.MASKED and (self._folder / "survivors").exists():
            survivors = self._round.close_masked((self._folder / "survivors").read_bytes())
            if isinstance(survivors, Refusal):
                return survivors
            self._survivors = survivors
        if step is Step.AGREEMENT and any(self._folder.glob(f"{Step.REVEAL}.*")):
            # Somebody has revealed: it was shown that enough agreed.
            agreements = self._round.close_agreements()
            if isinstance(agreements, Refusal):
                return agreements
            self._agreements = agreements
        return None

    @contextmanager
    def _forgotten_unless_kept(self) -> Iterator[None]:
        """What the disk does not take was not said. Raises StoreError."""
        try:
            yield
        except StoreError:
            self._take_up()
            raise

    def _refuse(self, site: SiteId, said: Said) -> Refusal | None:
        """What the site may not say here, whatever it says."""
        if self._lost is not None:
            return self._lost
        if (named := speaker(said.note)) and named != site:
            message = f"site {site} sent a word that speaks for site {named[:64]}; each site says its own"
            return Refusal(Code.SIGNATURE_INVALID, message)
        if said.complains and site in self._handed_in:
            message = (
                f"site {site} complains of shares that it masked its update with; the update stays in the sum"
            )
            return Refusal(Code.MASK_ATTEMPT_REFUSED, message)
        return None

    def _hear(self, said: Said) -> Refusal | None:
        round_, waits = self._round, _STEPS.index(self._round.waiting.step)
        if _STEPS.index(said.step) > waits:
            return Refusal(
                Code.MASK_ATTEMPT_REFUSED,
                f"{self.attempt} waits for {_STEPS[waits]}, not for {said.step}; the site looks again what was said",
            )
        if said.complains:
            return round_.take_complaint(said.note)
        match said.step:
            case Step.KEYS:
                return round_.take_keys(said.note)
            case Step.SHARES:
                return round_.take_deal(Deal(said.note, said.data))
            case Step.AGREEMENT:
                return round_.take_agreement(said.note)
            case Step.REVEAL:
                return round_.take_reveal(Reveal(said.note, said.data))
            case Step.MASKED:
                return Refusal(Code.REQUEST_INVALID, "a masked update is uploaded as any other")

    def _close(self, step: Step) -> Refusal | None:
        if step is Step.KEYS:
            keys = self._round.close_keys()
            if isinstance(keys, Refusal):
                return keys
            self._keys = keys
        else:
            deals = self._round.close_deals()
            if isinstance(deals, Refusal):
                return deals
            self._deals = deals
        return None


class Masking:
    """The attempts of open rounds, each read from disk once. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: tuple[Attempt, MaskingAttempt] | None = None

    def of(self, attempt: Attempt, make: Callable[[], MaskingAttempt]) -> MaskingAttempt:
        """Raises StoreError."""
        with self._lock:
            if self._current is None or self._current[0] != attempt:
                self._current = attempt, make()
            return self._current[1]


def _framed(said: Said) -> bytes:
    return b"%d\n%b%b" % (len(said.note), said.note, said.data)


def _unframed(step: Step, data: bytes, *, complains: bool) -> Said:
    length, _, rest = data.partition(b"\n")
    return Said(step, rest[: int(length)], rest[int(length) :], complains)


def folder_of(spool: Path, run: RunId, number: int, attempt: int) -> Path:
    """Goes with the round's spool."""
    return spool / run / str(number) / "masks" / str(attempt)
