"""A cable that does to single packets what netem would, which many kernels lack: loss, delay, reordering, repetition,
a rate.

Its ends are two TUN devices, one in the agent's network namespace; a thread carries packets between them.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass, field

from tests.faults.network import Cable, run

__all__ = ["Impaired", "Impairment", "why_no_packets"]

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_QUEUE = 0.5
"""Seconds that a packet waits on a slow cable, at most; one that would wait longer is dropped."""


def why_no_packets() -> str:
    """Return why this machine cannot make such cables, beyond what every cable needs; empty if it can."""
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        return f"{_TUN}: {error.strerror}"
    return ""


@dataclass(frozen=True)
class Impairment:
    """What happens to packets, in each direction.

    Attributes:
        loss: share that vanishes.
        twice: share that arrives twice.
        delay: seconds a packet takes.
        jitter: seconds more, at random for each packet, so that packets overtake each other.
        rate: bytes per second, 0 for any number.
    """

    loss: float = 0.0
    twice: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0


@dataclass
class _Direction:
    sink: int
    due: float = 0.0
    waiting: list[tuple[float, int, bytes]] = field(default_factory=list)


class Impaired(Cable):
    """A cable with faults between two TUN devices.

    Attributes:
        impairment: may be replaced at any time.
        overtaken: packets that arrived after one sent later.
    """

    def __init__(self, impairment: Impairment) -> None:
        super().__init__()
        self.impairment = impairment
        self.overtaken = 0
        self._fds: list[int] = []
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._over, self._stop = os.pipe()

    def _plug(self) -> None:
        for name in (self._device, self._inside):
            fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
            self._fds.append(fd)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN_NO_PI))
        run("ip", "link", "set", self._inside, "netns", self.name)
        self._carrier.start()

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)
        if self._carrier.is_alive():
            self._carrier.join()
        for fd in (self._over, *self._fds):
            os.close(fd)
        super().__exit__()

    def _carry(self) -> None:
        one, other = self._fds
        directions = {one: _Direction(other), other: _Direction(one)}
        numbers = itertools.count()
        while True:
            first = min((lane.waiting[0][0] for lane in directions.values() if lane.waiting), default=None)
            timeout = None if first is None else max(0.0, first - time.monotonic())
            ready, _, _ = select.select([self._over, *directions], [], [], timeout)
            if self._over in ready:
                return
            for fd in ready:
                self._take(fd, directions[fd], numbers)
            for lane in directions.values():
                self._deliver(lane)

    def _take(self, source: int, lane: _Direction, numbers: itertools.count[int]) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):
                packet = os.read(source, 65536)
                how = self.impairment
                now = time.monotonic()
                begin = max(now, lane.due)
                if random.random() < how.loss or begin - now > _QUEUE:
                    continue
                lane.due = begin + len(packet) / how.rate if how.rate else now
                for _ in range(1 + (random.random() < how.twice)):
                    at = lane.due + how.delay + random.uniform(0, how.jitter)
                    heapq.heappush(lane.waiting, (at, next(numbers), packet))

    def _deliver(self, lane: _Direction) -> None:
        now = time.monotonic()
        while lane.waiting and lane.waiting[0][0] <= now:
            _, number, packet = heapq.heappop(lane.waiting)
            self.overtaken += any(earlier < number for _, earlier, _ in lane.waiting[:8])
            with contextlib.suppress(OSError):  # As on any cable: a device that is full or down drops it.
                os.write(lane.sink, packet)
