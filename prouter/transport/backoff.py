"""Delays between attempts to connect: exponential growth with full jitter, without I/O and without a clock.

Attempt n (from 0) waits a random time between a small floor and ``min(maximum, base * 1.5**n)``. The base is `first`
while there was no link yet, and a tenth of it after a link was lost: the peer is mostly restarting then, and back
within a second. Drawing from the whole range, instead of around its end, spreads the attempts of many dialling
processes evenly, so that a peer which is down sees no waves and is met by no storm when it returns.

The factor is 1.5 because the longest next delay is then about as long as the outage has lasted. With 2 it is twice as
long, and some links come back late after a short restart.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (full jitter).
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Backoff"]

_AFTER_LOSS = 0.1
"""Factor on `first` once a link was established."""
_FLOOR = 0.25
"""Shortest delay, as a factor on the base. Without it some attempts would follow each other at once."""
_FACTOR = 1.5
_LONGEST = 64
"""Exponent at which growth stops in any case, so that the power stays small."""


class Backoff:
    """Delays of one dialling process.

    Args:
        first: upper bound of the first delay, seconds.
        maximum: upper bound of all delays, seconds; `first` if that is longer.
        uniform: draws a number between its two arguments.

    Attributes:
        maximum: upper bound of all delays, seconds.
        failures: attempts and links that failed since the last success.

    Raises:
        ValueError: a delay is not positive.
    """

    def __init__(
        self, first: float, maximum: float, *, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        if first <= 0 or maximum <= 0:
            raise ValueError(f"delays must be positive, not {first} and {maximum}")
        self.maximum = max(first, maximum)
        self._first = first
        self._base = first
        self.failures = 0
        self._uniform = uniform

    def next(self) -> float:
        """Count a failed attempt or a lost link; seconds to wait before the next attempt."""
        ceiling = min(self.maximum, self._base * _FACTOR ** min(self.failures, _LONGEST))
        self.failures += 1
        return max(self._base * _FLOOR, self._uniform(0.0, ceiling))

    def succeeded(self) -> None:
        """Start afresh, and with short delays: a link is established."""
        self._base = self._first * _AFTER_LOSS
        self.failures = 0

    def slow_down(self) -> None:
        """Go on with the longest delays: the peer refuses, or must not be dialled often."""
        self.failures = _LONGEST
