"""Where updates lie until their round is combined: the claim and the payload of each site.

Owns durability and resuming. A payload comes in lanes, each one append-only file that holds verified frames and nothing
else: what a file's length says is there was checked before it was written, so nothing is verified twice and a resumed
upload begins at a frame. A lane is resumed only for the same claim (update note) cut into as many lanes; another claim of
the same site starts anew. What makes a frame right is `orchestrator.intake`.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from commons.errors import Code, Refusal, StoreError
from commons.identity import write_file
from commons.names import Digest, RunId, SiteId
from commons.notes import digest, parse
from commons.updates import Frame, Lane, UpdateManifest
from orchestrator.intake import Claim, check_frame

MESSAGE_BYTES_MAX = 1 << 20
_SYNC_EVERY = 32 << 20


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

    key: Digest
    lanes: tuple[_Landing, ...]


class Spool:
    """Files ``<run>/<round>/<site>.{note,manifest}`` and ``<site>.<lanes>.<lane>.part``. Safe for many threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: dict[Path, _Held] = {}

    def positions(self, run: RunId, number: int, site: SiteId, key: Digest, lanes: int) -> tuple[int, ...]:
        """Durable bytes of each lane of the claim with this key; zeros when nothing is known of it.

        Raises StoreError when the disk fails.
        """
        try:
            held = self._known(run, number, site)
            if held is None or held.key != key or len(held.lanes) != lanes:
                return (0,) * lanes
            for landing in held.lanes:
                if landing.at:
                    _sync(landing.path)
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
            landing = self._begin(claim, lanes).lanes[lane]
            with landing.path.open("ab", buffering=0) as file:
                with landing.lock:
                    landing.turn += 1
                    turn, at = landing.turn, landing.at
                    file.truncate(at)  # a write that the disk broke off left half a frame
                if not 0 <= offset <= at:
                    message = f"site {site} resumes lane {lane} at {offset}, durable are {at}: ask for the offset first"
                    return Refusal(Code.REQUEST_INVALID, message)
                cutter = _Cutter(messages, skip=at - offset)
                return self._append(claim, landing, turn, file.fileno(), cutter)
        except OSError as error:
            raise self._failed(site, error) from error

    def is_whole(self, claim: Claim, lanes: int) -> bool:
        """Whether every lane of the claim is here."""
        held = self._known(*_place(claim))
        if held is None or held.key != claim.key or len(held.lanes) != lanes:
            return False
        return all(landing.at == landing.lane.bytes for landing in held.lanes)

    def norm(self, run: RunId, number: int, site: SiteId) -> float:
        """L2 norm of all values of the site's spooled update. Raises StoreError when the spool lost it."""
        held = self._known(run, number, site)
        if held is None:
            raise self._lost(run, number, site)
        return math.sqrt(sum(landing.squares for landing in held.lanes))

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
                manifest = UpdateManifest.from_bytes(self._file(run, number, site, "manifest").read_bytes())
            except OSError as error:
                raise self._lost(run, number, site) from error
            yield SpooledUpdate(manifest, tuple(files))

    def drop_before(self, run: RunId, number: int) -> None:
        """Remove the spools of the run's rounds below `number`, and those of all other runs."""
        for folder in self._root.glob("*/*"):
            if folder.parent.name != run or int(folder.name) < number:
                with self._lock:
                    self._held = {place: h for place, h in self._held.items() if place.parent != folder}
                shutil.rmtree(folder, ignore_errors=True)

    def _append(
        self, claim: Claim, landing: _Landing, turn: int, handle: int, cutter: _Cutter
    ) -> Refusal | None:
        site, whole, synced = claim.site, landing.lane.bytes, landing.at
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
                _write(handle, data)
                landing.at += frame.bytes
                landing.squares += squares
            if landing.at - synced >= _SYNC_EVERY:
                os.fsync(handle)
                synced = landing.at
        if cutter.take(1) is not None:
            message = f"site {site} sends more than the {whole} bytes of this lane that it signed"
            return Refusal(Code.UPDATE_TOO_LARGE, message)
        os.fsync(handle)
        return None

    def _begin(self, claim: Claim, lanes: int) -> _Held:
        """What is held of this claim in so many lanes; anything else of the site's in this round goes."""
        run, number, site = _place(claim)
        held = self._known(run, number, site)
        with self._lock:
            place = self._file(run, number, site, "note")
            held = self._held.get(place, held)
            if held is not None and held.key == claim.key and len(held.lanes) == lanes:
                return held
            place.unlink(missing_ok=True)
            for part in place.parent.glob(f"{site}.*.part"):
                part.unlink()
            write_file(self._file(run, number, site, "manifest"), claim.upload.manifest)
            write_file(place, claim.upload.update)
            cut = claim.manifest.lanes(lanes)
            held = _Held(
                claim.key, tuple(_Landing(lane, self._part(run, number, site, lane, lanes)) for lane in cut)
            )
            for landing in held.lanes:
                landing.path.touch()
            self._held[place] = held
            return held

    def _known(self, run: RunId, number: int, site: SiteId) -> _Held | None:
        """What is held of the site's update; after a restart it is read from disk and verified once."""
        place = self._file(run, number, site, "note")
        with self._lock:
            if place in self._held:
                return self._held[place]
            try:
                note = parse(place.read_bytes())
                manifest = UpdateManifest.from_bytes(self._file(run, number, site, "manifest").read_bytes())
            except (FileNotFoundError, ValueError):
                return None
            parts = sorted(place.parent.glob(f"{site}.*.part"))
            lanes = int(parts[0].name.split(".")[-3]) if parts else 0
            if not parts or len(parts) != lanes:
                return None
            cut = manifest.lanes(lanes)
            held = _Held(
                digest(note.text.encode()),
                tuple(_Landing(lane, self._part(run, number, site, lane, lanes)) for lane in cut),
            )
            for landing in held.lanes:
                _verify(site, landing)
            self._held[place] = held
            return held

    def _part(self, run: RunId, number: int, site: SiteId, lane: Lane, lanes: int) -> Path:
        return self._file(run, number, site, f"{lanes}.{lane.number}.part")

    def _failed(self, site: SiteId, error: OSError) -> StoreError:
        why = error.strerror or str(error)
        return StoreError(f"cannot keep the update of site {site} in {self._root}: {why}")

    def _lost(self, run: RunId, number: int, site: SiteId) -> StoreError:
        where = self._file(run, number, site, "*")
        return StoreError(f"{where}: an admitted update was removed from the spool; its operator restores it")

    def _file(self, run: RunId, number: int, site: SiteId, ending: str) -> Path:
        return self._root / run / str(number) / f"{site}.{ending}"


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


def _place(claim: Claim) -> tuple[RunId, int, SiteId]:
    return RunId(claim.update.run), claim.update.round, claim.site


def _frames_from(lane: Lane, at: int) -> Iterator[Frame]:
    return (frame for frame in lane.frames if frame.offset - lane.offset >= at)


def _verify(site: SiteId, landing: _Landing) -> None:
    """Find where the verified frames of a file end that another process wrote, and cut off what follows."""
    with landing.path.open("r+b", buffering=0) as file:
        for frame in landing.lane.frames:
            data = memoryview(file.read(frame.bytes))
            squares = check_frame(site, frame, data) if len(data) == frame.bytes else None
            if not isinstance(squares, float):
                break
            landing.at += frame.bytes
            landing.squares += squares
        file.truncate(landing.at)


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
