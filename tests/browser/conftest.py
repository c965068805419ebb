"""One Chromium and one consortium for all tests in a browser. A test fails when its pages complained of anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.browser import Browser, chromium, lacking
from tests.browser.shown import Shown, consortium

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skipped, with the reason, where there is no browser."""
    if why := lacking():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with consortium(tmp_path_factory.mktemp("shown")) as found:
        yield found


@pytest.fixture(scope="session")
def _chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def browser(_chromium: Browser) -> Iterator[Browser]:
    """As if it was never used. What its pages complain of and no test expects (`forgive`) fails the test."""
    _chromium.forget()
    _chromium.complaints()
    yield _chromium
    assert _chromium.complaints() == []


@pytest.fixture
def member(browser: Browser, shown: Shown) -> Browser:
    """Signed in as alder, with all a member's roles, on the overview."""
    return browser.open(shown.dashboard("alder").link())
