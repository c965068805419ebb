"""The dashboard's door: who comes in by the local link, what a session is good for, and what a stranger's request may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from governance.dashboard.door import Origin
from governance.dashboard.door.door import within
from governance.dashboard.door.limits import FORM_BYTES_MAX, SIGN_INS, SUBMITS
from governance.dashboard.door.sessions import IDLE_S, SESSIONS_OF_ONE_MAX, WHOLE_S, Sessions
from governance.dashboard.viewer import Role, Viewer
from tests.support.door import ACME, LOOPBACK, Time, app_of, by_link, csrf_of

BASE = "http://127.0.0.1:8080"
COOKIE = "hansa-session-8080"
OWN = {"origin": BASE}


class Visit:
    """A browser before a door; `links` are those that the door has given so far."""

    def __init__(self, origin: Origin = LOOPBACK, viewer: Viewer = ACME) -> None:
        self.time = Time()
        self.door, self.links = by_link(self.time, origin, viewer)
        self.app = app_of(self.door)
        self.client = self.another()

    def another(self, base: str = "") -> TestClient:
        return TestClient(
            self.app,
            base_url=base or str(self.door.origin),
            follow_redirects=False,
            raise_server_exceptions=False,
        )

    def sign_in(self) -> Visit:
        answer = self.client.get(self.links[-1])
        assert answer.status_code == 303, answer.text
        return self

    def with_cookie(self, value: str) -> Any:
        """What a browser is told that holds this session's cookie and nothing else."""
        return self.another().get("/me", headers={"cookie": f"{COOKIE}={value}"})

    @property
    def csrf(self) -> str:
        return str(self.client.get("/me").json()["csrf"])


@pytest.fixture
def visit() -> Visit:
    return Visit().sign_in()


def test_a_link_signs_in_once_and_the_next_one_is_told() -> None:
    visit = Visit()
    first = visit.links[0]
    visit.sign_in()
    assert visit.client.get("/me").json()["roles"] == ["accountant", "reader", "voter"]
    again = visit.another().get(first)
    assert again.status_code == 403 and "used before" in again.text
    assert len(visit.links) == 2 and visit.another().get(visit.links[1]).status_code == 303


def test_who_is_not_signed_in_is_led_to_the_sign_in_page_and_back(visit: Visit) -> None:
    stranger = visit.another()
    led = stranger.get("/bill/acme?all=1", headers={"accept": "text/html"})
    assert (led.status_code, led.headers["location"]) == (303, "/sign-in?then=/bill/acme%3Fall%3D1")
    assert "Each link works once" in stranger.get(led.headers["location"]).text
    assert stranger.get("/me").status_code == 401
    back = stranger.get(f"{visit.links[-1]}&then=/bill/acme%3Fall%3D1")
    assert back.headers["location"] == "/bill/acme?all=1"


@pytest.mark.parametrize(
    "then",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "evil",
     "/\tevil", "/a\r\nset-cookie: x=1", "/sign-out", "/sign-in", "/ümlaut", "/" + "a" * 600, ""],
)  # fmt: skip
def test_nobody_is_led_elsewhere_after_signing_in(then: str) -> None:
    assert within(then) == "/"
    visit = Visit()
    assert visit.client.get(visit.links[0], params={"then": then} | _token(visit)).headers["location"] == "/"


def _token(visit: Visit) -> dict[str, str]:
    return {"token": visit.links[0].rpartition("=")[2]}


def test_a_session_cookie_is_for_this_dashboard_alone_and_no_script_reads_it() -> None:
    plain = Visit()
    said = plain.client.get(plain.links[0]).headers["set-cookie"].lower()
    assert (
        said.startswith(f"{COOKIE}=") and "httponly" in said and "samesite=lax" in said and "path=/" in said
    )
    assert "secure" not in said and "domain" not in said and "max-age" not in said
    secure = Visit(Origin("https", "board.example", 443))
    said = secure.client.get(secure.links[0]).headers["set-cookie"].lower()
    assert said.startswith("__host-hansa-session-443=") and "; secure" in said and "domain" not in said


def test_a_session_that_was_planted_in_a_browser_is_not_the_one_it_goes_on_in() -> None:
    visit = Visit()
    answer = visit.client.get(visit.links[0], headers={"cookie": f"{COOKIE}=planted"})
    assert "planted" not in answer.headers["set-cookie"]
    assert visit.with_cookie("planted").status_code == 401
    held = answer.cookies[COOKIE]
    visit.client.get(visit.links[1])
    assert visit.with_cookie(held).status_code == 401, "it ended with the new sign-in"


