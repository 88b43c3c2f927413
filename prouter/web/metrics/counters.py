"""Counters and gauges of the HTTP workers, in memory that they share, so that each worker can report the sums of all.

gunicorn's parent makes the memory and gives each worker a slot. Only its owner writes to a slot, so that no lock is
needed, and counting takes about a microsecond. A slot's counters stay when its worker ends, and the next owner adds to
them: sums never decrease, whichever worker is killed, recycled or reloaded. If gunicorn's parent itself is replaced,
the next one begins with the sums that the last one left in the router's run directory.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "API",
    "BOUNDS",
    "GAUGES",
    "JOB",
    "LIMITS",
    "METHODS",
    "STATUSES",
    "Board",
    "Totals",
    "current",
    "enter",
    "leave",
    "setup",
]

log = logging.getLogger("prouter.web")

API, JOB = 0, 1
"""Recipients of requests: the router's API, or a job."""
_TO = 2
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram's buckets, seconds; the last bucket has none."""
GAUGES = (
    "streams",
    "streams_fast",
    "streams_fast_elsewhere",
    "calls_pending",
    "routes_cached",
    "connections",
    "bridges",
    "greenlets",
    "resident_memory_bytes",
)
"""Gauges that each worker publishes once a second."""

LIMITS = (
    "jobs.max",
    "jobs.user",
    "limits.jobs_per_owner",
    "limits.requests_per_owner",
    "limits.sandbox_bytes_per_owner",
    "limits.unauthenticated_per_address",
    "limits.failures_per_address",
    "limits.failures_in_all",
    "other",
)
"""Limits whose refusals are counted, by their configuration keys."""

_SLOTS = 128
"""Workers at a time, draining ones included; further ones are not counted."""
_BUCKETS = len(BOUNDS) + 1
_TIMES = _TO * len(METHODS) * len(STATUSES)
_CPU = _TIMES + _TO * (_BUCKETS + 1)
_REFUSALS = _CPU + 1
_COUNTERS = _REFUSALS + len(LIMITS)
"""Cells of a slot that only grow: requests, per recipient the buckets and their sum, CPU seconds, then refusals."""
_CELLS = _COUNTERS + len(GAUGES)
_CELL = 8
_HEAD = 4096
"""Bytes before the slots: the layout, then the time at which all gauges were last asked for."""
_LAYOUT = struct.Struct("<16sII")
_MAGIC = b"prouter figures1"
_ASKED = 64
"""Offset of that time in the head."""

_OF_METHOD: dict[str | bytes, int] = {
    **{name: place * len(STATUSES) for place, name in enumerate(METHODS)},
    **{name.encode(): place * len(STATUSES) for place, name in enumerate(METHODS)},
}
_OTHER = _OF_METHOD["other"]
_OF_LIMIT = {name: _REFUSALS + place for place, name in enumerate(LIMITS)}
_PER_TO = len(METHODS) * len(STATUSES)


class Totals(NamedTuple):
    """Sums over all workers.

    Attributes:
        requests: number of responses, by recipient, method and status class.
        buckets: by recipient, the number of responses per bucket of `BOUNDS` and beyond (not cumulative).
        seconds: by recipient, the sum of their durations.
        cpu_seconds: CPU time of all workers, past and present.
        gauges: by name, the sums over the workers that run.
        refusals: by limit, the number of requests that were over it.
    """

    requests: dict[tuple[int, str, str], float]
    buckets: list[list[float]]
    seconds: list[float]
    cpu_seconds: float
    gauges: dict[str, float]
    refusals: dict[str, float]


