"""The registry of this host's workers.

`NEXT` is the table of a worker's states, `Worker.change` the only way from one to the next::

    UP ◄──► AWAY        UP ──► UP: a new path replaces one whose end nobody has noticed
     │       │
     └► GONE ◄┘

The streams and waits of a worker that falls silent are kept until its process has ended, it says goodbye, or it does
not come back in time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import Enum
from functools import partial
from typing import Any, Protocol

from prouter.broker.base.env import Env
from prouter.broker.base.switch import Path
from prouter.broker.base.timers import Timer
from prouter.broker.links.heartbeats import Heartbeats
from prouter.broker.links.hello import check_protocol
from prouter.errors import ProtocolError
from prouter.fabric.calls import Responder
from prouter.fabric.frames import HELLO, Frame
from prouter.fabric.session import Greeted, Session

__all__ = ["NEXT", "Worker", "WorkerListener", "WorkerState", "Workers"]

log = logging.getLogger("prouter.broker")

_UID_LIMIT = 128


class WorkerState(Enum):
    """Whether the worker is reachable; a worker that is GONE has ended, said goodbye, or stayed away for too long."""

    UP = "up"
    AWAY = "away"
    GONE = "gone"


NEXT: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.UP: frozenset({WorkerState.UP, WorkerState.AWAY, WorkerState.GONE}),
    WorkerState.AWAY: frozenset({WorkerState.UP, WorkerState.GONE}),
    WorkerState.GONE: frozenset(),
}
"""The states that may follow each state."""


class Worker:
    """One worker process.

    Attributes:
        state: changed by `change` alone.
        path: the worker's connection while the state is UP, else None.
        responder: remembers the replies to its calls.
        bridges: the WebSocket bridges that it holds, as it describes them.
        bulk: how many fast streams it has.
        bulk_elsewhere: how many fast streams others have, as it was last told.
    """

    def __init__(self, workers: Workers, uid: str, pid: int) -> None:
        self._workers = workers
        self.uid = uid
        self.pid = pid
        self.state = WorkerState.AWAY
        self.path: Path | None = None
        self.responder = Responder()
        self.bridges: list[dict[str, Any]] = []
        self.bulk = 0
        self.bulk_elsewhere = 0
        self.away: Timer | None = None

    def change(self, state: WorkerState, path: Path | None = None) -> None:
        """Go to the next state.

        Args:
            path: where the worker is from now on; with UP alone.

        Raises:
            RuntimeError: `state` may not follow the present one, or the path is missing; a programming error.
        """
        if state not in NEXT[self.state] or (state is WorkerState.UP) is not (path is not None):
            raise RuntimeError(f"worker {self.uid} cannot go from {self.state.value} to {state.value}")
        self.state, self.path = state, path

    def lost(self, path: Path, reason: str, now: float, *, closed: bool) -> None:
        """See `Owner`."""
        if path is self.path:
            self._workers.path_lost(self, reason, now)

    def left(self, path: Path, reason: str, now: float) -> None:
        """See `Owner`."""
        if path is self.path:
            self._workers.gone(self.uid, f"goodbye: {reason}", now)


class WorkerListener(Protocol):
    """What the registry asks and tells about its workers."""

    def worker_greeting(self) -> dict[str, Any]:
        """The body of a worker's WELCOME."""

    def worker_up(self, worker: Worker, now: float) -> None:
        """A worker is reachable: a new one, or one with a new path."""

    def worker_gone(self, worker: Worker, reason: str, now: float) -> None:
        """A worker has ended, or did not come back."""


class Workers:
    """The registry.

    Attributes:
        listener: is asked and told about workers; set once, before the first message.
    """

    listener: WorkerListener

    def __init__(self, env: Env, heartbeats: Heartbeats) -> None:
        self._env = env
        self._heartbeats = heartbeats
        self._workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def handshake(self, carrier: Any, rid: bytes, frames: list[Frame], now: float) -> None:
        """Handle the control frames of a worker's connection before its handshake.

        Raises:
            ProtocolError: they are no HELLO, or a malformed one.
        """
        if frames[0].type != HELLO:
            raise ProtocolError("the first frame of a connection is no HELLO")
        path = Path(carrier, rid, Session(now, self._env.settings.worker_heartbeat), now)
        _, event = path.session.receive(frames[0], now)
        if not isinstance(event, Greeted):
            return
        body = event.body
        problem = check_protocol(body)
        if problem is not None:
            self._env.outbox.say(path, path.session.refuse("bad_version", problem))
            self._env.shell.forget(path)
            return
        uid, pid = body.get("uid"), body.get("pid")
        if not isinstance(uid, str) or not 0 < len(uid) <= _UID_LIMIT or not uid.isascii() or not isinstance(pid, int):
            raise ProtocolError("a worker's HELLO needs uid and pid")
        self._welcome(path, uid, pid, now)

    def path_lost(self, worker: Worker, reason: str, now: float) -> None:
        """Wait for a worker whose path is lost."""
        log.warning("event=worker_away worker=%s pid=%d reason=%r", worker.uid, worker.pid, reason)
        self._detach(worker)
        worker.change(WorkerState.AWAY)
        patience = self._env.settings.resume_timeout
        worker.away = self._env.timers.at(now + patience, partial(self._not_back, worker))

    def gone(self, uid: str, reason: str, now: float) -> None:
        """Forget a worker that has ended or said goodbye. Idempotent."""
        worker = self._workers.pop(uid, None)
        if worker is None:
            return
        self._detach(worker)
        worker.change(WorkerState.GONE)
        if worker.away is not None:
            worker.away.cancel()
        log.info("event=worker_gone worker=%s pid=%d reason=%r", uid, worker.pid, reason)
        self.listener.worker_gone(worker, reason, now)

    def _welcome(self, path: Path, uid: str, pid: int, now: float) -> None:
        worker = self._workers.get(uid)
        if worker is None:
            worker = self._workers[uid] = Worker(self, uid, pid)
            self._env.shell.watch(pid, uid)
        else:
            self._detach(worker)
        if worker.away is not None:
            worker.away.cancel()
            worker.away = None
        worker.change(WorkerState.UP, path)
        worker.bulk = worker.bulk_elsewhere = 0
        path.owner = worker
        self._env.shell.accept(path)
        self._env.switch.add_worker(path, uid)
        self._heartbeats.watch(path)
        self._env.outbox.say(path, path.session.welcome(self.listener.worker_greeting()))
        log.info("event=worker_up worker=%s pid=%d", uid, pid)
        self.listener.worker_up(worker, now)

    def _detach(self, worker: Worker) -> None:
        """Give up the worker's path, if it has one."""
        path = worker.path
        if path is not None:
            self._env.switch.remove(path)
            self._heartbeats.drop(path)
            self._env.shell.forget(path)

    def _not_back(self, worker: Worker, now: float) -> None:
        worker.away = None
        self.gone(worker.uid, "it did not come back in time", now)