def test_two_cookies_of_one_name_are_nobodys(visit: Visit) -> None:
    held = visit.client.cookies[COOKIE]
    doubled = {"cookie": f"{COOKIE}={held}; {COOKIE}=other"}
    assert visit.another().get("/me", headers=doubled).status_code == 401


def test_who_has_signed_out_cannot_go_on_with_what_they_had(visit: Visit) -> None:
    held = visit.client.cookies[COOKIE]
    out = visit.client.post("/sign-out", data={"csrf": visit.csrf}, headers=OWN)
    assert (out.status_code, out.headers["location"]) == (303, "/sign-in?out=1")
    assert "max-age=0" in out.headers["set-cookie"].lower()
    assert visit.with_cookie(held).status_code == 401


def test_a_session_ends_when_it_was_idle_and_however_busy_it_was(visit: Visit) -> None:
    visit.time.now_s += IDLE_S
    assert visit.client.get("/me").status_code == 200
    visit.time.now_s += IDLE_S + 1
    assert visit.client.get("/me").status_code == 401
    left = Visit().sign_in()
    left.time.now_s += IDLE_S
    stream = {"accept": "text/event-stream"}
    assert left.client.get("/me", headers=stream).status_code == 200, "a page that was left open"
    left.time.now_s += 1
    assert left.client.get("/me", headers=stream).status_code == 401
    busy = Visit().sign_in()
    for _ in range(int(WHOLE_S // IDLE_S)):
        busy.time.now_s += IDLE_S
        assert busy.client.get("/me").status_code == 200
    busy.time.now_s += 1
    assert busy.client.get("/me").status_code == 401


def test_sessions_are_bounded_and_one_viewer_does_not_push_out_others() -> None:
    sessions = Sessions(Time())
    other = sessions.begin(Viewer("beta", "beta", frozenset({Role.READER})))
    held = [sessions.begin(ACME) for _ in range(SESSIONS_OF_ONE_MAX + 3)]
    assert len(sessions) == SESSIONS_OF_ONE_MAX + 1
    assert sessions.find(other) and sessions.find(held[-1]) and not sessions.find(held[2])


def forged(visit: Visit) -> Iterator[tuple[str, dict[str, Any]]]:
    token = visit.csrf
    yield "no token", {"headers": OWN}
    yield "a token of nobody", {"headers": OWN, "data": {"csrf": "x" * 43}}
    yield "another session's", {"headers": OWN, "data": {"csrf": Visit().sign_in().csrf}}
    yield "not ASCII", {"headers": OWN, "data": {"csrf": "ü"}}
    yield "another site", {"headers": {"origin": "https://evil.example"}, "data": {"csrf": token}}
    yield "another port", {"headers": {"origin": "http://127.0.0.1:9999"}, "data": {"csrf": token}}
    yield "another scheme", {"headers": {"origin": "https://127.0.0.1:8080"}, "data": {"csrf": token}}
    yield "no site", {"headers": {"origin": "null"}, "data": {"csrf": token}}
    yield "a sister", {"headers": {"sec-fetch-site": "same-site"}, "data": {"csrf": token}}
    yield (
        "a form in another dress",
        {"headers": {**OWN, "content-type": "text/plain"}, "content": f"csrf={token}"},
    )


def test_a_forged_request_does_nothing(visit: Visit) -> None:
    for what, request in forged(visit):
        assert visit.client.post("/echo", **request).status_code == 403, what


def test_a_form_and_a_script_of_our_own_page_pass_and_the_page_gets_the_whole_body(visit: Visit) -> None:
    page = visit.client.get("/", headers={"accept": "text/html"}).text
    token = csrf_of(page)
    assert visit.client.post("/echo", data={"csrf": token, "note": "äöü"}, headers=OWN).text.endswith(
        "note=%C3%A4%C3%B6%C3%BC"
    )
    script = {**OWN, "sec-fetch-site": "same-origin", "x-csrf": token, "content-type": "application/json"}
    assert visit.client.post("/echo", content=b'{"a":1}', headers=script).text == '{"a":1}'


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", "localhost.:8080", "[::1", "", "127.0.0.1:x"]
)
def test_a_name_that_was_pointed_at_this_machine_is_not_answered(visit: Visit, host: str) -> None:
    for path in ("/me", "/sign-in", visit.links[-1]):
        assert visit.client.get(path, headers={"host": host}).status_code == 421
    assert len(visit.links) == 2, "no link was used up"


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST:9000", "[::1]:8080"])
def test_the_names_of_a_loopback_listener_are_answered(visit: Visit, host: str) -> None:
    assert visit.client.get("/sign-in", headers={"host": host}).status_code == 303


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "PUT", "DELETE", "PATCH", "CONNECT", "PROPFIND"])
def test_methods_that_no_page_uses_are_refused(visit: Visit, method: str) -> None:
    answer = visit.client.request(method, "/me")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_a_body_is_bounded_whether_or_not_it_says_how_long_it_is(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("governance.dashboard.door.guard.BODY_BYTES_MAX", 2**18)
    token, read = visit.csrf, 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 2**14

    form = {**OWN, "content-type": "application/x-www-form-urlencoded"}
    script = {**OWN, "x-csrf": token}
    field = f"csrf={token}&note=".encode()
    fitting = field + b"x" * (FORM_BYTES_MAX - len(field))
    assert visit.client.post("/echo", content=fitting, headers=form).content == fitting
    assert visit.client.post("/echo", content=fitting + b"x", headers=form).status_code == 413
    assert visit.client.post("/echo", content=endless(), headers=form).status_code == 413
    assert visit.client.post("/echo", content=b"x" * 2**18, headers=script).status_code == 200
    assert visit.client.post("/echo", content=endless(), headers=script).status_code == 413
    for length in ("99999999", "-1", "many"):
        assert visit.client.post("/echo", headers={**script, "content-length": length}).status_code == 413
    assert visit.client.post("/echo", data={f"f{n}": "" for n in range(300)}, headers=OWN).status_code == 400


def test_guessing_a_link_soon_takes_a_minute_per_handful(visit: Visit) -> None:
    guesses = [visit.another().get("/sign-in/link?token=x") for _ in range(SIGN_INS.burst + 5)]
    assert [g.status_code for g in guesses[:3]] == [403] * 3
    last = guesses[-1]
    assert last.status_code == 429 and 0 < int(last.headers["retry-after"]) <= 61
    visit.time.now_s += 61
    assert visit.another().get(visit.links[-1]).status_code == 303


def test_a_session_that_submits_without_end_is_slowed_down(visit: Visit) -> None:
    headers = {**OWN, "x-csrf": visit.csrf}
    answers = [visit.client.post("/echo", headers=headers).status_code for _ in range(SUBMITS.burst + 1)]
    assert answers == [200] * SUBMITS.burst + [429]
    assert visit.client.get("/me").status_code == 200, "who submits too much may still read"


def test_a_role_is_asked_for_and_a_bill_is_its_own_partners() -> None:
    accountant = Visit(viewer=Viewer("Ada", "acme", frozenset({Role.READER, Role.ACCOUNTANT}))).sign_in()
    operator = Visit(viewer=Viewer("operator", None, frozenset({Role.READER, Role.OPERATOR}))).sign_in()
    reader = Visit(viewer=Viewer("Rob", "acme", frozenset({Role.READER}))).sign_in()
    assert accountant.client.get("/bill/acme").text == "12 EUR"
    for refused in (
        accountant.client.get("/bill/beta"), reader.client.get("/bill/acme"),
        accountant.client.get("/vote"), operator.client.get("/vote"),
    ):  # fmt: skip
        assert refused.status_code == 403 and "You are signed in as" in refused.text
    assert operator.client.get("/bill/beta").text == "12 EUR"


def test_every_answer_has_the_headers_that_hold_a_browser_to_the_rules(visit: Visit) -> None:
    asked: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("a page", lambda: visit.client.get("/me")),
        ("no page", lambda: visit.client.get("/nothing")),
        ("a refusal of the door", lambda: visit.client.get("/me", headers={"host": "evil.example"})),
        ("a refusal of a method", lambda: visit.client.request("TRACE", "/")),
        ("a redirection", lambda: visit.another().get("/", headers={"accept": "text/html"})),
        ("a mistake of ours", lambda: visit.client.get("/fail")),
    )
    for what, ask in asked:
        headers = ask().headers
        assert "default-src 'none'" in headers.get("content-security-policy", ""), what
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store", what
    assert "secret" not in visit.client.get("/fail").text


def test_an_answer_under_way_ends_with_its_session(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("governance.dashboard.door.guard.ASK_AGAIN_S", 0.0)
    visit.time.now_s += WHOLE_S - 1
    visit.time.now_s -= WHOLE_S - 1
    real = visit.door.way.still
    asked = 0

    async def still(*arguments: Any) -> str:
        nonlocal asked
        asked += 1
        return "it was revoked" if asked > 5 else await real(*arguments)

    monkeypatch.setattr(visit.door.way, "still", still)
    ticks = visit.client.get("/ticks")
    assert ticks.status_code == 200 and 2 <= ticks.text.count("tick") <= 6
    assert visit.client.get("/me").status_code == 401
