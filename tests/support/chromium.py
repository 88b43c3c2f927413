"""A headless Chromium for tests, by the DevTools protocol over one WebSocket. It connects to this machine only."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support.processes import Process, wait_until
from tests.support.programs import program

__all__ = ["ALONE", "Browser", "Profile", "Tab", "browser"]

ALONE = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",  # it runs as root in containers, too
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE *.localhost",
]
"""Arguments by which Chromium talks to this machine only."""
_DEADLINE = 40.0
"""Seconds for one step; a loaded machine may need most of them."""


class Browser:
    """A running Chromium.

    Args:
        socket: to its DevTools.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        """Call a method of the protocol; return its result.

        Raises:
            AssertionError: it failed.
        """
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        end = time.monotonic() + _DEADLINE
        while True:
            reply = json.loads(self._socket.recv(timeout=max(0.1, end - time.monotonic())))
            if reply.get("id") == number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]

    def profile(self) -> Profile:
        """A profile with cookies and storage of its own."""
        return Profile(self, self.call("Target.createBrowserContext")["browserContextId"])


class Profile:
    """Cookies and tabs of one visitor."""

    def __init__(self, browser: Browser, context: str) -> None:
        self._browser = browser
        self._context = context

    def open(self, url: str = "about:blank") -> Tab:
        """A new tab, whose page is loaded."""
        made = self._browser.call("Target.createTarget", url="about:blank", browserContextId=self._context)
        session = self._browser.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)["sessionId"]
        tab = Tab(self._browser, session)
        if url != "about:blank":
            tab.go(url)
        return tab

    def cookies(self) -> list[dict[str, Any]]:
        """All cookies, also those that scripts cannot see."""
        found = self._browser.call("Storage.getCookies", browserContextId=self._context)
        cookies: list[dict[str, Any]] = found["cookies"]
        return cookies


class Tab:
    """A tab. `run` and `wait` evaluate JavaScript in its page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def go(self, url: str) -> None:
        """Go to a page, as somebody who types the address, and wait until it is loaded."""
        self.run("window.left = true")
        self._browser.call("Page.navigate", self._session, url=url)
        self.wait("!window.left && document.readyState === 'complete'")

    def fields(self, **values: str) -> None:
        """Add fields to all requests of this tab, as a proxy in front would."""
        self._browser.call("Network.enable", self._session)
        headers = {name.replace("_", "-"): value for name, value in values.items()}
        self._browser.call("Network.setExtraHTTPHeaders", self._session, headers=headers)

    def run(self, script: str) -> Any:
        """Evaluate an expression; wait for it if it is a promise.

        Raises:
            AssertionError: it threw.
        """
        done = self._browser.call(
            "Runtime.evaluate",
            self._session,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def size(self, width: int, height: int) -> None:
        """Give the page a size in pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._browser.call("Emulation.setDeviceMetricsOverride", self._session, **metrics)

    def picture(self) -> str:
        """Return what the page shows as PNG, in base64."""
        taken: str = self._browser.call("Page.captureScreenshot", self._session, format="png")["data"]
        return taken

    def wait(self, condition: str) -> None:
        """Wait until an expression is true, over any number of pages."""

        def holds() -> bool:
            try:
                return bool(self.run(condition))
            except AssertionError:
                return False  # the page is being replaced

        wait_until(holds, _DEADLINE, condition)


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Debian's Chromium, until the block ends.

    Args:
        directory: for its files.
    """
    executable = program("chromium")
    assert executable is not None
    told = directory / "DevToolsActivePort"
    told.unlink(missing_ok=True)  # left by an earlier one with the same directory
    argv = [executable, "--headless=new", *ALONE, "--disable-popup-blocking", "--remote-debugging-port=0"]
    process = Process([*argv, f"--user-data-dir={directory}", "about:blank"], directory.with_suffix(".log"))
    try:
        lines = wait_until(lambda: told.read_text().split() if told.exists() else [], _DEADLINE, "Chromium listens")
        with connect(f"ws://127.0.0.1:{lines[0]}{lines[1]}", max_size=None, compression=None) as socket:
            yield Browser(socket)
    finally:
        process.stop()
