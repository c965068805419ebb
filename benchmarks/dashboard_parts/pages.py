"""The dashboard before a coordinator at work: first paint and weight of its pages in Chromium, how soon a record shows,
and what two hundred open pages cost the coordinator."""

from __future__ import annotations

import asyncio
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, build_opener

from benchmarks import procfs
from benchmarks.dashboard_parts.stage import make
from tests.browser.browser import Browser, chromium

PAINTS = 9
UPDATES = 15
PAGES_OPEN = 200
WINDOW_S = 20.0
_READY_S = 900.0
PATHS = ("/", "/rounds", "/experts", "/learning", "/budgets", "/members", "/journal", "/alerts")
_WEIGHT = """
const all = performance.getEntriesByType("resource").filter((e) => e.initiatorType !== "eventsource");
const page = performance.getEntriesByType("navigation")[0];
return page.transferSize + all.reduce((sum, e) => sum + e.transferSize, 0);
"""
_PAINT = "const p = performance.getEntriesByName('first-contentful-paint')[0]; return p ? p.startTime : null"
_WATCH = """
window.__seen = [];
document.addEventListener("part", () => {
  const value = [...document.querySelectorAll(".stat")].find((s) => s.textContent.includes("Journal"));
  window.__seen.push([Date.now(), Number(value.querySelector(".value").textContent.replaceAll(",", ""))]);
});
"""


@dataclass
class Pages:
    records: int
    start_s: float
    """Until the coordinator had replayed its journal and answered."""
    paint_ms: float
    """First contentful paint of Overview, median over loads by a browser that has nothing of it."""
    paint_worst_ms: float
    weight_kb: float
    """Of the heaviest page, with all it loads."""
    heaviest: str
    update_ms: float
    """From a record's commit to the page that shows it: median."""
    update_worst_ms: float
    idle_percent: float
    """CPU of one core that the coordinator takes with no page open."""
    open_percent: float
    """The same with `PAGES_OPEN`."""
    dashboard_percent: float
    """What the dashboard takes for them."""
    opened: int
    """Pages that were open to the end."""
    events_per_s: float
    """What all of them together were told."""


def measure(folder: Path, records: int) -> Pages:
    home = make(folder, records)
    with _process("benchmarks.dashboard_parts.stage", str(home)) as coordinator:
        ready = coordinator.hear(_READY_S)
        idle = _cpu_percent([coordinator.pid])[0]
        with _process(
            "hansa", "dashboard", "--seat", ready["seat"], "--listen", "127.0.0.1:0", "--json"
        ) as board:
            link = board.hear(60)["url"]
            with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
                browser.open(link)
                paints = _paints(browser)
                weights = {path: _weight(browser, path) for path in PATHS}
                updates = _updates(browser, coordinator)
            cookie, base = _signed_in(board.hear(60)["url"])
            busy, own, opened, told = _crowd(base, cookie, coordinator.pid, board.pid)
    heaviest = max(weights, key=lambda path: weights[path])
    return Pages(
        records=ready["records"],
        start_s=ready["ready_s"],
        paint_ms=statistics.median(paints),
        paint_worst_ms=max(paints),
        weight_kb=weights[heaviest] / 1000,
        heaviest=heaviest,
        update_ms=statistics.median(updates),
        update_worst_ms=max(updates),
        idle_percent=idle,
        open_percent=busy,
        dashboard_percent=own,
        opened=opened,
        events_per_s=told,
    )


def _paints(browser: Browser) -> list[float]:
    """ms, each with an empty cache."""
    base = browser.driver.current_url
    browser.driver.execute_cdp_cmd("Network.enable", {})
    found = []
    for _ in range(PAINTS):
        browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        browser.open(base)
        found.append(float(browser.until(lambda b: b.driver.execute_script(_PAINT))))
    return found


def _weight(browser: Browser, path: str) -> float:
    """Bytes over the wire with an empty cache."""
    parts = urlsplit(browser.driver.current_url)
    browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    browser.open(f"{parts.scheme}://{parts.netloc}{path}")
    browser.until(lambda b: b.driver.execute_script("return document.readyState") == "complete")
    return float(browser.driver.execute_script(_WEIGHT))


def _updates(browser: Browser, coordinator: _Process) -> list[float]:
    """ms from each record's commit to the first change of the page that counts it."""
    parts = urlsplit(browser.driver.current_url)
    browser.open(f"{parts.scheme}://{parts.netloc}/")
    browser.driver.execute_script(_WATCH)
    coordinator.forget()
    committed = [coordinator.hear(10) for _ in range(UPDATES)]
    time.sleep(2)
    seen: list[tuple[float, int]] = browser.driver.execute_script("return window.__seen")
    found = []
    for record in committed:
        shown = [at for at, size in seen if size >= record["size"]]
        assert shown, f"record {record['size']} was never shown; the page saw {seen[-3:]}"
        found.append(shown[0] - record["at_ms"])
    return found


def _signed_in(link: str) -> tuple[str, str]:
    """(Cookie header, where the dashboard is) of somebody who used the link."""
    cookies = HTTPCookieProcessor()
    build_opener(cookies).open(link).read()
    parts = urlsplit(link)
    return "; ".join(f"{c.name}={c.value}" for c in cookies.cookiejar), f"{parts.hostname}:{parts.port}"


def _crowd(base: str, cookie: str, coordinator: int, board: int) -> tuple[float, float, int, float]:
    """CPU of coordinator and dashboard in percent of a core while so many pages are open, how many stayed so, and how many
    events a second they got."""
    told = 0
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    host, _, port = base.rpartition(":")

    async def look(path: str) -> None:
        nonlocal told
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"GET {path} HTTP/1.1\r\nHost: {base}\r\nCookie: {cookie}\r\nAccept: text/event-stream\r\n\r\n"
        writer.write(head.encode())
        while data := await reader.read(65_536):
            told += data.count(b"event: parts")
            if b"HTTP/1.1 " in data and b"HTTP/1.1 200" not in data:
                return

    looking = [asyncio.run_coroutine_threadsafe(look(PATHS[n % len(PATHS)]), loop) for n in range(PAGES_OPEN)]
    time.sleep(5)
    before, began = told, time.monotonic()
    busy, own = _cpu_percent([coordinator, board])
    rate = (told - before) / (time.monotonic() - began)
    opened = sum(not one.done() for one in looking)
    for one in looking:
        one.cancel()
    time.sleep(0.5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    return busy, own, opened, rate


def _cpu_percent(pids: list[int]) -> list[float]:
    began, before = time.monotonic(), [_cpu_s(pid) for pid in pids]
    time.sleep(WINDOW_S)
    took = time.monotonic() - began
    return [100 * (_cpu_s(pid) - first) / took for pid, first in zip(pids, before, strict=True)]


def _cpu_s(pid: int) -> float:
    stat = procfs.stat(pid)
    return (int(stat[11]) + int(stat[12])) / procfs.TICK


class _Process:
    """A program that prints a JSON value on each line."""

    def __init__(self, module: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self, timeout_s: float) -> dict[str, Any]:
        return self._heard.get(timeout=timeout_s)

    def forget(self) -> None:
        while not self._heard.empty():
            self._heard.get()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            self._heard.put(json.loads(line))


@contextmanager
def _process(module: str, *words: str) -> Iterator[_Process]:
    found = _Process(module, *words)
    try:
        yield found
    finally:
        found.close()
