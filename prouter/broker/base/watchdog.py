"""The broker's life as systemd's watchdog sees it: told by a timer, so by the event loop itself."""

from __future__ import annotations

from prouter.broker.base.timers import Timers
from prouter.process.systemd import notify, watchdog_timeout

__all__ = ["serve_watchdog"]

_PARTS = 4


def serve_watchdog(timers: Timers, now: float) -> None:
    """Tell the service manager regularly that the loop runs, four times within its ``WatchdogSec=``, if it watches."""
    timeout = watchdog_timeout()
    if timeout is None:
        return
    notify("WATCHDOG=1")
    timers.at(now + timeout / _PARTS, lambda now: serve_watchdog(timers, now))
