"""The certificates a server shows before it is believed: what an invite's fingerprint is compared with.

Reaches the server as gRPC would, through the environment's proxy. Believes and sends nothing.
"""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass
from http.client import HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import unquote

from commons.errors import Unreachable

CHAIN_TIMEOUT_S = 10.0


def presented_chain(address: str) -> list[bytes]:
    """The certificates (DER, leaf first) the server at host:port shows. Believes and sends nothing.

    Raises Unreachable when it cannot be reached or speaks no TLS.
    """
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host = host.strip("[]")
    try:
        if proxy := _proxy(host):
            connection = HTTPSConnection(proxy.address, timeout=CHAIN_TIMEOUT_S, context=context)
            connection.set_tunnel(host, int(port), headers=proxy.headers)
        else:
            connection = HTTPSConnection(host, int(port), timeout=CHAIN_TIMEOUT_S, context=context)
        try:
            connection.connect()
            return _chain_of(connection.sock)
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as failed:
        raise Unreachable(
            f"no TLS server answers at {address} ({failed}); check the address in the invite and the way out "
            "of this network, then ask the coordinator's operator whether it runs"
        ) from failed


def _chain_of(connection: Any) -> list[bytes]:
    if hasattr(connection, "get_unverified_chain"):  # Python 3.13
        return list(connection.get_unverified_chain())
    encoding_der = 2
    return [
        certificate.public_bytes(encoding_der) for certificate in connection._sslobj.get_unverified_chain()
    ]


_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class _Proxy:
    address: str
    """host:port."""
    headers: dict[str, str]
    """Who we are, where the proxy wants to know."""


def _proxy(host: str) -> _Proxy | None:
    """The HTTP proxy gRPC would use for `host`, from the same variables in the same order."""
    exceptions = next(filter(None, map(os.environ.get, _EXCEPTION_VARIABLES)), "")
    for exception in (entry.strip().lstrip(".") for entry in exceptions.split(",")):
        if exception == host or (exception and host.endswith(f".{exception}")):
            return None
    url = next(filter(None, map(os.environ.get, _PROXY_VARIABLES)), "")
    user, _, address = url.rpartition("//")[2].rstrip("/").rpartition("@")
    if not address:
        return None
    known = base64.b64encode(unquote(user).encode()).decode()
    return _Proxy(address, {"Proxy-Authorization": f"Basic {known}"} if user else {})
