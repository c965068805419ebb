"""Every page, on every screen: nothing is reported in the console, nothing is out of reach, nothing runs off a phone."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from tests.browser.browser import Browser
from tests.browser.shown import Shown

PAGES_MAX = 60
_LINKS = """
return [...document.querySelectorAll("a[href]:not([download])")].map((a) => a.href)
  .filter((href) => href.startsWith(location.origin + "/")).map((href) => href.split("#")[0].slice(location.origin.length));
"""


def shape(path: str) -> str:
    """What pages of one kind have in common: /proposals/3 and /proposals/4 are one."""
    return re.sub(
        r"(?<=/)([0-9]+|P-[0-9]+|sha256:[0-9a-f]+|[0-9a-f]{16,}|run-[0-9]+)(?=/|$)", "*", urlsplit(path).path
    )


CHECKED: dict[str, tuple[str, ...]] = {"light": (), "dark": ("color-contrast",), "phone": ()}
"""Screen -> the rules that are looked at; (): all of them. In the dark only colours are other ones."""


def test_every_page_that_is_linked_keeps_the_rules_in_light_in_the_dark_and_on_a_phone(
    member: Browser, shown: Shown
) -> None:
    base = member.driver.current_url.rstrip("/")
    waiting, seen, wrong, pages = ["/"], {"/"}, [], 0
    while waiting:
        path, pages = waiting.pop(0), pages + 1
        assert pages <= PAGES_MAX, f"pages without end: {sorted(seen)}"
        member.look("light")
        member.open(base + path)
        for look, rules in CHECKED.items():
            member.look(look)
            wrong += [f"{path} ({look}): {text}" for text in member.inaccessible(*rules)]
            member.picture(name_of(path), look)
        if too_wide := member.too_wide():
            wrong.append(f"{path}: runs off a phone's screen: {too_wide}")
        wrong += [f"{path}: {text}" for text in member.complaints()]
        for found in member.driver.execute_script(_LINKS):
            if shape(found) not in seen and not found.startswith(("/static/", "/sign-")):
                seen.add(shape(found))
                waiting.append(found)
    assert not wrong, "\n".join(wrong)
    listed = {a.get_dom_attribute("href") for a in member.all("nav.side a")}
    assert listed and listed <= seen


def name_of(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", shape(path).replace("*", "one")).strip("-") or "overview"


def test_a_page_stays_open_without_a_mouse(member: Browser) -> None:
    """The first stop of the Tab key leads past the navigation."""
    member.driver.execute_script("document.querySelector('a.skip').focus()")
    assert member.driver.execute_script("return document.activeElement.getBoundingClientRect().top") >= 0
    member.driver.execute_script("document.activeElement.click()")
    member.until(lambda b: b.driver.current_url.endswith("#main"))
