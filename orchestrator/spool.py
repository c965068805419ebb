"""Where updates lie until their round is combined: the claim and the payload of each site.

Owns durability and resuming. A payload comes in lanes, a file each, into which frames are written in order once they are
verified, so a resumed upload begins at a frame. Files of earlier rounds are written over (`commons.spare`), so a file's
length says nothing: a process knows what it wrote, and the next one verifies it again. A lane is resumed only for the same claim (update note) cut into as many lanes; another claim of
the same site starts anew. What makes a frame right is `orchestrator.intake`.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from commons.disk import begin_writeback, sync
from commons.errors import Code, Refusal, StoreError
from commons.names import Digest, RunId, SiteId
from commons.notes import NoteError, digest, parse
from commons.spare import SpareFiles
from commons.updates import Frame, Lane, UpdateManifest
from orchestrator.intake import Claim, check_frame

MESSAGE_BYTES_MAX = 1 << 20
_WRITEBACK_BYTES = 8 << 20


@dataclass
class _Landing:
    """One lane of one claim as it lands. `at` and `squares` change only under `lock`."""

    lane: Lane
    path: Path
    at: int = 0
    """Verified bytes in the file."""
    squares: float = 0.0
    """Sum of the squares of the values decoded so far."""
    turn: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Held:
    """A claim and its lanes."""

    place: Path
    key: Digest
    manifest: UpdateManifest
    lanes: tuple[_Landing, ...]
    securing: threading.Lock = field(default_factory=threading.Lock)
    secured: threading.Event = field(default_factory=threading.Event)
    """The claim and the names of the lanes are durable."""


class Spool:
    """Files ``<run>/<round>/<site>.claim`` and ``<site>.<lanes>.<lane>.part``. Safe for many threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: dict[Path, _Held] = {}
        self._turns: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
        self._spare = SpareFiles(root / ".spare")
        self._spare.clear()

    @property
    def root(self) -> Path:
        return self._root

    def positions(self, run: RunId, number: int, site: SiteId, key: Digest, lanes: int) -> tuple[int, ...]:
        """Durable bytes of each lane of the claim with this key; zeros when nothing is known of it.

        Raises StoreError when the disk fails.
        """
        try:
            held = self._known(run, number, site)
            if held is None or held.key != key or len(held.lanes) != lanes:
                return (0,) * lanes
            if any(landing.at for landing in held.lanes):
                _secure(held)
        except OSError as error:
            raise self._failed(site, error) from error
        return tuple(landing.at for landing in held.lanes)

    def receive(
        self, claim: Claim, lane: int, lanes: int, offset: int, messages: Iterable[bytes]
    ) -> Refusal | None:
        """Take the payload bytes of one lane from `offset` on; None when the lane is whole and durable.

        Messages may be cut anywhere; each frame is checked before it is written. A newer upload of the same lane ends
        this one at its next frame. Raises StoreError when the disk is full; what was durable stays, and the upload
        may be resumed.
        """
        site = claim.site
        try:
            held = self._begin(claim, lanes)
            landing = held.lanes[lane]
            with landing.path.open("r+b", buffering=0) as file:
                with landing.lock:
                    landing.turn += 1
                    turn, at = landing.turn, landing.at
                if not 0 <= offset <= at:
                    message = f"site {site} resumes lane {lane} at {offset}, durable are {at}: ask for the offset first"
                    return Refusal(Code.REQUEST_INVALID, message)
                cutter = _Cutter(messages, skip=at - offset)
                refusal = self._append(claim, landing, turn, file.fileno(), cutter)
            if refusal is None:
                _secure(held, landing)
            return refusal
        except OSError as error:
            raise self._failed(site, error) from error

    def whole_norm(self, claim: Claim, lanes: int) -> float | None:
        """L2 norm of all values of the claim once every lane of it is here; None before."""
        held = self._known(*_named(claim))
        if held is None or held.key != claim.key or len(held.lanes) != lanes:
            return None
        if any(landing.at < landing.lane.bytes for landing in held.lanes):
            return None
        return _norm(held)

    def norm(self, run: RunId, number: int, site: SiteId) -> float:
        """L2 norm of all values of the site's spooled update. Raises StoreError when the spool lost it."""
        held = self._known(run, number, site)
        if held is None:
            raise self._lost(run, number, site)
        return _norm(held)

    @contextmanager
    def open(self, run: RunId, number: int, site: SiteId) -> Iterator[SpooledUpdate]:
        """The spooled update, for reading. Raises StoreError when the spool lost it."""
        held = self._known(run, number, site)
        if held is None or any(landing.at < landing.lane.bytes for landing in held.lanes):
            raise self._lost(run, number, site)
        with ExitStack() as stack:
            try:
                files = [
                    (landing.lane, stack.enter_context(landing.path.open("rb")).fileno())
                    for landing in held.lanes
                    if landing.lane.frames
                ]
            except OSError as error:
                raise self._lost(run, number, site) from error
            yield SpooledUpdate(held.manifest, tuple(files))

    def drop_before(self, run: RunId, number: int, *, more: bool) -> None:
        """Remove the spools of the run's rounds below `number`, and those of all other runs.

        `more`: the run goes on, and what its last round took is kept to be written over.
        """
        self._spare.clear()
        for folder in self._root.glob("[!.]*/*"):
            if folder.parent.name != run or int(folder.name) < number:
                with self._lock:
                    for place in [place for place in self._held if place.parent == folder]:
                        _end_uploads(self._held.pop(place))
                        del self._turns[place]
                with suppress(OSError):  # what is not kept goes with its folder
                    for part in folder.glob("*.part") if more else ():
                        self._spare.put(part)
                shutil.rmtree(folder, ignore_errors=True)

    def _append(
        self, claim: Claim, landing: _Landing, turn: int, handle: int, cutter: _Cutter
    ) -> Refusal | None:
        site, whole, told = claim.site, landing.lane.bytes, landing.at
        for frame in _frames_from(landing.lane, landing.at):
            data = cutter.take(frame.bytes)
            if data is None:
                return _cut_off(site, cutter, landing.at, whole)
            squares = check_frame(site, frame, data)
            if isinstance(squares, Refusal):
                return squares
            with landing.lock:
                if landing.turn != turn:
                    return Refusal(Code.REQUEST_INVALID, f"a newer upload of site {site} took over")
                _write(handle, landing.at, data)
                landing.at += frame.bytes
                landing.squares += squares
            if landing.at - told >= _WRITEBACK_BYTES:
                begin_writeback(handle, told, landing.at - told)
                told = landing.at
        if cutter.take(1) is not None:
            message = f"site {site} sends more than the {whole} bytes of this lane that it signed"
            return Refusal(Code.UPDATE_TOO_LARGE, message)
        return None

    def _begin(self, claim: Claim, lanes: int) -> _Held:
        """What is held of this claim in so many lanes; anything else of the site's in this round goes."""
        place = self._place(*_named(claim))
        with self._turn(place):
            held = self._read(place)
            if held is not None and held.key == claim.key and len(held.lanes) == lanes:
                return held
            if held is not None:
                _end_uploads(held)
            place.parent.mkdir(parents=True, exist_ok=True)
            for old in place.parent.glob(f"{claim.site}.*"):
                old.unlink()
            held = _held(place, claim.key, claim.manifest, lanes)
            for landing in held.lanes:
                if not self._spare.take(landing.lane.bytes, landing.path):
                    landing.path.touch()
            note = claim.upload.update
            place.write_bytes(b"%d\n%b%b" % (len(note), note, claim.upload.manifest))
            self._held[place] = held
            return held

    def _known(self, run: RunId, number: int, site: SiteId) -> _Held | None:
        place = self._place(run, number, site)
        with self._turn(place):
            return self._read(place)

    def _read(self, place: Path) -> _Held | None:
        """What is held of a site's update; after a restart it is read from disk and verified once."""
        if place in self._held:
            return self._held[place]
        try:
            length, _, rest = place.read_bytes().partition(b"\n")
            note = parse(rest[: int(length)])
            manifest = UpdateManifest.from_bytes(rest[int(length) :])
        except (FileNotFoundError, ValueError, NoteError):
            return None
        parts = list(place.parent.glob(f"{place.stem}.*.part"))
        lanes = int(parts[0].name.split(".")[1]) if parts else 0
        if not parts or len(parts) != lanes:
            return None
        held = _held(place, digest(note.text.encode()), manifest, lanes)
        for landing in held.lanes:
            _verify(SiteId(place.stem), landing)
        self._held[place] = held
        return held

    def _turn(self, place: Path) -> threading.Lock:
        with self._lock:
            return self._turns[place]

    def _place(self, run: RunId, number: int, site: SiteId) -> Path:
        return self._root / run / str(number) / f"{site}.claim"

    def _failed(self, site: SiteId, error: OSError) -> StoreError:
        why = error.strerror or str(error)
        return StoreError(f"cannot keep the update of site {site} in {self._root}: {why}")

    def _lost(self, run: RunId, number: int, site: SiteId) -> StoreError:
        where = self._place(run, number, site).with_suffix(".*")
        return StoreError(f"{where}: an admitted update was removed from the spool; its operator restores it")


