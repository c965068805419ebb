"""Every page, on every screen: nothing is reported in the console, nothing is out of reach, nothing runs off a phone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from tests.browser.browser import LOOKS, Browser
from tests.browser.shown import Shown

PAGES_MAX = 60
IMAGES = os.environ.get("HANSA_IMAGES", "")
"""Folder to write a picture of each page into (`make images`); empty: none are."""
_LINKS = """
return [...document.querySelectorAll("a[href]:not([download])")].map((a) => a.href)
  .filter((href) => href.startsWith(location.origin + "/")).map((href) => href.split("#")[0].slice(location.origin.length));
"""


def shape(path: str) -> str:
    """What pages of one kind have in common: /proposals/3 and /proposals/4 are one."""
    return re.sub(
        r"(?<=/)([0-9]+|P-[0-9]+|sha256:[0-9a-f]+|[0-9a-f]{16,}|run-[0-9]+)(?=/|$)", "*", urlsplit(path).path
    )


def test_every_page_that_is_linked_keeps_the_rules_in_light_in_the_dark_and_on_a_phone(
    member: Browser, shown: Shown
) -> None:
    base = member.driver.current_url.rstrip("/")
    waiting, seen, wrong = ["/"], {"/"}, []
    pages = 0
    while waiting:
        path, pages = waiting.pop(0), pages + 1
        assert pages <= PAGES_MAX, f"pages without end: {sorted(seen)}"
        for look in LOOKS:
            member.look(look)
            member.open(base + path)
            at = f"{path} ({look})"
            wrong += [f"{at}: {text}" for text in (*member.complaints(), *member.inaccessible())]
            if look == "phone" and (too_wide := member.too_wide()):
                wrong.append(f"{at}: runs off the screen: {too_wide}")
            if IMAGES:
                member.screenshot(
                    Path(IMAGES)
                    / f"dashboard-{shape(path).strip('/').replace('/', '-') or 'overview'}-{look}.png"
                )
        for found in member.driver.execute_script(_LINKS):
            if shape(found) not in seen and not found.startswith(("/static/", "/sign-")):
                seen.add(shape(found))
                waiting.append(found)
    assert not wrong, "\n".join(wrong)
    listed = {a.get_dom_attribute("href") for a in member.all("nav.side a")}
    assert listed and listed <= seen


def test_a_page_stays_open_without_a_mouse(member: Browser) -> None:
    """The first stop of the Tab key leads past the navigation."""
    member.driver.execute_script("document.querySelector('a.skip').focus()")
    assert member.driver.execute_script("return document.activeElement.getBoundingClientRect().top") >= 0
    member.driver.execute_script("document.activeElement.click()")
    member.until(lambda b: b.driver.current_url.endswith("#main"))
