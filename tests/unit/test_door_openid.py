"""Signing in to the dashboard with an OpenID provider that answers over real HTTP: well, and badly."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from commons.errors import ConfigError
from governance.dashboard.door import Door, Origin, settings
from governance.dashboard.door.oidc import UNDER_WAY_S, OidcWay
from governance.dashboard.door.provider import Provider
from governance.dashboard.door.settings import Grant, Oidc
from tests.support.door import MEMBERS, Time, app_of
from tests.support.openid import Claims, OpenId, openid

ORIGIN = Origin("https", "board.example", 443)
GRANTS = (
    Grant(claim="groups", value="acme-board", partner="acme", roles=("reader", "voter")),
    Grant(claim="groups", value="acme-books", partner="acme", roles=("reader", "accountant")),
    Grant(claim="groups", value="beta-board", partner="beta", roles=("reader",)),
    Grant(claim="groups", value="gone-board", partner="gone", roles=("reader",)),
    Grant(claim="sub", value="root", roles=("reader", "operator")),
)


class Visit:
    """A browser before a dashboard whose people sign in at `issuer`."""

    def __init__(self, issuer: str, secret: str = "") -> None:
        self.turns, self.today = Time(), Time()
        self.today.now_s = time.time()
        oidc = Oidc(issuer=issuer, client_id="hansa", grant=GRANTS)
        way = OidcWay(Provider(oidc, self.today, secret), ORIGIN, self.turns)
        self.app = app_of(Door(way, ORIGIN, lambda: MEMBERS, self.turns))
        self.client = self.another()

    def another(self) -> TestClient:
        return TestClient(self.app, base_url=str(ORIGIN), follow_redirects=False)

    def begin(self, then: str = "/me") -> str:
        """Where the browser is sent to."""
        answer = self.client.get("/sign-in/oidc", params={"then": then})
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    def back(self, url: str) -> httpx2.Response:
        return self.client.get(url)


@pytest.fixture(scope="module")
def _provider() -> Iterator[OpenId]:
    with openid() as found:
        yield found


@pytest.fixture
def provider(_provider: OpenId) -> Iterator[OpenId]:
    before = dict(vars(_provider))
    yield _provider
    vars(_provider).update(before | {"asked": [], "said": {}})


@pytest.fixture
def visit(provider: OpenId) -> Visit:
    return Visit(provider.issuer)


def test_a_person_comes_back_from_the_provider_as_their_partner_in_their_roles(
    provider: OpenId, visit: Visit
) -> None:
    assert "Sign in at 127.0.0.1" in visit.client.get("/sign-in").text
    provider.person["groups"] = ["acme-board", "acme-books", "chess"]
    answer = visit.back(provider.authorize(visit.begin("/bill/acme")))
    assert (answer.status_code, answer.headers["location"]) == (303, "/bill/acme")
    me = visit.client.get("/me").json()
    assert (me["name"], me["partner"], me["roles"]) == ("Ada", "acme", ["accountant", "reader", "voter"])
    assert visit.client.get("/bill/beta").status_code == 403


def test_the_operator_is_nobodys_partner(provider: OpenId, visit: Visit) -> None:
    provider.person = {"sub": "root"}
    visit.back(provider.authorize(visit.begin()))
    assert visit.client.get("/me").json()["name"] == "root"
    assert visit.client.get("/bill/beta").status_code == 200


@pytest.mark.filterwarnings("ignore::DeprecationWarning:authlib", "ignore:authlib.jose module is deprecated")
def test_a_provider_from_elsewhere_signs_people_in() -> None:
    """`oidc-provider-mock`, built on Authlib, with a form that a person fills in."""
    import oidc_provider_mock

    people = [oidc_provider_mock.User(sub="ada", claims={"groups": ["acme-board"]})]
    with oidc_provider_mock.run_server_in_thread(user_claims=people, require_nonce=True) as server:
        visit = Visit(f"http://localhost:{server.server_port}", "a secret")
        form = httpx2.post(visit.begin(), data={"sub": "ada"}, follow_redirects=False)
        assert form.status_code == 302, form.text
        assert visit.back(form.headers["location"]).headers["location"] == "/me"
        assert visit.client.get("/me").json()["roles"] == ["reader", "voter"]
        denied = httpx2.post(visit.begin(), data={"action": "deny"}, follow_redirects=False)
        query = parse_qs(urlsplit(denied.headers["location"]).query)
        assert query["error"] == ["access_denied"]


def unsigned(claims: Claims) -> str:
    def part(value: Claims) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part(claims)}."


LIES: dict[str, tuple[Callable[[Claims], Claims], str]] = {
    "another issuer": (lambda c: c | {"iss": "http://evil.example"}, "is of issuer"),
    "another audience": (lambda c: c | {"aud": "shop"}, "is for shop"),
    "an audience among others, and not for us": (
        lambda c: c | {"aud": ["hansa", "shop"], "azp": "shop"},
        "is for",
    ),
    "an audience among others, and for nobody": (lambda c: c | {"aud": ["hansa", "shop"]}, "is for"),
    "no audience": (lambda c: {k: v for k, v in c.items() if k != "aud"}, "is for None"),
    "another nonce": (lambda c: c | {"nonce": "x"}, "another sign-in"),
    "no nonce": (lambda c: {k: v for k, v in c.items() if k != "nonce"}, "another sign-in"),
    "it ran out": (lambda c: c | {"exp": c["iat"] - 61}, "ran out 6"),
    "it never runs out": (lambda c: {k: v for k, v in c.items() if k != "exp"}, "until when it holds"),
    "times that are text": (lambda c: c | {"exp": "tomorrow"}, "until when it holds"),
    "it is from tomorrow": (
        lambda c: c | {"iat": c["iat"] + 86_400, "exp": c["exp"] + 86_400},
        "in the future",
    ),
    "not before tomorrow": (lambda c: c | {"nbf": c["iat"] + 86_400}, "in the future"),
    "nobody": (lambda c: c | {"sub": ""}, "names nobody"),
    "a stranger": (lambda c: c | {"groups": ["chess"]}, "nothing here is granted to Ada"),
    "groups that are no list": (lambda c: c | {"groups": {"acme-board": True}}, "nothing here is granted"),
    "two partners at once": (lambda c: c | {"groups": ["acme-board", "beta-board"]}, "acme and beta at once"),
    "a partner who is no member any more": (lambda c: c | {"groups": ["gone-board"]}, "gone is no member"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_token_that_says_the_wrong_thing_lets_nobody_in(provider: OpenId, visit: Visit, what: str) -> None:
    provider.bend, why = LIES[what]
    answer = visit.back(provider.authorize(visit.begin()))
    assert answer.status_code == 403 and why in answer.text, answer.text
    assert visit.client.get("/me").status_code == 401


@pytest.mark.parametrize(
    "sign",
    [
        unsigned,
        lambda claims: "no token at all",
        lambda claims: OpenId(1).sign(claims),
        lambda claims: OpenId(1).shared(claims, "a secret"),
    ],
    ids=["not signed", "no token", "another's key", "the client's secret"],
)
def test_a_token_that_the_provider_did_not_sign_lets_nobody_in(
    provider: OpenId, sign: Callable[[Claims], str]
) -> None:
    visit = Visit(provider.issuer, "a secret")
    provider.sign = sign
    answer = visit.back(provider.authorize(visit.begin()))
    assert answer.status_code == 403 and "not signed by a key of the provider" in answer.text


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_an_hour_off_is_named_and_half_a_minute_is_allowed(
    provider: OpenId, visit: Visit, hours: int
) -> None:
    visit.today.now_s += hours * 30
    assert visit.back(provider.authorize(visit.begin())).status_code == 303
    other = Visit(provider.issuer)
    other.today.now_s += hours * 3600
    answer = other.back(provider.authorize(other.begin()))
    seconds = int(re.findall(r"(\d+) s", answer.text)[0])
    assert answer.status_code == 403 and 3200 < seconds <= 3700 and "clock" in answer.text


def test_an_answer_is_good_for_the_browser_and_the_sign_in_that_asked_for_it(
    provider: OpenId, visit: Visit
) -> None:
    url = provider.authorize(visit.begin())
    assert "belongs to another sign-in" in visit.back(re.sub("state=[^&]*", "state=guessed", url)).text
    assert "has begun no sign-in" in visit.back(url).text, "a wrong state uses it up"
    url = provider.authorize(visit.begin())
    assert visit.another().get(url).status_code == 403, "another browser"
    visit.turns.now_s += UNDER_WAY_S + 1
    assert visit.back(url).status_code == 403, "too late"
    url = provider.authorize(visit.begin())
    assert visit.back(url).status_code == 303
    assert visit.back(url).status_code == 403, "twice"
    url = provider.authorize(visit.begin())
    assert "answer is another provider" in visit.back(f"{url}&iss=http://evil.example").text
    query = urlencode(
        {"error": "access_denied", "state": parse_qs(urlsplit(visit.begin()).query)["state"][0]}
    )
    assert "the provider says no" in visit.back(f"/sign-in/oidc/back?{query}").text


def test_a_code_that_was_stolen_is_worth_nothing_without_the_verifier(provider: OpenId, visit: Visit) -> None:
    thief = Visit(provider.issuer)
    code = parse_qs(urlsplit(provider.authorize(visit.begin())).query)["code"][0]
    state = parse_qs(urlsplit(thief.begin()).query)["state"][0]
    answer = thief.back(f"/sign-in/oidc/back?{urlencode({'code': code, 'state': state})}")
    assert answer.status_code == 403 and "invalid_grant" in answer.text


def test_keys_that_were_changed_are_read_again_but_not_for_every_bad_token(
    provider: OpenId, visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit.back(provider.authorize(visit.begin()))
    provider.rotate()
    assert visit.another() and visit.back(provider.authorize(visit.begin())).status_code == 403, (
        "read a moment ago"
    )
    monkeypatch.setattr("governance.dashboard.door.provider.KEYS_AGAIN_S", 0.0)
    assert visit.back(provider.authorize(visit.begin())).status_code == 303
    assert provider.asked.count("/keys") == 2


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"issuer": "http://evil.example"}, "does not describe itself"),
        ({"token_endpoint": None}, "does not describe itself"),
        ({"jwks_uri": "http://127.0.0.1:1/keys"}, "does not answer"),
        ({"padding": "x" * 2**21}, "more than"),
    ],
)
def test_a_provider_that_makes_no_sense_is_named_and_lets_nobody_in(
    provider: OpenId, visit: Visit, said: dict[str, Any], why: str
) -> None:
    provider.said = said
    answer = visit.client.get("/sign-in/oidc")
    assert answer.status_code == 503 and why in answer.text


def test_a_door_file_is_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "door.toml"
    path.write_text(
        'way = "oidc"\npublished = "https://board.example"\n[oidc]\nissuer = "http://login.example"\nclient_id = "hansa"\n'
        'secret = "nowhere"\nscopes = ["profile"]\n[[oidc.grant]]\nclaim = "groups"\nvalue = "x"\nroles = ["reader"]\n'
    )
    with pytest.raises(ConfigError) as caught:
        settings.load(path)
    said = str(caught.value)
    for line, key in ((4, "oidc.issuer"), (6, "oidc.secret"), (7, "oidc.scopes")):
        assert f"door.toml:{line}: {key}" in said, said
    assert "names a partner or the role operator" in said
    for text, what in (
        ('way = "certificate"\n', "needs [tls]"),
        ('way = "link"\npublished = "https://board.example"\n', "not of this machine"),
        ('way = "oidc"\n', "needs [oidc]"),
        ('way = "link"\n[certificate]\nrevoked = "x"\n', "is for way = 'certificate'"),
        ('way = "password"\n', "way"),
        ('way = "link"\npublished = "https://board.example/path"\n', "published"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(what)):
            settings.load(path)


def test_nothing_is_published_without_tls(tmp_path: Path) -> None:
    path = tmp_path / "door.toml"
    path.write_text('way = "link"\n')
    link = settings.load(path)
    assert str(Origin.of("127.0.0.1", 8080, link)) == "http://127.0.0.1:8080"
    assert str(Origin.of("::1", 8080, link)) == "http://[::1]:8080"
    with pytest.raises(ConfigError, match="without TLS"):
        Origin.of("0.0.0.0", 8080, link)
    (tmp_path / "board.pem").write_text("")
    path.write_text('way = "certificate"\n[tls]\ncertificate = "board.pem"\nkey = "board.pem"\n')
    with_tls = settings.load(path)
    assert str(Origin.of("board.example", 443, with_tls)) == "https://board.example"
    for everywhere in ("0.0.0.0", "::"):
        with pytest.raises(ConfigError, match="which one people use"):
            Origin.of(everywhere, 443, with_tls)
    path.write_text('way = "link"\npublished = "http://127.0.0.1:8700"\n')
    assert str(Origin.of("0.0.0.0", 8080, settings.load(path))) == "http://127.0.0.1:8700"
