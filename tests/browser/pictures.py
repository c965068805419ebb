"""The pictures in docs/images: pages of a consortium in which much has happened, while a run goes on.

`python -m tests.browser.pictures docs/images`. Look at them before they are committed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.browser.browser import LOOKS, chromium
from tests.browser.shown import Dashboard
from tests.support.lively import lively

WANTED = (
    ("/", "light"),
    ("/", "phone"),
    ("/rounds", "dark"),
    ("/learning", "light"),
    ("/budgets", "light"),
    ("/proposals/3", "light"),
    ("/journal/25", "phone"),
)
"""(path, look)."""


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
                for path, look in WANTED:
                    browser.look(look)
                    browser.open(f"{parts.scheme}://{parts.netloc}{path}")
                    browser.until(
                        lambda b: not b.all("[data-live]") or b.all("[data-pulse][data-state=live]")
                    )
                    _, width, height = LOOKS[look]
                    name = path.strip("/").split("/")[0] or "overview"
                    file = folder / f"dashboard-{name}-{look}.png"
                    browser.driver.save_screenshot(str(file))
                    print(f"{file}: {width} x {height}, {file.stat().st_size // 1000} kB")
        finally:
            board.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
