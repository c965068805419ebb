"""Where people reach the dashboard: the one origin it answers for."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from commons.errors import ConfigError
from governance.dashboard.door.settings import DoorFile, is_loopback

_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_ALL = frozenset({"0.0.0.0", "[::]"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Origin:
    scheme: str
    host: str
    """As in a URL: an IPv6 address stands in brackets."""
    port: int

    @classmethod
    def of(cls, host: str, port: int, door: DoorFile) -> Origin:
        """Of a listener and a door file. Raises ConfigError where sessions would travel in the clear, or where the name
        that people use is not known."""
        if door.published:
            split = urlsplit(door.published)
            name = split.hostname or ""
            shown = f"[{name}]" if ":" in name else name
            origin = cls(split.scheme, shown, split.port or _DEFAULT_PORTS[split.scheme])
        else:
            bare = host.strip("[]")
            origin = cls("https" if door.tls else "http", f"[{bare}]" if ":" in bare else bare, port)
        what = ""
        if not origin.secure and not is_loopback(origin.host):
            what = (
                f"the dashboard would be reached at {origin} without TLS, and whoever listens on the way could act as "
                "anybody: listen on 127.0.0.1, or give [tls] in the door file, or say in `published` which https "
                "address stands before it"
            )
        elif origin.host in _ALL:
            what = (
                f"nobody reaches the dashboard by the name {origin.host}, which stands for all addresses of this machine: "
                "listen on one name, or say in `published` of the door file which one people use"
            )
        if what:
            raise ConfigError([what])
        return origin

    def __str__(self) -> str:
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    def answers_to(self, host_header: str) -> bool:
        """Whether a request with this Host is for us: another name is another site's, pointed here (DNS rebinding)."""
        name = host_header.lower()
        if not name.endswith("]") and ":" in name:
            name, _, port = name.rpartition(":")
            if not port.isdecimal():
                return False
        return name in (_LOOPBACK_NAMES if is_loopback(self.host) else {self.host.lower()})

    def is_own(self, origin_header: str, host_header: str) -> bool:
        """Whether an Origin header names the very address that the request was sent to."""
        split = urlsplit(origin_header)
        return split.scheme == self.scheme and split.netloc.lower() == host_header.lower() != ""

    def cookie(self, purpose: str) -> str:
        """Name of a cookie. Cookies know no ports: two dashboards of one machine need two names."""
        return f"{'__Host-' if self.secure else ''}hansa-{purpose}-{self.port}"
