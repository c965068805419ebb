"""The door file: how people sign in to a dashboard, and under which address they reach it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from commons import toml_file
from commons.section import Name, Section
from commons.toml_file import Problem
from governance.dashboard.viewer import Role

Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Tls(Section):
    """`[tls]`: the server's own certificate, of an authority that browsers here know. PEM files."""

    certificate: Text
    key: Text


class Revoked(Section):
    """`[certificate]`: certificates that are no longer let in."""

    revoked: Text
    """File of their SHA-256 fingerprints, one a line; read again when it changes."""


class Grant(Section):
    """`[[oidc.grant]]`: whoever's claim has this value acts for this partner in these roles."""

    claim: Annotated[str, Field(min_length=1, max_length=200)]
    value: Annotated[str, Field(min_length=1, max_length=500)]
    """The claim's value, or one of its values where it is a list."""
    partner: Name | None = None
    """None: for no member, as the operator."""
    roles: Annotated[tuple[Literal["reader", "voter", "accountant", "operator"], ...], Field(min_length=1)]

    @property
    def held(self) -> frozenset[Role]:
        """Whoever is let in may read."""
        return frozenset({Role.READER, *map(Role, self.roles)})


class Oidc(Section):
    """`[oidc]`: the provider, and whom it lets in as what."""

    issuer: Annotated[str, Field(pattern=r"^https?://[^\s?#]{1,500}$")]
    client_id: Annotated[str, Field(min_length=1, max_length=500)]
    secret: Text | None = None
    """File that holds the client's secret, mode 0600; without it the client is public and PKCE alone binds it."""
    scopes: Annotated[tuple[Text, ...], Field(max_length=16)] = ("openid", "profile")
    name_claim: Annotated[str, Field(min_length=1, max_length=200)] = "name"
    """What the pages greet people by; without it their `sub`."""
    grant: Annotated[tuple[Grant, ...], Field(min_length=1, max_length=1000)]


class DoorFile(Section):
    """The whole file, every path absolute."""

    way: Literal["link", "certificate", "oidc"]
    published: Annotated[str, Field(pattern=r"^https?://[^/\s?#@]{1,255}$")] | None = None
    """The address in people's browsers, where it is not the listener's: of a proxy that ends TLS, or of a
    container's port. For the local link it must be of this machine."""
    tls: Tls | None = None
    certificate: Revoked | None = None
    oidc: Oidc | None = None


def load(path: Path) -> DoorFile:
    """Raises ConfigError with all problems, each `path:line: key: what`."""
    found = toml_file.load(path, DoorFile, further=lambda read: _problems(read, path.resolve().parent))
    folder = path.resolve().parent
    tls, revoked, oidc = found.tls, found.certificate, found.oidc
    return found.model_copy(
        update={
            "tls": tls and Tls(certificate=str(folder / tls.certificate), key=str(folder / tls.key)),
            "certificate": revoked and Revoked(revoked=str(folder / revoked.revoked)),
            "oidc": oidc and oidc.model_copy(update={"secret": oidc.secret and str(folder / oidc.secret)}),
        }
    )


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a listener at this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _problems(door: DoorFile, folder: Path) -> Iterator[Problem]:
    published = urlsplit(door.published or "")
    match door.way:
        case "link" if door.published and not is_loopback(published.hostname or ""):
            what = f"{door.published} is not of this machine (the local link is for it alone; choose oidc or certificate)"
            yield Problem(("published",), what)
        case "certificate" if door.tls is None:
            what = "needs [tls] (a client's certificate is shown to whoever ends TLS, which must be the dashboard itself)"
            yield Problem(("way",), what)
        case "oidc" if door.oidc is None:
            yield Problem(("way",), "needs [oidc] with issuer, client_id and at least one [[oidc.grant]]")
        case _:
            pass
    for table, of in (("oidc", "oidc"), ("certificate", "certificate")):
        if getattr(door, table) is not None and door.way != of:
            yield Problem((table,), f"is for way = {of!r} (remove it, or change the way)")
    if door.tls is not None:
        for key, given in (("certificate", door.tls.certificate), ("key", door.tls.key)):
            if not (folder / given).is_file():
                yield Problem(("tls", key), f"{folder / given} does not exist (name a PEM file)")
        if published.scheme == "http":
            yield Problem(("published",), "is http, but [tls] is given (write https://)")
    if door.oidc is not None:
        yield from _oidc_problems(door.oidc, folder)


def _oidc_problems(oidc: Oidc, folder: Path) -> Iterator[Problem]:
    if oidc.issuer.startswith("http://") and not is_loopback(urlsplit(oidc.issuer).hostname or ""):
        yield Problem(
            ("oidc", "issuer"), f"{oidc.issuer} is not https (anybody on the way could sign in as anybody)"
        )
    if oidc.secret is not None and not (folder / oidc.secret).is_file():
        yield Problem(
            ("oidc", "secret"), f"{folder / oidc.secret} does not exist (write the client's secret into it)"
        )
    if "openid" not in oidc.scopes:
        yield Problem(("oidc", "scopes"), 'lacks "openid" (without it the provider signs no id_token)')
    for n, grant in enumerate(oidc.grant):
        if (grant.partner is None) != ("operator" in grant.roles):
            what = "names a partner or the role operator, and never both (the operator is no member)"
            yield Problem(("oidc", "grant", n, "partner"), what)
