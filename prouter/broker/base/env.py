"""What the broker's state machines share: settings, timers, the outbox, the switch, and the shell that does the I/O."""

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
"""How something asked for ends: the value, or the error, and the time now."""


class Shell(Protocol):
    """The I/O the state machines ask for."""

    def accept(self, path: Path) -> None:
        """From now on what comes over the path's connection is this path's."""

    def dial(self, path: Path, address: str) -> None:
        """Open a socket of its own for `path` and connect it to ``host:port``; never blocks."""

    def why_not_dialled(self, address: str) -> str:
        """Why the agent at ``host:port`` must not be dialled; empty when it may."""

    def security(self, path: Path) -> Security:
        """How the path's connection is protected, and whose key its peer has proved to own."""

    def forget(self, path: Path) -> None:
        """The path is not used any more: its connection is closed once what is pending was sent."""

    def pause(self, path: Path, seconds: float) -> None:
        """Read nothing more of the path for a while; meanwhile its silence counts for nothing."""

    def watch(self, pid: int, worker: str) -> None:
        """Tell when the process ends."""


class Persistence(Protocol):
    """Where state goes that outlives the broker."""

    def submit(self, statement: str, *parameters: Any, done: Callable[[float], None] | None = None) -> None:
        """Have `statement` executed, in order; `done(now)` is called on the loop once it is committed."""


@dataclass(slots=True)
class Env:
    """See the module's docstring.

    Attributes:
        wall: current time, seconds since the epoch.
        new_uid: makes uids, 32 hex characters.
        incarnation: of this broker process.
        uniform: draws a number between its two arguments, for jitter.
        now: the time of the message or timer being handled, monotonic.
        counts: metrics that only grow.
        steady: the time by which the history ages.
        budget: frames that this turn of the loop may still handle; what takes long is counted for several.
    """

    settings: Settings
    shell: Shell
    store: Persistence
    wall: Callable[[], float]
    new_uid: Callable[[], str]
    incarnation: str
    uniform: Callable[[float, float], float] = random.uniform
    now: float = 0.0
    budget: int = 0
    timers: Timers = field(default_factory=Timers)
    outbox: Outbox = field(default_factory=Outbox)
    switch: Switch = field(default_factory=Switch)
    counts: Counter[str] = field(default_factory=Counter)
    steady: SteadyClock = field(init=False)

    def begin(self, now: float, last_seen: float | None) -> None:
        """The broker starts; the one before is known to have run at `last_seen`, seconds since the epoch."""
        self.now = now
        self.steady = SteadyClock(self.wall, now, last_seen)

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        """Count something that is not as it should be: logged once per peer, and once for all that are not accepted."""
        self.counts["malformed"] += 1
        if path is None:
            self.counts["malformed_strangers"] += 1
            if self.counts["malformed_strangers"] == 1:
                log.warning("event=malformed_message error=%r", error.detail)
            return
        path.malformed += 1
        if path.malformed == 1:
            log.warning("event=malformed_message peer=%.64r error=%r", path.source, error.detail)
