"""`hansa dashboard`: gives the dashboard a seat's chamber, a door and a port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from pydantic import BaseModel, ValidationError

from commons import charter_file
from commons.certificates import Subject
from commons.errors import ConfigError, HansaError
from commons.identity import read_file
from commons.views import CharterView
from governance.dashboard.app import dashboard
from governance.dashboard.door import DoorFile, Origin, load, open_door
from governance.dashboard.door.serving import config
from governance.dashboard.office import Receipt, V
from governance.dashboard.page import Compared, Settings
from hansa.chamber import Chamber
from hansa.hosting import log_to_stderr
from hansa.output import line

STALLED_MS = 60_000
"""A connection whose other end takes nothing for so long is closed by the system."""


class ChamberOffice:
    """A chamber as the dashboard's office."""

    def __init__(self, chamber: Chamber) -> None:
        self._chamber = chamber

    @property
    def consortium(self) -> str:
        return self._chamber.seat.consortium

    @property
    def subject(self) -> Subject:
        return self._chamber.seat.subject

    @property
    def log_key(self) -> str:
        return self._chamber.seat.log_key

    def read(self, kind: type[V], key: str = "") -> V:
        return self._chamber.read(kind, key)

    def watch(self, kind: type[V], key: str = "") -> Iterator[V]:
        return self._chamber.watch(kind, key)

    def submit(self, note: bytes) -> Receipt:
        return Receipt(*self._chamber.submit_proven(note))

    def members(self) -> frozenset[str]:
        """Of the charter in force. Raises HansaError."""
        charter = charter_file.from_canonical(self.read(CharterView).text.encode())
        return frozenset(member.name for member in charter.members)


def serve(
    folder: Path,
    listen: str,
    *,
    door: Path | None,
    mlflow_url: str,
    ray_url: str,
    compared_with: Path | None,
    as_json: bool,
) -> None:
    """Until SIGINT or SIGTERM. Raises HansaError when there is no seat, or the door file or the port cannot be used."""
    log_to_stderr()
    file = load(door) if door else DoorFile(way="link")
    compared = read_compared(compared_with) if compared_with else Compared()
    with Chamber.at(folder) as chamber, _listening(listen) as listening:
        seat, office = chamber.seat, ChamberOffice(chamber)
        origin = Origin.of(listen.rpartition(":")[0], listening.getsockname()[1], file)
        links = _Links(as_json)
        entrance = open_door(file, seat, origin, office.members, links.tell)
        settings = Settings(mlflow_url=mlflow_url, ray_url=ray_url, compared=compared)
        app = dashboard(office, entrance, settings)
        first = links.first or str(origin)
        if as_json:
            line({"state": "ready", "url": first, "seat": str(folder), "subject": str(seat.subject)})
        else:
            print(f"The dashboard of {seat.consortium}, as {seat.subject}: {first}")
            print("Ctrl-C stops it.", flush=True)
        uvicorn.Server(config(app, file, seat.folder / "ca.crt")).run(sockets=[listening])


def read_compared(file: Path) -> Compared:
    """Of ``{"loss": {"alone": {PARTNER: {DOMAIN: LOSS}}, "central": {DOMAIN: LOSS}}}``, each part optional.

    Raises ConfigError.
    """
    data = read_file(file, "give the JSON that the demo wrote, or one with the same fields")
    try:
        return _Losses.model_validate_json(data).loss
    except ValidationError as wrong:
        problem = wrong.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ConfigError([f"{file}: {where}: {problem['msg']}"]) from None


class _Losses(BaseModel):
    loss: Compared


class _Links:
    """The links that sign in: the first one is part of what is said at the start, each later one is a line of its own."""

    def __init__(self, as_json: bool) -> None:
        self.first, self._as_json = "", as_json

    def tell(self, link: str) -> None:
        if not self.first:
            self.first = link
        elif self._as_json:
            line({"state": "signed in", "url": link})
        else:
            print(f"Somebody signed in with the last link. The next one: {link}", flush=True)


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise HansaError(f"{listen!r} is no address to listen on; write HOST:PORT, like 127.0.0.1:8080")
    host = host.strip("[]")
    try:
        found = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as wrong:
        raise HansaError(
            f"cannot listen on {listen} ({wrong}); stop the program that holds the port, or give another --listen"
        ) from wrong
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
    return found
