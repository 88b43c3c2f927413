"""Protection against peers that send more than the broker handles, or more than their receivers take."""

from __future__ import annotations

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.links.dials import Dials
from prouter.broker.links.exclusion import Exclusion
from prouter.broker.links.link import Link
from prouter.broker.links.links import Links
from prouter.broker.links.workers import Worker
from prouter.fabric.calls import event_frame
from prouter.fabric.frames import HEADER, Frame

__all__ = ["FloodGuard"]

_LONGEST_PAUSE = 1.0
"""Seconds for which the broker at most does not read an agent that sends too many bytes."""
_OVERFLOW_PAUSE = 0.02
"""Seconds for which the broker does not read an agent after it dropped one of its messages."""
_MESSAGE_COST = 256
"""Bytes that a dropped message counts for in addition to its own, because reading it took time."""

_MALFORMED_COST = 8
"""Frames that a malformed message counts for in addition to those that it may hold."""


class FloodGuard:
    """Slows agents down that send too much, and cuts off those that do not stop.

    Honest peers stop when the windows of their streams are full. An agent that was cut off has to wait before it may
    link again (`Exclusion`).
    """

    def __init__(self, env: Env, links: Links, exclusion: Exclusion, dials: Dials) -> None:
        self._env = env
        self._links = links
        self._exclusion = exclusion
        self._dials = dials

    def allows(self, path: Path, frames: list[Frame], now: float) -> bool:
        """Whether the peer keeps to its rate of control frames. An agent that does not is cut off."""
        if path.routes is self._env.switch.agents:  # Workers are this host's own processes.
            return True
        size = 0
        for frame in frames:
            size += len(frame.payload)
        return self._charge(path, len(frames), size, now)

    def malformed(self, path: Path, size: int, now: float) -> None:
        """Count a control message that could not be decoded; what came before the mistake was looked at.

        Args:
            size: bytes of the message.
        """
        self._env.now = now
        if path.routes is not self._env.switch.agents:
            self._charge(path, _MALFORMED_COST + size // HEADER.size, size, now)

    def unroutable(self, path: Path, now: float) -> None:
        """Count a routed message that was dropped, because its route leads nowhere.

        Honest agents send some while a worker has ended and they do not know it; so their bytes do not count.
        """
        self._env.now = now
        if path.routes is not self._env.switch.agents:
            self._charge(path, 1, 0, now)

    def _charge(self, path: Path, frames: int, size: int, now: float) -> bool:
        """Take frames and bytes off what an agent may send now; whether that was enough. If not, it is cut off."""
        bounds = self._env.settings.bounds
        passed = now - path.refilled
        path.debt = max(0.0, path.debt - passed * bounds.control_bytes) + size
        if path.debt > bounds.control_bytes / 4:
            self._env.shell.pause(path, min(_LONGEST_PAUSE, path.debt / bounds.control_bytes))
        path.allowance = min(4.0 * bounds.frames, path.allowance + passed * bounds.frames)
        path.refilled = now
        path.allowance -= max(1, frames)
        if path.allowance >= 0:
            return True
        self._cut_off(path, "it sends too much", now)
        return False

    def overflowed(self, source: Path, size: int, now: float) -> None:
        """Count a routed message that was dropped, because too much waits for its receiver.

        Args:
            source: path of the sender.
            size: bytes of the message.
        """
        self._env.now = now
        self._env.counts["overflowed"] += 1
        self._env.counts["overflowed_bytes"] += size
        if not isinstance(source.owner, Link):
            return
        source.overflow += size + _MESSAGE_COST
        if source.overflow > self._env.settings.bounds.overflow:
            self._cut_off(source, "it sends too much for workers that do not take it", now)
        else:
            self._env.shell.pause(source, _OVERFLOW_PAUSE)

    def relieved(self, target: Path, sources: list[Path], now: float) -> None:
        """Have streams resume whose messages from `sources` to `target` were dropped: the queue is short again."""
        for source in sources:
            source.overflow = 0
            pair = (source.owner, target.owner)
            worker = next((owner for owner in pair if isinstance(owner, Worker)), None)
            link = next((owner for owner in pair if isinstance(owner, Link)), None)
            if worker is not None and worker.path is not None and link is not None and link.path is not None:
                self._env.outbox.say(worker.path, event_frame("link.up", link.describe()))

    def unfinished(self, path: Path, now: float) -> None:
        """Close the connection of an agent that holds back the rest of a large message, while others do so, too."""
        self._env.now = now
        if path.owner is not None:
            path.owner.lost(path, "it does not finish its messages", now, closed=True)

    def ahead(self, path: Path, now: float) -> None:
        """Cut off an agent that sent much more while the broker read it slowly."""
        self._env.now = now
        self._cut_off(path, "it sends on although the router reads it slowly", now)

    def worker_flooded(self, connection: str, now: float) -> None:
        """Cut off an agent that keeps a worker busy with frames that lead to no stream."""
        link = self._links.get(connection)
        if link is not None and link.path is not None:
            self._cut_off(link.path, "it floods workers with frames that lead to no stream", now)

    def _cut_off(self, path: Path, reason: str, now: float) -> None:
        self._env.counts["floods"] += 1
        if isinstance(path.owner, Link):
            info = path.owner.info
            self._exclusion.cut_off(info.uid, info.admitted_by, now)
            self._dials.discourage(path.owner)
        if path.owner is not None:
            path.owner.lost(path, reason, now, closed=True)
