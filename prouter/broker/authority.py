"""What the broker's core decides about peers and their messages, as the sockets ask it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.core import Broker
from prouter.broker.sockets.port import Port
from prouter.errors import ProtocolError
from prouter.fabric.frames import decode
from prouter.process.log_limit import LogLimit

__all__ = ["CoreAuthority"]

log = logging.getLogger("prouter.broker")


class CoreAuthority:
    """A `prouter.broker.sockets.connections.Authority` that asks the core, and queues what the core wants to say.

    Args:
        env: settings, counts and the outbox.

    Attributes:
        broker: the core. It dials agents while it is made, so the sockets exist before.
    """

    broker: Broker

    def __init__(self, env: Env) -> None:
        self._env = env
        self._logs = LogLimit()

    def control(self, port: Port, parts: Sequence[bytes], now: float) -> None:
        """A message to the broker itself; its answers leave before anything else is moved, so that order is kept.

        Raises:
            ProtocolError: of a peer that is not authenticated.
        """
        try:
            frames = decode([bytes(part) for part in parts])
            if port.path is not None:
                self.broker.receive(port.path, frames, now)
            elif not frames:
                raise ProtocolError("an empty message")
            elif port.worker:
                self.broker.worker_handshake(port, port.identity, frames, now)
            else:
                self.broker.agent_handshake(port, port.identity, frames, now)
        except ProtocolError as error:
            if port.path is None:
                raise
            self.broker.malformed(port.path, error)
            self.broker.flood_guard.malformed(port.path, sum(map(len, parts)), now)
        except Exception as error:
            self._env.counts["failures"] += 1
            if self._logs.allows(now):
                log.exception("event=message_failed peer=%.64r", port.identity)
            if port.path is None:
                raise ProtocolError("the message of an unauthenticated connection could not be handled") from error
        self.flush(now)

    def unreachable(self, target: Path, now: float) -> None:
        """The connection of `target` is closed."""
        self.broker.disconnected(target, now)
        self.flush(now)

    def unroutable(self, source: Path, now: float) -> None:
        """A message of `source` was dropped: its route leads nowhere."""
        self.broker.flood_guard.unroutable(source, now)
        self.flush(now)

    def overflowed(self, source: Path, target: Path, size: int, now: float) -> None:
        """A message of `source` was dropped: too much waits for `target` already."""
        self.broker.flood_guard.overflowed(source, size, now)
        self.flush(now)

    def relieved(self, target: Path, sources: list[Path], now: float) -> None:
        """There is room again for what `sources` send to `target`."""
        self.broker.flood_guard.relieved(target, sources, now)

    def malformed(self, path: Path | None, error: ProtocolError) -> None:
        """A peer broke the protocol, which closed its connection."""
        self.broker.malformed(path, error)

    def disconnected(self, path: Path, now: float) -> None:
        """The connection of `path` is closed."""
        self.broker.disconnected(path, now)

    def troubled(self, path: Path, text: str) -> None:
        """Why there is no agent at the end of a dialled path."""
        self.broker.dials.troubled(path, text)

    def unfinished(self, path: Path, now: float) -> None:
        """An agent left too much of its messages unfinished: its connection is closed."""
        self.broker.flood_guard.unfinished(path, now)

    def ahead(self, path: Path, now: float) -> None:
        """An agent sent too much while it was to be read slowly: its connection is closed."""
        self.broker.flood_guard.ahead(path, now)

    def flush(self, now: float) -> None:
        """Queue what the core wants to say."""
        outbox = self._env.outbox
        while outbox:
            for path in outbox.take():
                if not self._sent(path, now):
                    self.broker.disconnected(path, now)

    def _sent(self, path: Path, now: float) -> bool:
        """Whether what is pending on a path was queued. If it cannot be, those after it lose nothing by that."""
        port: Port = path.carrier
        try:
            return port.send(path)
        except Exception:
            self._env.counts["failures"] += 1
            if self._logs.allows(now):
                log.exception("event=sending_failed peer=%.64r", path.source)
            return False
