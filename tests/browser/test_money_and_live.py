"""What changes by itself on an open page, and a statement that is taken away and checked again in the browser."""

from __future__ import annotations

from pathlib import Path
from urllib.request import Request, urlopen

from selenium.webdriver.common.by import By

from tests.browser.browser import Browser
from tests.browser.shown import Shown


def test_an_open_page_shows_what_happens_without_being_loaded_again(member: Browser, shown: Shown) -> None:
    member.driver.execute_script("window.stays = true")
    member.until(lambda b: b.all("[data-pulse][data-state=live]"))
    shown.propose("inner-steps", "Seen while it was opened", steps=7)
    member.until(lambda b: "Seen while it was opened" in b.text)
    assert member.driver.execute_script("return window.stays") is True


def test_charts_are_drawn_and_drawn_once_when_a_part_is_replaced(member: Browser, shown: Shown) -> None:
    base = member.driver.current_url.rstrip("/")
    member.open(f"{base}/budgets")
    assert member.until(lambda b: b.all(".plot canvas"))
    plots = len(member.all(".plot canvas"))
    member.driver.execute_script("document.dispatchEvent(new CustomEvent('part'))")
    assert len(member.all(".plot canvas")) == plots


def test_a_statement_is_taken_away_and_checked_and_a_changed_one_is_found(
    member: Browser, shown: Shown, tmp_path: Path
) -> None:
    base = member.driver.current_url.rstrip("/")
    cookies = "; ".join(f"{c['name']}={c['value']}" for c in member.driver.get_cookies())
    data = urlopen(Request(f"{base}/budgets/alder/current/json", headers={"cookie": cookies})).read()
    (tmp_path / "right.json").write_bytes(data)
    (tmp_path / "wrong.json").write_bytes(data.replace(b"granted-micro 1000000", b"granted-micro 2000000"))
    member.open(f"{base}/budgets")
    for name, said in (("right", "It holds: alder, "), ("wrong", "It does NOT hold")):
        field = member.driver.find_element(By.CSS_SELECTOR, "input[type=file]")
        field.send_keys(str(tmp_path / f"{name}.json"))
        member.press("Check it")
        member.until(lambda b, said=said: said in b.one("[data-statement-result]").text)  # type: ignore[misc]
