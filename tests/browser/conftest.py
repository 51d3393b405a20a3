"""A real browser for the tests of this folder: the distribution's Chromium through Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: clicks through a page in Chromium (`make test-browser`)")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; skips where it or Playwright is not installed. $CHROMIUM names another one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox does not work for root, which tests in a container are run by.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