class Board:
    """The shared memory and this process's slot in it.

    Args:
        memory: at least `size` bytes.
    """

    size = _HEAD + _SLOTS * _CELLS * _CELL

    def __init__(self, memory: mmap.mmap) -> None:
        _LAYOUT.pack_into(memory, 0, _MAGIC, _SLOTS, _CELLS)
        view = memoryview(memory)
        self._asked = view[_ASKED : _ASKED + _CELL].cast("d")
        self._cells = view[_HEAD : self.size].cast("d")
        self._owners: list[int | None] = [None] * _SLOTS
        """Worker numbers by slot; up to date in gunicorn's parent only."""
        self._told = 0.0
        """Monotonic time at which this worker last published the gauges that take long to compute."""
        self._use(0)

    def _use(self, slot: int | None) -> None:
        # A worker without a slot counts in memory of its own, which nobody reads.
        if slot is None:
            self._own = memoryview(bytearray(_CELLS * _CELL)).cast("d")
        else:
            self._own = self._cells[slot * _CELLS : (slot + 1) * _CELLS]
        self._cpu_before = self._own[_CPU]

    # -- gunicorn's parent --------------------------------------------------------------------------------------

    def enter(self, worker: int) -> None:
        """Give a slot to a worker that is about to be forked."""
        slot = self._owners.index(None) if None in self._owners else None
        if slot is not None:
            self._owners[slot] = worker
        self._use(slot)

    def leave(self, worker: int) -> None:
        """Take back the slot of a worker that ended: clear its gauges, keep its counters."""
        if worker in self._owners:
            slot = self._owners.index(worker)
            self._owners[slot] = None
            for cell in range(slot * _CELLS + _COUNTERS, (slot + 1) * _CELLS):
                self._cells[cell] = 0.0

    def begin_with(self, counters: Sequence[float]) -> None:
        """Begin with these sums."""
        for cell, value in enumerate(counters):
            self._cells[cell] = value
        self._use(0)

    # -- a worker -----------------------------------------------------------------------------------------------

    def count_response(self, to: int, method: str | bytes, status: int, seconds: float) -> None:
        """Count a response.

        Args:
            to: the recipient of the request, `API` or `JOB`.
            seconds: from the request to the response's head.
        """
        own = self._own
        own[to * _PER_TO + _OF_METHOD.get(method, _OTHER) + status // 100 - 1] += 1.0
        times = _TIMES + to * (_BUCKETS + 1)
        own[times + bisect_left(BOUNDS, seconds)] += 1.0
        own[times + _BUCKETS] += seconds

    def count_refusal(self, limit: str) -> None:
        """Count a request that was over a limit, by the limit's configuration key."""
        self._own[_OF_LIMIT.get(limit) or _OF_LIMIT["other"]] += 1.0

    @property
    def wanted(self) -> bool:
        """Whether all gauges were asked for since this worker last published those that take long to compute."""
        return self._asked[0] > self._told

    def publish(self, gauges: Mapping[str, float], cpu_seconds: float) -> None:
        """Publish this worker's gauges and CPU time; gauges that are not given keep their values."""
        own = self._own
        for place, name in enumerate(GAUGES, _COUNTERS):
            if name in gauges:
                own[place] = gauges[name]
        if "greenlets" in gauges:
            self._told = time.monotonic()
        own[_CPU] = self._cpu_before + cpu_seconds

    # -- a reader -----------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Have all workers include the gauges that take long to compute, the next time they publish."""
        self._asked[0] = time.monotonic()

    def totals(self) -> Totals:
        """Return the sums over all workers."""
        sums = self._sums()
        requests = {
            (to, method, status): sums[to * _PER_TO + _OF_METHOD[method] + place]
            for to in range(_TO)
            for method in METHODS
            for place, status in enumerate(STATUSES)
        }
        times = [_TIMES + to * (_BUCKETS + 1) for to in range(_TO)]
        return Totals(
            requests,
            [sums[at : at + _BUCKETS] for at in times],
            [sums[at + _BUCKETS] for at in times],
            sums[_CPU],
            dict(zip(GAUGES, sums[_COUNTERS:], strict=True)),
            {name: sums[cell] for name, cell in _OF_LIMIT.items()},
        )

    def _sums(self) -> list[float]:
        cells = self._cells.tolist()
        return [sum(cells[cell::_CELLS]) for cell in range(_CELLS)]


def _counters(path: Path) -> list[float] | None:
    """Return the sums of the counters in an earlier board's file, None if there is none of this layout."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) != Board.size or _LAYOUT.unpack_from(data) != (_MAGIC, _SLOTS, _CELLS):
        return None
    cells = memoryview(data)[_HEAD:].cast("d").tolist()
    return [sum(cells[cell::_CELLS]) for cell in range(_COUNTERS)]


def _open(path: Path | None) -> Board:
    """Make a board that begins with the sums of the one that was at `path`.

    Draining workers of the previous parent keep the old file; what they count from now on is lost.
    """
    if path is None:
        return Board(mmap.mmap(-1, Board.size))
    before = _counters(path)
    new = path.with_suffix(f".{os.getpid()}")
    try:
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, Board.size)
            os.posix_fallocate(descriptor, 0, Board.size)  # a full disk is an error here, not SIGBUS later
            board = Board(mmap.mmap(descriptor, Board.size))
        finally:
            os.close(descriptor)
        board.begin_with(before or ())
        new.rename(path)
    except OSError as error:
        log.warning("event=figures_not_kept path=%s error=%r", path, str(error))
        new.unlink(missing_ok=True)
        board = Board(mmap.mmap(-1, Board.size))
        board.begin_with(before or ())
    return board


_board: Board | None = None


def setup(path: Path) -> None:
    """Make the memory. To be called in gunicorn's parent before it forks; a reload keeps what there is."""
    global _board
    if _board is None:
        _board = _open(path)


def current() -> Board:
    """Return the board made by `setup`, or one of this process's own."""
    global _board
    if _board is None:
        _board = _open(None)
    return _board


def enter(worker: int) -> None:
    """Give a slot to the worker of this number, which is about to be forked."""
    current().enter(worker)


def leave(worker: int) -> None:
    """Take back the slot of the worker of this number, which has ended."""
    current().leave(worker)
