"""An OpenID provider as a client sees it: what it says of itself, its keys, a token for a code, and whether it holds.

OpenID Connect Core 1.0 with PKCE (RFC 7636). What comes from the provider is bounded and believed only as far as its
signature and the checks here reach.
"""

from __future__ import annotations

import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx2
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from commons.clock import Clock
from commons.errors import HansaError
from governance.dashboard.door.settings import Oidc

ALGORITHMS = ("RS256", "PS256", "ES256", "ES384", "RS384", "RS512", "EdDSA", "Ed25519")
"""With the provider's public keys only: never `none`, never a key that the client shares."""
LEEWAY_S = 60
"""By which the provider's clock and ours may differ."""
ANSWER_S = 10.0
ANSWER_BYTES_MAX = 2**20
KEPT_S = 3600.0
"""For so long the provider's description and keys are believed."""
KEYS_AGAIN_S = 30.0
"""A token signed with a key that is not known yet has the keys read again, so often at most."""


class TokenRefused(Exception):
    """The provider's answer lets nobody in; the text says why and is fit to be shown."""


@dataclass
class _Known:
    said: dict[str, Any]
    keys: KeySet
    at_s: float


@dataclass
class Provider:
    """One provider and this dashboard as its client. `secret` empty: a public client."""

    oidc: Oidc
    clock: Clock
    secret: str = field(default="", repr=False)
    trusted: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)
    """Of whom a provider's certificate may be: those that the machine trusts."""
    _known: _Known | None = None

    async def authorization_url(self) -> str:
        return str((await self._description()).said["authorization_endpoint"])

    async def exchange(self, code: str, verifier: str, redirect_uri: str) -> str:
        """The id_token for an authorization code. Raises TokenRefused, or HansaError when nobody answers."""
        known = await self._description()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self.oidc.client_id,
            "code_verifier": verifier,
        }
        methods = known.said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        basic = bool(self.secret) and "client_secret_basic" in methods
        if self.secret and not basic:
            form["client_secret"] = self.secret
        names = (quote(self.oidc.client_id, safe=""), quote(self.secret, safe=""))
        status, said = await self._ask("POST", known.said["token_endpoint"], form, names if basic else None)
        token = said.get("id_token")
        if status != 200 or not isinstance(token, str):
            why = str(said.get("error_description") or said.get("error") or f"status {status}")[:200]
            raise TokenRefused(f"the provider gave no token for this sign-in ({why}); begin again")
        return token

    async def claims(self, token: str, nonce: str) -> dict[str, Any]:
        """What a token says, once its signature, issuer, audience, times and nonce hold. Raises TokenRefused."""
        known = await self._description()
        try:
            found = jwt.decode(token, known.keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError):
            if time.monotonic() - known.at_s < KEYS_AGAIN_S:
                raise TokenRefused("the token is not signed by a key of the provider") from None
            self._known = None
            known = await self._description()
            try:
                found = jwt.decode(token, known.keys, algorithms=ALGORITHMS).claims
            except (JoseError, ValueError) as wrong:
                raise TokenRefused("the token is not signed by a key of the provider") from wrong
        self._check(found, nonce)
        return found

    def _check(self, claims: dict[str, Any], nonce: str) -> None:
        """OpenID Connect Core 1.0, section 3.1.3.7."""
        ours, issuer = self.oidc.client_id, self.oidc.issuer
        if claims.get("iss") != issuer:
            raise TokenRefused(f"the token is of issuer {str(claims.get('iss'))[:200]!r}, not {issuer!r}")
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if (
            ours not in audiences
            or claims.get("azp", ours) != ours
            or (len(audiences) > 1 and "azp" not in claims)
        ):
            raise TokenRefused(f"the token is for {str(audience)[:200]}, not for {ours!r}")
        if claims.get("nonce") != nonce:
            raise TokenRefused("the token was made for another sign-in; begin again")
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            raise TokenRefused("the token names nobody")
        now_s = self.clock.now_ms() // 1000
        times = {name: claims.get(name) for name in ("iat", "exp", "nbf") if name != "nbf" or "nbf" in claims}
        if not all(isinstance(at, int | float) and not isinstance(at, bool) for at in times.values()):
            raise TokenRefused("the token does not say when it was made and until when it holds")
        _check_times(times, now_s)

    async def _description(self) -> _Known:
        if self._known is not None and time.monotonic() - self._known.at_s < KEPT_S:
            return self._known
        issuer = self.oidc.issuer
        status, said = await self._ask("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        ends = [said.get(name) for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
        if status != 200 or said.get("issuer") != issuer or not all(isinstance(end, str) for end in ends):
            raise HansaError(
                f"{issuer} does not describe itself as an OpenID provider of that name (status {status}, issuer "
                f"{str(said.get('issuer'))[:200]!r}); whoever keeps the dashboard checks `oidc.issuer` in the door file"
            )
        if issuer.startswith("https://") and not all(str(end).startswith("https://") for end in ends):
            raise HansaError(f"{issuer} names an address without https; its keeper has to correct that")
        status, keys = await self._ask("GET", said["jwks_uri"])
        try:
            self._known = _Known(said, KeySet.import_key_set(keys), time.monotonic())  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError) as wrong:
            raise HansaError(
                f"the keys of {issuer} cannot be read ({wrong}); its keeper has to look"
            ) from wrong
        return self._known

    async def _ask(
        self, method: str, url: str, form: dict[str, str] | None = None, names: tuple[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and the JSON object of the answer ({} when it is none). Raises HansaError when nobody answers."""
        async with httpx2.AsyncClient(
            verify=self.trusted, timeout=ANSWER_S, follow_redirects=False
        ) as client:
            try:
                async with client.stream(method, url, data=form, auth=names) as answer:
                    body = b""
                    async for chunk in answer.aiter_bytes():
                        body += chunk
                        if len(body) > ANSWER_BYTES_MAX:
                            raise HansaError(
                                f"{url} answers with more than {ANSWER_BYTES_MAX} bytes; its keeper has to look"
                            )
            except httpx2.HTTPError as failed:
                raise HansaError(
                    f"the OpenID provider does not answer at {url} ({failed or type(failed).__name__}); try again later, "
                    "then ask whoever keeps it"
                ) from failed
        try:
            said = json.loads(body)
        except ValueError:
            return answer.status_code, {}
        return answer.status_code, said if isinstance(said, dict) else {}


def _check_times(times: dict[str, Any], now_s: int) -> None:
    begins = max(times["iat"], times.get("nbf", times["iat"]))
    clock = "the provider's clock or this machine's is wrong; whoever keeps the machine sets it (NTP)"
    if begins > now_s + LEEWAY_S:
        raise TokenRefused(f"the token is from {begins - now_s:.0f} s in the future: {clock}")
    if times["exp"] <= now_s - LEEWAY_S:
        past = f"the token ran out {now_s - times['exp']:.0f} s ago"
        raise TokenRefused(f"{past}: sign in again, and if that does not help, {clock}")
