"""Cosignatures for the journal: one checkpoint at a time is shown to all witnesses until enough have cosigned it.

Sites are asked over their link, outsiders over HTTP (`orchestrator.outsiders`). A checkpoint that as many cosigned as
the charter in force demands is stored for good and becomes the published one, which sites trust. Nothing here changes
the journal's records, and no round waits for anything here: it is the sites that refuse what too few have seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from commons import quorum
from commons.charter import Charter
from commons.cosignature import WITNESSES_MAX, Cosignatory, cosignature, with_cosignatures
from commons.errors import Code, HansaError, Refusal
from commons.log import Checkpoint
from commons.names import SiteId
from commons.notes import NoteError, parse
from governance.bell import Bell
from governance.consortium import Consortium

log = logging.getLogger("hansa.coordinator")

LINE_CHARS_MAX = 1024
PAUSE_S = 0.1
"""Least time between two candidates: witnesses are asked at most ten times a second."""
PATIENCE_S = 2.0
"""A candidate that found no quorum in this time gives way to a newer checkpoint."""
LATE_MS = 60_000
"""Records that no published checkpoint covers after this time are a trouble to be told."""
_KEPT = 32
"""Candidates whose late cosignatures are still checked."""
_ALIVE_CHECK_S = 15.0
_RETRY_S = 5.0


@dataclass
class Candidate:
    """A checkpoint on its way to the witnesses."""

    size: int
    note: bytes
    """Signed by the log alone."""
    chosen_s: float
    lines: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """Witness -> its public key and signature line, each verified."""
    sites: set[SiteId] = field(default_factory=set)
    """Sites among them."""

    @property
    def text(self) -> str:
        return parse(self.note).text

    @property
    def seen_by(self) -> int:
        """Witnesses, by their keys: one that goes by two names is one."""
        return len({public for public, _ in self.lines.values()})

    def cosigned(self) -> bytes:
        """The note with the lines so far, as many as a note may have."""
        return with_cosignatures(self.note, [line for _, line in self.lines.values()][:WITNESSES_MAX])


@dataclass(frozen=True)
class Offer:
    """What a witness is asked: to cosign `note`, which extends the checkpoint of size `old` as `proof` shows."""

    size: int
    note: bytes
    old: int
    proof: tuple[bytes, ...]


class Gathering:
    """Which checkpoint is shown to the witnesses, and who cosigned it. Pure: no clock, no lock, no store."""

    def __init__(self, published: int) -> None:
        """`published`: size of the newest published checkpoint, 0 for none."""
        self.published = published
        self.current: Candidate | None = None
        self._recent: OrderedDict[int, Candidate] = OrderedDict()

    def choose(self, size: int, note: bytes, now_s: float) -> float | None:
        """Take the journal's newest checkpoint as candidate when it is time; else the seconds until it will be.

        None: the candidate is the newest there is. The candidate before must have been published, or have had its
        time. Sizes never fall.
        """
        before = self.current
        if size <= max(self.published, before.size if before else 0):
            return None
        if before is not None:
            rest_s = PAUSE_S if before.size <= self.published else PATIENCE_S
            if (wait_s := before.chosen_s + rest_s - now_s) > 0:
                return wait_s
        self.current = self._recent[size] = Candidate(size, note, now_s)
        while len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return None

    def add(self, witness: Cosignatory, size: int, line: str) -> Candidate | Refusal | None:
        """Keep a witness's line, if it holds, and answer its candidate; None for one that nobody waits for."""
        candidate = self._recent.get(size)
        if candidate is None:
            return None
        try:
            cosignature(line, candidate.text, witness)
        except NoteError as wrong:
            return Refusal(
                Code.SIGNATURE_INVALID,
                f"this is no cosignature of {witness.name} over the checkpoint of size {size}: {wrong}; "
                f"{witness.name} cosigns what it was offered, with the key its partner signed for",
            )
        candidate.lines.setdefault(witness.name, (witness.public, line))
        return candidate


