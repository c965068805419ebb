"""A small OpenID provider on a real port that can be made to lie: about its name, its tokens, its keys."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey

Claims = dict[str, Any]


class OpenId:
    """`bend` changes a token's claims before it is signed; `sign` signs it."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.issuer = f"http://{host}:{port}"
        self.key = RSAKey.generate_key(2048, parameters={"kid": "one"})
        self.person: Claims = {"sub": "ada", "name": "Ada", "groups": ["acme-board"]}
        self.bend: Callable[[Claims], Claims] = lambda claims: claims
        self.sign: Callable[[Claims], str] = self._sign
        self.said: dict[str, Any] = {}
        """What its description says otherwise."""
        self.asked: list[str] = []
        """Paths, in order."""
        self._codes: dict[str, dict[str, str]] = {}

    def authorize(self, url: str) -> str:
        """As a browser comes with `url` and is sent back: the address it is sent to."""
        asked = dict(parse_qsl(urlsplit(url).query))
        assert (
            asked["response_type"] == "code" and asked["code_challenge_method"] == "S256" and asked["state"]
        )
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def rotate(self) -> None:
        self.key = RSAKey.generate_key(2048, parameters={"kid": "two"})

    def shared(self, claims: Claims, secret: str) -> str:
        """A token signed with what client and provider both know."""
        return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(secret.ljust(32, "x")))

    def answer(self, path: str, form: dict[str, str]) -> tuple[int, Any]:
        self.asked.append(path)
        match path:
            case "/.well-known/openid-configuration":
                ends = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
                return 200, {
                    "issuer": self.issuer,
                    **{k: f"{self.issuer}/{v}" for k, v in ends.items()},
                    **self.said,
                }
            case "/keys":
                return 200, KeySet([self.key]).as_dict(private=False)
            case "/token":
                return self._token(form)
        return 404, {}

    def _token(self, form: dict[str, str]) -> tuple[int, Any]:
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            asked is None
            or asked["code_challenge"] != challenge
            or asked["redirect_uri"] != form["redirect_uri"]
        ):
            return 400, {"error": "invalid_grant"}
        now_s = int(time.time())
        claims = {
            "iss": self.issuer, "aud": asked["client_id"], "nonce": asked["nonce"], "iat": now_s, "exp": now_s + 300,
            **self.person,
        }  # fmt: skip
        return 200, {"id_token": self.sign(self.bend(claims)), "token_type": "Bearer", "access_token": "-"}

    def _sign(self, claims: Claims) -> str:
        return jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)


@contextmanager
def openid(host: str = "127.0.0.1") -> Iterator[OpenId]:
    """Whoever comes with a browser is `person` and is sent back at once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith("/authorize?"):
                return self._answer({})
            self.send_response(302)
            self.send_header("location", provider.authorize(self.path))
            return self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            self._answer({name: values[0] for name, values in parse_qs(body).items()})

        def _answer(self, form: dict[str, str]) -> None:
            status, said = provider.answer(self.path, form)
            body = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = OpenId(server.server_port, host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
