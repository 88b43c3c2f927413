"""Clients of every kind at once, for faults to be injected under: each checks what it gets, and how long it waited.

A client is a thread that repeats a *round* (a transfer, a job's life…) until the load is told to stop; the round under
way is finished then. Progress inside a round is told with `Gauge.tick`, so that each client's longest pause is known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.support.processes import wait_until

__all__ = ["Gauge", "Load"]

log = logging.getLogger("tests.faults")


@dataclass(slots=True)
class Gauge:
    """The progress of one client.

    Attributes:
        rounds: how many were finished.
        ticks: signs of progress.
        last: when the last one was, monotonic seconds.
        longest: seconds of the longest pause since `Load.watch`.
        parked: whether it waits for one answer, so that nothing is expected meanwhile.
    """

    kind: str
    stopping: threading.Event
    parked: bool = False
    rounds: int = 0
    ticks: int = 0
    last: float = 0.0
    longest: float = 0.0

    def tick(self) -> None:
        """Note progress: something arrived, or was accepted."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.last)
        self.last = now
        self.ticks += 1

    def rest(self, seconds: float) -> None:
        """Do nothing for a while; this does not count as a pause of the router."""
        self.stopping.wait(seconds)
        self.last = time.monotonic()


class Load:
    """All clients of a test; use it as a context, so that no thread is left.

    Attributes:
        errors: what went wrong: the kind of client and the exception.
        stopping: set when no more rounds are begun.
    """

    def __init__(self) -> None:
        self.gauges: list[Gauge] = []
        self.errors: list[tuple[str, BaseException]] = []
        self.stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._final: list[Callable[[], None]] = []

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        end = time.monotonic() + 3
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def add(self, kind: str, one_round: Callable[[Gauge], None], count: int = 1, *, forgiving: bool = False) -> None:
        """Start `count` clients.

        Args:
            forgiving: a round that fails is noted and the next one begun; otherwise the client ends with its error.
        """
        for _ in range(count):
            gauge = Gauge(kind, self.stopping, last=time.monotonic())
            self._begin(gauge, partial(self._run, gauge, one_round, forgiving))

    def park(self, kind: str, one_round: Callable[[Gauge], None], count: int = 1) -> None:
        """Start `count` clients that wait for one response each, and end then."""
        for _ in range(count):
            gauge = Gauge(kind, self.stopping, parked=True)
            self._begin(gauge, partial(self._once, gauge, one_round))

    def at_end(self, check: Callable[[], None]) -> None:
        """Let `finish` call `check` after the clients have ended."""
        self._final.append(check)

    def started(self, deadline: float = 30.0, ticks: int = 2) -> None:
        """Wait until every client has made progress.

        Raises:
            AssertionError: it did not, or something went wrong.
        """
        before = {id(gauge): gauge.ticks for gauge in self.gauges}

        def late() -> str:
            stuck = {g.kind for g in self.gauges if not g.parked and g.ticks < before[id(g)] + ticks}
            return ", ".join(sorted(stuck))

        try:
            wait_until(lambda: self.errors or not late(), deadline, "every client makes progress")
        except AssertionError:
            raise AssertionError(f"no progress within {deadline:g} s: {late()}") from None
        self.check()

    def watch(self) -> None:
        """Measure pauses from now on."""
        now = time.monotonic()
        for gauge in self.gauges:
            gauge.longest, gauge.last = 0.0, now

    def pauses(self) -> dict[str, float]:
        """Return for each kind the longest pause of a client since `watch`, in seconds; one that lasts counts, too."""
        now = time.monotonic()
        found: dict[str, float] = {}
        for gauge in self.gauges:
            if gauge.parked:
                continue
            lasting = 0.0 if gauge.stopping.is_set() else now - gauge.last
            found[gauge.kind] = max(found.get(gauge.kind, 0.0), gauge.longest, lasting)
        return found

    def rounds(self) -> dict[str, int]:
        """Return the number of finished rounds by kind."""
        found: dict[str, int] = {}
        for gauge in self.gauges:
            found[gauge.kind] = found.get(gauge.kind, 0) + gauge.rounds
        return found

    def check(self) -> None:
        """Fail if anything has gone wrong so far."""
        if self.errors:
            kind, error = self.errors[0]
            raise AssertionError(f"{len(self.errors)} clients failed, the first: {kind}: {error!r}") from error

    def finish(self, deadline: float = 60.0) -> None:
        """Let every client finish its round.

        Raises:
            AssertionError: one did not in time, or something went wrong.
        """
        self.stopping.set()
        end = time.monotonic() + deadline
        for thread, gauge in zip(self._threads, self.gauges, strict=True):
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self.errors.append((gauge.kind, TimeoutError(f"not finished within {deadline:g} s")))
        self.check()
        for check in self._final:
            check()

    def _begin(self, gauge: Gauge, body: Callable[[], None]) -> None:
        self.gauges.append(gauge)
        thread = threading.Thread(target=body, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _once(self, gauge: Gauge, one_round: Callable[[Gauge], None]) -> None:
        try:
            one_round(gauge)
        except BaseException as error:
            self.errors.append((gauge.kind, error))
        else:
            gauge.rounds += 1

    def _run(self, gauge: Gauge, one_round: Callable[[Gauge], None], forgiving: bool) -> None:
        while not self.stopping.is_set():
            try:
                one_round(gauge)
            except BaseException as error:
                log.info("event=client_failed kind=%s error=%r", gauge.kind, error)
                self.errors.append((gauge.kind, error))
                if not forgiving:
                    return
            else:
                gauge.rounds += 1
                gauge.tick()