class Witnesses:
    """Safe for many threads. `bell` must ring for every record; it is rung when a checkpoint is published."""

    def __init__(
        self,
        consortium: Consortium,
        bell: Bell,
        stopping: threading.Event,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises StoreError when the journal cannot be read."""
        self._consortium, self._now_s = consortium, now_s
        self.bell, self.stopping = bell, stopping
        self._lock = (
            threading.Lock()
        )  # may be taken while holding the consortium's, never the other way round
        self._publishing = threading.Lock()
        self._note = consortium.journal.published()
        size = Checkpoint.read(parse(self._note)).size if self._note else 0
        self._gathering = Gathering(size)
        self._sizes: dict[SiteId, int] = {}
        self._streams: dict[SiteId, int] = {}
        self._uncovered = (-1, 0)

    @property
    def charter(self) -> Charter:
        """The charter in force."""
        return self._consortium.charter

    def candidate(self) -> tuple[Candidate | None, float]:
        """The checkpoint to be cosigned now, and after how many seconds to look again if the bell has not rung."""
        with self._consortium.lock:
            wanted = self._consortium.charter.witnesses.quorum > 0
            size, note = self._consortium.size, self._consortium.journal.checkpoint()
        if not wanted:
            return None, _ALIVE_CHECK_S
        with self._lock:
            wait_s = self._gathering.choose(size, note, self._now_s())
            return self._gathering.current, _ALIVE_CHECK_S if wait_s is None else wait_s

    def behind(self, site: SiteId, have: int) -> Refusal | None:
        """Why a site that cosigned `have` records cannot be a witness of this journal; None when it can."""
        size = self._consortium.size
        if have <= size:
            return None
        return Refusal(
            Code.LOG_FORKED,
            f"site {site} cosigned {have} records, this journal has {size}: it is an older copy; the operator "
            "restores the newest one",
        )

    def offers(self, site: SiteId, have: int, wanted: Callable[[], bool]) -> Iterator[Offer]:
        """Each checkpoint this site shall cosign, as long as `wanted`; ends when a newer stream of the site begins.

        `have`: the size the site cosigned last.
        """
        shown = 0
        with self._lock:
            stream = self._streams[site] = self._streams.get(site, 0) + 1
            self._sizes[site] = have
        self.bell.ring()
        while wanted() and not self.stopping.is_set():
            strokes = self.bell.strokes
            candidate, wait_s = self.candidate()
            with self._lock:
                if self._streams[site] != stream:
                    return
                old = self._sizes[site]
                offered = candidate is None or site in candidate.sites or candidate.size <= shown
            if candidate is None or offered or candidate.size < old:
                self.bell.wait_beyond(strokes, wait_s)
                continue
            shown = candidate.size
            yield Offer(shown, candidate.note, old, self.proof(old, shown))

    def proof(self, old: int, size: int) -> tuple[bytes, ...]:
        """Shows that the checkpoint of `size` extends the one of size `old`. Raises ProofError when it cannot."""
        return tuple(self._consortium.journal.consistency(old, size))

    def cosign(self, site: SiteId, size: int, line: str) -> Refusal | None:
        """Take a site's cosignature. Repeated, or for a candidate of long ago: nothing happens. Raises StoreError."""
        with self._consortium.lock:
            key = self._consortium.members.site_key(site)
        assert key is not None, "an enrolled site has a key"
        if len(line) > LINE_CHARS_MAX:
            return Refusal(Code.NOTE_MALFORMED, f"a signature line has at most {LINE_CHARS_MAX} characters")
        return self.take(Cosignatory.of(key), size, line, site)

    def take(self, witness: Cosignatory, size: int, line: str, site: SiteId | None = None) -> Refusal | None:
        """Keep a witness's cosignature, and publish its checkpoint once enough have cosigned. Raises StoreError."""
        with self._lock:
            candidate = self._gathering.add(witness, size, line)
            if isinstance(candidate, Refusal):
                return candidate
            if candidate is not None and site is not None:
                candidate.sites.add(site)
                self._sizes[site] = max(size, self._sizes.get(site, 0))
        if candidate is not None:
            self._publish(candidate)
        return None

    def published(self, at_least: int) -> bytes | None:
        """The newest published checkpoint, when it covers `at_least` records."""
        with self._lock:
            return self._note if 0 < at_least <= self._gathering.published else None

    def newest(self, at_least: int) -> bytes | None:
        """The candidate with the cosignatures it has, when it covers `at_least` records."""
        with self._lock:
            current = self._gathering.current
            return current.cosigned() if current and current.size >= at_least else None

    def wait_published(self, at_least: int, timeout_s: float) -> None:
        """Wait until a checkpoint that covers `at_least` records is published, at most `timeout_s`."""
        until_s = self._now_s() + timeout_s
        while not self.stopping.is_set():
            strokes = self.bell.strokes
            if self.published(at_least) is not None or (left_s := until_s - self._now_s()) <= 0:
                return
            self.bell.wait_beyond(strokes, left_s)

    def unwitnessed_since_ms(self) -> int | None:
        """When the oldest record was made that no published checkpoint covers; None when all are covered or none
        need be. Raises StoreError when it cannot be read."""
        with self._consortium.lock:
            size, wanted = self._consortium.size, self._consortium.charter.witnesses.quorum > 0
        with self._lock:
            first = self._gathering.published
            index, at_ms = self._uncovered
        if not wanted or first >= size:
            return None
        if index != first:
            at_ms = self._consortium.journal.record(first).at_ms
            with self._lock:
                self._uncovered = (first, at_ms)
        return at_ms

    def trouble(self) -> str:
        """What is wrong when records have been unwitnessed for more than a minute, and who is missing; else empty."""
        since_ms = self.unwitnessed_since_ms()
        if since_ms is None or self._consortium.now_ms() - since_ms <= LATE_MS:
            return ""
        with self._consortium.lock:
            members = self._consortium.members
            charter = members.charter
            keys = {name: key for name in members.enrolled if (key := members.site_key(name))}
        with self._lock:
            first, current = self._gathering.published, self._gathering.current
            seen = set(current.lines) if current and current.size > first else set()
        return (
            f"records from {first} on have waited for witnesses for more than a minute: {len(seen)} of "
            f"{charter.witnesses.quorum} cosigned the newest checkpoint, missing are "
            f"{quorum.lacking(charter, keys, seen)}; sites train again once enough of them are there"
        )

    def watch(self) -> None:
        """Tell of a journal that finds no witnesses, once, and when it found them again; until stopped."""
        told = ""
        while not self.stopping.is_set():
            strokes, wait_s = self.bell.strokes, None
            try:
                trouble = self.trouble()
                if self.unwitnessed_since_ms() is not None:
                    self._publish_again()
                    wait_s = _RETRY_S if trouble else LATE_MS / 1000
            except HansaError as error:
                trouble, wait_s = str(error), _RETRY_S
            if trouble and not told:
                log.warning("%s", trouble)
            elif told and not trouble:
                log.info("the journal is witnessed again")
            told = trouble
            self.bell.wait_beyond(strokes, wait_s)

    def _publish_again(self) -> None:
        """What a full disk prevented is tried again."""
        with self._lock:
            current = self._gathering.current
        if current is not None:
            self._publish(current)

    def _publish(self, candidate: Candidate) -> None:
        needed = self.charter.witnesses.quorum
        with self._publishing:
            with self._lock:
                note = candidate.cosigned()
                if candidate.size <= self._gathering.published:
                    self._note = note if candidate is self._gathering.current else self._note
                    return
                if not 0 < needed <= candidate.seen_by:
                    return
            self._consortium.journal.publish(candidate.size, note)
            with self._lock:
                self._gathering.published, self._note = candidate.size, note
        self.bell.ring()
