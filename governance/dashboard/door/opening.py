"""A door from its file and a seat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from commons.clock import SystemClock
from commons.errors import ConfigError
from commons.identity import Seat, read_file
from governance.dashboard.door.certificate import CertificateWay
from governance.dashboard.door.door import Door, Members
from governance.dashboard.door.link import LinkWay
from governance.dashboard.door.origin import Origin
from governance.dashboard.door.settings import DoorFile
from governance.dashboard.viewer import Viewer


def open_door(
    file: DoorFile, seat: Seat, origin: Origin, members: Members, announce: Callable[[str], None]
) -> Door:
    """`announce` is told each link that signs in, where that is the way. Raises HansaError for a file that is missing."""
    match file.way:
        case "link":
            viewer = Viewer.of(seat.subject)
            if viewer is None:
                raise ConfigError(
                    [f"the seat in {seat.folder} is {seat.subject}'s, who has nothing to look at"]
                )
            link = LinkWay(viewer, announce)
            door = Door(link, origin, members)
            announce(link.link(door))
            return door
        case "certificate":
            revoked = Path(file.certificate.revoked) if file.certificate else None
            return Door(CertificateWay(seat.authority, SystemClock(), revoked), origin, members)
        case "oidc":
            from governance.dashboard.door.oidc import OidcWay
            from governance.dashboard.door.provider import Provider

            assert file.oidc is not None, "the door file was checked"
            secret = ""
            if file.oidc.secret is not None:
                data = read_file(Path(file.oidc.secret), "write the client's secret into it", private=True)
                secret = data.decode().strip()
            return Door(OidcWay(Provider(file.oidc, SystemClock(), secret), origin), origin, members)
