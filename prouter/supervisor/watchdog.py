"""The router's life as systemd's watchdog sees it: told only after broker and workers have answered a request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from prouter.process.systemd import notify

__all__ = ["Watchdog"]

log = logging.getLogger("prouter.supervisor")

_PARTS = 4
"""Proofs within the watchdog's time, so that one may fail or come late."""
_RETRY = 1.0
"""Most seconds until the next try after one that failed."""


class Watchdog:
    """Tells the service manager regularly that the router works.

    Args:
        timeout: seconds after which the service manager restarts a router of which it has heard nothing; None if it
            does not watch.
        works: asks the router; may take some seconds.

    Attributes:
        due: when to call `tell` (monotonic seconds); None for never.
    """

    def __init__(self, timeout: float | None, works: Callable[[], bool]) -> None:
        self._pause = timeout / _PARTS if timeout is not None else 0.0
        self._works = works
        self._failing = False
        self.due = time.monotonic() if timeout is not None else None

    def tell(self) -> None:
        """Tell that the router works, if that is due and so."""
        if self.due is None or time.monotonic() < self.due:
            return
        works = self._works()
        if works:
            notify("WATCHDOG=1")
        if works == self._failing:
            self._failing = not works
            log.log(logging.INFO if works else logging.WARNING, "event=%s", "answers_again" if works else "no_answer")
        self.due = time.monotonic() + (self._pause if works else min(self._pause, _RETRY))
