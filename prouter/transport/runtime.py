"""Clock and event loop, as the transport uses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent import get_hub

__all__ = ["GeventRuntime", "Runtime"]


class Runtime(Protocol):
    """What a peer needs of its surroundings: `GeventRuntime` in processes, a virtual one in simulations."""

    @property
    def now(self) -> Callable[[], float]:
        """Tells the seconds of a monotonic clock."""

    @property
    def soon(self) -> Callable[[Callable[[], None]], Any]:
        """Runs a callback in the next event loop iteration."""

    @property
    def later(self) -> Callable[[float, Callable[[], None]], Any]:
        """Runs a callback after so many seconds."""

    @property
    def spawn(self) -> Callable[..., Any]:
        """Runs a function with arguments beside everything else; the function may block."""


class GeventRuntime:
    """The gevent loop of this thread."""

    def __init__(self) -> None:
        # As attributes, so that a call of them costs no more than a call of the function itself.
        self.now: Callable[[], float] = time.monotonic
        self.soon: Callable[[Callable[[], None]], Any] = get_hub().loop.run_callback
        self.spawn: Callable[..., Any] = gevent.spawn

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run `callback` after `seconds`."""
        timer = get_hub().loop.timer(seconds)

        def run() -> None:
            timer.close()
            callback()

        timer.start(run)
