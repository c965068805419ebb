"""Signing in to a dashboard with a real browser: who comes in, what is refused to whom, and how one leaves."""

from __future__ import annotations

from tests.browser.browser import Browser
from tests.browser.shown import Shown


def test_the_link_that_was_printed_signs_in_and_who_signs_out_is_out(browser: Browser, shown: Shown) -> None:
    link = shown.dashboard("alder").link()
    base = link.partition("/sign-in")[0]
    browser.open(f"{base}/")
    assert browser.path.startswith("/sign-in?then=") and "Open the link" in browser.text
    assert browser.inaccessible() == []
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