@dataclass(frozen=True)
class SpooledUpdate:
    """A whole update on disk. Read it from any thread."""

    manifest: UpdateManifest
    _files: tuple[tuple[Lane, int], ...]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the payload's bytes from `offset` on; it must not reach beyond one lane.

        Reads, and does not map: mapped pages would count as the coordinator's memory.
        """
        lane, handle = next(found for found in reversed(self._files) if found[0].offset <= offset)
        at = offset - lane.offset
        while buffer:
            taken = os.preadv(handle, [buffer], at)
            if not taken:
                raise StoreError("an admitted update in the spool became shorter; its operator restores it")
            buffer, at = buffer[taken:], at + taken


class _Cutter:
    """Messages of any length cut into the lengths asked for; copies only what lies across two messages."""

    def __init__(self, messages: Iterable[bytes], *, skip: int) -> None:
        """`skip`: bytes at the beginning that are known already."""
        self._messages, self._skip = iter(messages), skip
        self._rest = memoryview(b"")
        self.oversized = False
        """A message was longer than one may be; nothing is taken any more."""

    def take(self, size: int) -> memoryview | None:
        """The next `size` bytes; None when there are no more."""
        if not self._fill():
            return None
        if len(self._rest) >= size:
            taken, self._rest = self._rest[:size], self._rest[size:]
            return taken
        whole = bytearray(size)
        filled = 0
        while filled < size and self._fill():
            piece = self._rest[: size - filled]
            whole[filled : filled + len(piece)] = piece
            filled, self._rest = filled + len(piece), self._rest[len(piece) :]
        return memoryview(whole) if filled == size else None

    def _fill(self) -> bool:
        while not self._rest and not self.oversized:
            message = next(self._messages, None)
            if message is None:
                return False
            self.oversized = len(message) > MESSAGE_BYTES_MAX
            self._rest = memoryview(message)[self._skip :]
            self._skip -= len(message) - len(self._rest)
        return not self.oversized


def _cut_off(site: SiteId, cutter: _Cutter, at: int, whole: int) -> Refusal:
    if cutter.oversized:
        message = f"site {site} sends messages above {MESSAGE_BYTES_MAX} bytes"
        return Refusal(Code.UPDATE_TOO_LARGE, message)
    message = f"the upload of site {site} ended at {at} of {whole} bytes of its lane; it resumes from there"
    return Refusal(Code.REQUEST_INVALID, message)


def _named(claim: Claim) -> tuple[RunId, int, SiteId]:
    return RunId(claim.update.run), claim.update.round, claim.site


def _held(place: Path, key: Digest, manifest: UpdateManifest, lanes: int) -> _Held:
    cut = manifest.lanes(lanes)
    landings = (_Landing(lane, place.with_suffix(f".{lanes}.{lane.number}.part")) for lane in cut)
    return _Held(place, key, manifest, tuple(landings))


def _end_uploads(held: _Held) -> None:
    """Those under way write no more."""
    for landing in held.lanes:
        with landing.lock:
            landing.turn += 1


def _norm(held: _Held) -> float:
    return math.sqrt(sum(landing.squares for landing in held.lanes))


def _secure(held: _Held, *landings: _Landing) -> None:
    """Make what is held durable: these lanes, or all, and what they are lanes of. Raises OSError."""
    for landing in landings or held.lanes:
        sync(landing.path)
    with held.securing:
        if not held.secured.is_set():
            sync(held.place)
            sync(held.place.parent)
            held.secured.set()


def _frames_from(lane: Lane, at: int) -> Iterator[Frame]:
    return (frame for frame in lane.frames if frame.offset - lane.offset >= at)


def _verify(site: SiteId, landing: _Landing) -> None:
    """Find where the frames of a file end that another process wrote; what follows is written over."""
    with landing.path.open("rb", buffering=0) as file:
        for frame in landing.lane.frames:
            data = memoryview(file.read(frame.bytes))
            squares = check_frame(site, frame, data) if len(data) == frame.bytes else None
            if not isinstance(squares, float):
                break
            landing.at += frame.bytes
            landing.squares += squares


def _write(handle: int, at: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written
