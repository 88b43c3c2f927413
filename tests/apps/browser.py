"""A headless Chromium that connects to this machine only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.support.chromium import ALONE

__all__ = ["chromium"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, until the block ends.

    Raises:
        FileNotFoundError: it is not installed.
    """
    executable = shutil.which("chromium")
    if executable is None:
        raise FileNotFoundError("chromium is not installed (as root: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=Path(executable), args=ALONE)
        try:
            yield browser
        finally:
            browser.close()
