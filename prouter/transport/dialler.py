"""Keeps a `Peer` linked to a broker: a fresh DEALER socket for every attempt, jittered backoff, for ever.

A new socket per attempt means that no message of an earlier path can surface on a later one.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import gevent

from prouter.fabric.session import LATE, LOST_AFTER, Session
from prouter.transport.local.dealer import DealerSocket
from prouter.transport.peer import Peer

__all__ = ["Dialler", "Punctual"]

log = logging.getLogger("prouter.transport")


class Punctual:
    """Sleeps for an interval again and again, and tells how much longer it took.

    A process that is stopped, or gets no processor, hears nothing: that is not its peers' silence.

    Args:
        interval: seconds.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due = time.monotonic()

    def sleep(self) -> float:
        """Sleep for an interval; seconds from when it should have been over, 0.0 if they are few."""
        self._due = time.monotonic() + self._interval
        gevent.sleep(self._interval)
        late = time.monotonic() - self._due
        return late if late > LATE else 0.0


class Dialler:
    """Dials `endpoint` until told to stop.

    Args:
        peer: the conversation to keep attached.
        endpoint: ZeroMQ endpoint, ``tcp://host:port`` or ``ipc://path``.
        identity: stable name of this process; every attempt's routing id starts with it.
        hello: makes the introduction for each attempt.
        heartbeat: seconds, see `Session`.
        delay: seconds between attempts, grown to at most `max_delay`, jittered by half.
        on_trouble: told in words why there is no connection, several times a second.

    Raises:
        ValueError: from `start`: `endpoint` is none.
    """

    def __init__(
        self,
        peer: Peer,
        endpoint: str,
        *,
        identity: str,
        hello: Callable[[], dict[str, Any]],
        heartbeat: float,
        delay: float = 0.1,
        max_delay: float = 2.0,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self.peer = peer
        self.endpoint = endpoint
        self.attempts = 0
        self._identity = identity
        self._hello = hello
        self._heartbeat = heartbeat
        self._delay = delay
        self._max_delay = max(max_delay, delay)
        self._on_trouble = on_trouble
        self._failures = 0
        self._socket: DealerSocket | None = None
        self._ticker: gevent.Greenlet[[], None] | None = None
        self._redial: Any = None
        self._stopped = False

    def start(self) -> None:
        """Dial now, and again whenever the path is lost."""
        self._dial()
        self._ticker = gevent.spawn(self._tick)

    def stop(self, reason: str = "shutdown") -> None:
        """Say goodbye and stop dialling."""
        self._stopped = True
        self.peer.goodbye(reason)
        if self._ticker is not None:
            self._ticker.kill(block=False)
        if self._redial is not None:
            self._redial.kill(block=False)
        if self._socket is not None:
            self._socket.close(linger=0.2)
            self._socket = None

    def succeeded(self) -> None:
        """The session is established: the next failure starts the backoff afresh."""
        self._failures = 0

    def lost(self) -> None:
        """The path is gone or was refused: dial again after a while."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._stopped or self._redial is not None:
            return
        grown = min(self._delay * 2 ** min(self._failures, 16), self._max_delay)
        delay = grown * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret, spreads the load
        self._failures += 1
        self._redial = gevent.spawn_later(delay, self._dial)

    def _dial(self) -> None:
        self._redial = None
        if self._stopped:
            return
        self.attempts += 1
        identity = f"{self._identity}:{self.attempts}".encode()
        socket = DealerSocket(
            self.endpoint,
            self.peer.receive,
            self._disconnected,
            identity,
            first=self.attempts - 1,
            on_trouble=self._on_trouble,
        )
        self._socket = socket
        self.peer.attach(socket.send, Session(time.monotonic(), self._heartbeat, self._hello()))

    def _disconnected(self) -> None:
        if self.peer.session is not None:
            self.peer.lose("connection closed")

    def _tick(self) -> None:
        punctual = Punctual(min(self._heartbeat / LOST_AFTER, 1.0))
        while True:
            late = punctual.sleep()
            now = time.monotonic()
            if late:
                self.peer.excuse(late, now)
            self.peer.tick(now)
