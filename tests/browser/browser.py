"""Debian's Chromium, as a person would use it, with what it complained of and what an accessibility checker finds.

Chromium runs headless, alone in a fresh profile, and speaks to nobody but the page.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
IMAGES = os.environ.get("HANSA_IMAGES", "")
"""Folder for pictures of the pages; empty: none are made."""
PATIENCE_S = 20.0
LOOKS: dict[str, tuple[str, int, int]] = {
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "phone": ("light", 390, 844),
}
"""Name -> (colour scheme, width, height in CSS pixels)."""
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # continuous integration runs as root, where Chromium has no sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--hide-scrollbars",
    "--ignore-certificate-errors",
)
_NOT_YET = (NoSuchElementException, StaleElementReferenceException)
_VIOLATIONS = """
window.__refused = [];
document.addEventListener("securitypolicyviolation", (e) =>
  window.__refused.push(`${e.effectiveDirective} refused ${e.blockedURI || "inline"} at ${e.sourceFile}:${e.lineNumber}`));
"""


def lacking() -> str:
    """Why there can be no browser here; empty: there can."""
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if lost := [name for name, path in found.items() if path is None]:
        return f"no {' and no '.join(lost)} on this machine (`make browser` says how to get it)"
    return "" if AXE.exists() else "axe-core is not installed (`make browser`)"


class Browser:
    """One window. What the pages of a test complained of is collected until `complaints` is asked."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        self._forgiven: list[re.Pattern[str]] = []
        self._refused: list[str] = []

    @property
    def path(self) -> str:
        return str(self.driver.execute_script("return location.pathname + location.search"))

    @property
    def text(self) -> str:
        """What is to be read in the page's main part, all at one moment: live pages replace their parts."""
        return str(self.driver.execute_script("return document.querySelector('main')?.innerText ?? ''"))

    def open(self, url: str) -> Browser:
        self._note_refusals()
        self.driver.get(url)
        return self

    def one(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def click(self, css: str) -> None:
        """The first such element, once it is there."""
        self._note_refusals()
        self.until(lambda b: b.one(css).click() or True)  # type: ignore[func-returns-value]

    def press(self, words: str) -> None:
        """The button or link that says so."""
        found = f'//*[self::button or self::a][normalize-space(.)="{words}"]'
        self._note_refusals()
        self.until(lambda b: b.driver.find_element(By.XPATH, found).click() or True)  # type: ignore[func-returns-value]

    def until(self, holds: Callable[[Browser], Any]) -> Any:
        """What it gives, once that is true. What is not there, or was replaced while it was looked at, is looked for again."""
        wait = WebDriverWait(self.driver, PATIENCE_S, 0.05, _NOT_YET)
        return wait.until(lambda _: holds(self))

    def forgive(self, pattern: str) -> None:
        """Expect such a complaint in this test: Chromium reports every answer of 4xx as an error."""
        self._forgiven.append(re.compile(pattern))

    def look(self, name: str) -> None:
        """From now on as on such a screen: `light`, `dark` or `phone`. Nothing moves, so that colours are what they will be."""
        scheme, width, height = LOOKS[name]
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def screenshot(self, path: Path) -> None:
        """Of the whole page, as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def picture(self, name: str, *looks: str) -> None:
        """A picture of the page for the documentation, where somebody asked for pictures (`make images`)."""
        for look in looks if IMAGES else ():
            self.look(look)
            self.screenshot(Path(IMAGES) / f"dashboard-{name}-{look}.png")

    def inaccessible(self, *rules: str) -> list[str]:
        """What axe-core finds that is serious or critical: rule, why, and where. `rules`: only these."""
        if not self.driver.execute_script("return 'axe' in window"):
            self.driver.execute_script(AXE.read_text())
        found = self.driver.execute_async_script(
            "const [only, done] = arguments;"
            "axe.run(document, {resultTypes: ['violations'], ...(only.length ? {runOnly: only} : {})})"
            ".then(done, (e) => done({error: `${e}`}))",
            list(rules),
        )
        assert "error" not in found, found["error"]
        return [
            f"{v['id']}: {v['help']} at {', '.join(str(n['target']) for n in v['nodes'][:3])}"
            for v in found["violations"]
            if v["impact"] in ("serious", "critical")
        ]

    def too_wide(self) -> list[str]:
        """What stands out of the screen at its right, where the page as a whole would have to be pushed sideways."""
        if not self.driver.execute_script("return document.documentElement.scrollWidth > innerWidth + 1"):
            return []
        found = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        shown: list[str] = self.driver.execute_script(
            f"return {found}.slice(0, 3).map((e) => e.outerHTML.slice(0, 120))"
        )
        return shown or ["something outside of main"]

    def complaints(self) -> list[str]:
        """Console messages and content that the policy refused, since the last time; what was forgiven is left out."""
        self._note_refusals()
        said = [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]
        found = [*said, *self._refused]
        self._refused.clear()
        return [text for text in found if not any(pattern.search(text) for pattern in self._forgiven)]

    def forget(self) -> None:
        """As a browser that was never here: no cookies, no storage, no expectations."""
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.driver.get("about:blank")
        self._forgiven.clear()
        self.look("light")

    def _note_refusals(self) -> None:
        self._refused += self.driver.execute_script("return (window.__refused || []).splice(0)")


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A Chromium with a fresh profile."""
    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(str(shutil.which("chromedriver"))))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _VIOLATIONS})
        browser = Browser(driver)
        browser.look("light")
        yield browser
    finally:
        driver.quit()
