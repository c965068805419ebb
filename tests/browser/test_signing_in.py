"""Signing in to a dashboard with a real browser: who comes in, what is refused to whom, and how one leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser.browser import Browser
from tests.browser.shown import Dashboard, Shown
from tests.support.openid import OpenId, openid

DOOR = """
way = "oidc"
[oidc]
issuer = "{issuer}"
client_id = "hansa"
[[oidc.grant]]
claim = "groups"
value = "books"
partner = "birch"
roles = ["reader", "accountant"]
[[oidc.grant]]
claim = "groups"
value = "visitors"
partner = "birch"
roles = ["reader"]
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenId]:
    """On `localhost`, which is another site than the dashboard's 127.0.0.1."""
    with openid("localhost") as found:
        yield found


@pytest.fixture(scope="module")
def board(provider: OpenId, shown: Shown) -> Iterator[str]:
    """Address of the operator's dashboard, where birch's people sign in with their provider."""
    file = shown.folder / "door.toml"
    file.write_text(DOOR.format(issuer=provider.issuer))
    dashboard = Dashboard(shown.seat("operator"), shown.folder / "board.log", "--door", str(file))
    yield dashboard.link()
    dashboard.close()


def test_the_link_that_was_printed_signs_in_and_who_signs_out_is_out(browser: Browser, shown: Shown) -> None:
    link = shown.dashboard("alder").link()
    base = link.partition("/sign-in")[0]
    browser.open(f"{base}/")
    assert browser.path.startswith("/sign-in?then=") and "Open the link" in browser.text
    assert browser.inaccessible() == []
    browser.picture("sign-in", "light", "dark", "phone")
    browser.open(link)
    assert browser.path == "/" and "alder" in browser.one(".who").text
    cookie = browser.driver.get_cookies()[0]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Lax"
    browser.press("Sign out")
    browser.until(lambda b: "You are signed out" in b.text)
    assert browser.driver.get_cookies() == []
    browser.forgive("403")
    browser.open(link)
    assert "was used before" in browser.text
    browser.open(f"{base}/")
    assert browser.path.startswith("/sign-in")


def test_a_provider_of_another_site_says_who_one_is(browser: Browser, board: str, provider: OpenId) -> None:
    provider.person = {"sub": "Rob", "groups": ["visitors"]}
    browser.open(f"{board}/proposals")
    assert "says who you are" in browser.text and browser.inaccessible() == []
    browser.picture("sign-in-openid", "light", "phone")
    browser.press(f"Sign in at {provider.issuer.removeprefix('http://')}")
    browser.until(lambda b: b.path == "/proposals")
    assert "Rob" in browser.one(".who").text
    browser.forgive("403")
    browser.open(f"{board}/budgets/birch/current")
    assert "for its accountants" in browser.text and browser.inaccessible() == [], "a visitor keeps no books"
    browser.picture("refused", "light", "phone")
    browser.press("Sign out")
    browser.until(lambda b: "You are signed out" in b.text)
    provider.person = {"sub": "Eve", "groups": ["strangers"]}
    browser.open(f"{board}/sign-in/oidc")
    assert "nothing here is granted to Eve" in browser.text
    assert [c["name"] for c in browser.driver.get_cookies() if "session" in c["name"]] == []


def test_an_accountant_sees_the_bill_of_their_own_organisation_and_no_other(
    browser: Browser, board: str, provider: OpenId
) -> None:
    provider.person = {"sub": "Ada", "groups": ["books"]}
    browser.open(f"{board}/sign-in/oidc?then=/budgets/birch/current")
    assert "Statement of birch" in browser.text
    browser.forgive("403")
    browser.open(f"{board}/budgets/alder/current")
    assert "of alder are for its accountants" in browser.text
    browser.open(f"{board}/budgets/alder/current/json")
    assert "of alder are for its accountants" in browser.text
    proposal = browser.open(f"{board}/proposals/3")
    assert proposal.all("button[value=for], input[type=radio]") == [], "who may not vote is offered no ballot"


def test_the_coordinator_itself_keeps_a_members_dashboard_to_the_members_own_bill(
    member: Browser, shown: Shown
) -> None:
    base = member.driver.current_url.rstrip("/")
    assert "Statement of alder" in member.open(f"{base}/budgets/alder/current").text
    member.forgive("403")
    assert "of cedar" in member.open(f"{base}/budgets/cedar/current").text
