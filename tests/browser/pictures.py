"""The pictures in docs/images: pages of a consortium in which much has happened, while a run goes on.

`python -m tests.browser.pictures docs/images`. Look at them before they are committed.
"""

from __future__ import annotations

import sys
import tempfile
from io import BytesIO
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from tests.browser.browser import LOOKS, chromium
from tests.browser.shown import Dashboard
from tests.support.lively import lively

PAGES = {
    "overview": "/",
    "rounds": "/rounds",
    "experts": "/experts",
    "learning": "/learning",
    "budgets": "/budgets",
    "proposals": "/proposals",
    "proposal": "/proposals/3",
    "roadmap": "/roadmap",
    "voting-key": "/voting",
    "members": "/members",
    "journal": "/journal",
    "record": "/journal/1",
    "releases": "/releases",
    "alerts": "/alerts",
}
COLOURS = 64
"""Enough for pages of flat colours, at a third of the bytes."""


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work, lively(Path(work), pace_s=1.0) as stage:
        stage.live_through()
        board = Dashboard(Path(stage.seat("alder")), Path(work) / "dashboard.log")
        try:
            with chromium(Path(work) / "chromium") as browser:
                browser.open(board.link())
                parts = urlsplit(browser.driver.current_url)
                stage.office.start_run(stage.folder / "seed", "run-2")
                stage.office.wait(lambda view: len(view.history) > 6, 120)
                for (name, path), look in product(PAGES.items(), LOOKS):
                    browser.look(look)
                    browser.open(f"{parts.scheme}://{parts.netloc}{path}")
                    browser.until(
                        lambda b: not b.all("[data-live]") or b.all("[data-pulse][data-state=live]")
                    )
                    file = folder / f"dashboard-{name}-{look}.png"
                    shot = Image.open(BytesIO(browser.driver.get_screenshot_as_png()))
                    shot.convert("RGB").quantize(COLOURS).save(file, optimize=True)
                    print(f"{file}: {shot.width} x {shot.height}, {file.stat().st_size // 1000} kB")
        finally:
            board.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
