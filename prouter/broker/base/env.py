"""What the broker's state machines share: settings, clocks, timers, the outbox, the switch, and the I/O shell."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from prouter.broker.base.security import Security
from prouter.broker.base.settings import Settings
from prouter.broker.base.steady import SteadyClock
from prouter.broker.base.switch import Outbox, Path, Switch
from prouter.broker.base.timers import Timers
from prouter.errors import ProtocolError, PRouterError

__all__ = ["Done", "Env", "Persistence", "Shell"]

log = logging.getLogger("prouter.broker")

Done = Callable[[dict[str, Any], PRouterError | None, float], None]
"""Called with the reply to a call: its value, an error if there is one, and the time (monotonic seconds)."""


class Shell(Protocol):
    """The I/O that the state machines ask for. No method blocks."""

    def accept(self, path: Path) -> None:
        """Hand over messages of the path's connection as messages of this path from now on."""

    def dial(self, path: Path, address: str) -> None:
        """Open a socket for `path` and connect it to ``host:port``."""

    def why_not_dialled(self, address: str) -> str:
        """Why the agent at ``host:port`` must not be dialled; empty when it may."""

    def security(self, path: Path) -> Security:
        """How the path's connection is protected, and whose key its peer has proved to own."""

    def is_open(self, path: Path) -> bool:
        """Whether the path's connection is open, as far as is known."""

    def forget(self, path: Path) -> None:
        """Close the path's connection once its pending frames are sent."""

    def pause(self, path: Path, seconds: float) -> None:
        """Read nothing from the path for some seconds. Its silence does not count in that time."""

    def watch(self, pid: int, worker: str) -> None:
        """Call `Broker.worker_died` when this process ends."""

    def raise_version(self) -> int:
        """Raise the version of the list of connections that workers see at once, and return it.

        It is `prouter.process.shared_version.UNKNOWN` if workers cannot see it.
        """


class Persistence(Protocol):
    """The store: state that outlives the broker."""

    def submit(
        self,
        statement: str,
        *parameters: Any,
        done: Callable[[float], None] | None = None,
        committed: Callable[[float], None] | None = None,
    ) -> None:
        """Execute an SQL statement, in order; call `done` and `committed` on the loop once it is committed.

        While the database cannot be written, `done` is called all the same, because the router goes on without it.
        """

    def hurry(self) -> None:
        """Commit what was submitted without waiting for more."""


@dataclass(slots=True)
class Env:
    """The state machines' surroundings.

    Attributes:
        wall: gives the current time, seconds since the epoch.
        new_uid: makes uids, 32 hex characters.
        incarnation: of this broker process.
        uniform: draws a number between its two arguments, for jitter.
        now: time of the message or timer that is being handled, monotonic seconds.
        counts: metrics that only grow.
        steady: the clock by which the history ages.
        agents_port: TCP port on which the broker listens for agents, 0 for none.
        budget: frames that this event loop iteration may still handle; expensive ones count several times.
    """

    settings: Settings
    shell: Shell
    store: Persistence
    wall: Callable[[], float]
    new_uid: Callable[[], str]
    incarnation: str
    uniform: Callable[[float, float], float] = random.uniform
    now: float = 0.0
    agents_port: int = 0
    budget: int = 0
    timers: Timers = field(default_factory=Timers)
    outbox: Outbox = field(default_factory=Outbox)
    switch: Switch = field(default_factory=Switch)
    counts: Counter[str] = field(default_factory=Counter)
    steady: SteadyClock = field(init=False)

    def begin(self, now: float, last_seen: float | None) -> None:
        """Start the clocks.

        Args:
            last_seen: when an earlier broker is known to have run, seconds since the epoch, or None.
        """
        self.now = now
        self.steady = SteadyClock(self.wall, now, last_seen)

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        """Count a malformed message. It is logged once per peer, and once for all unauthenticated connections together.

        Args:
            path: the peer's, None before the peer is authenticated.
        """
        self.counts["malformed"] += 1
        if path is None:
            self.counts["malformed_strangers"] += 1
            if self.counts["malformed_strangers"] == 1:
                log.warning("event=malformed_message error=%r", error.detail)
            return
        path.malformed += 1
        if path.malformed == 1:
            log.warning("event=malformed_message peer=%.64r error=%r", path.source, error.detail)
