"""The agent's end of the connection of one job's node: requests, events, and spare connections for clients."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock
from gevent.queue import Empty, Queue

from prouter.errors import AgentUnavailable, Conflict, JobUnreachable, NotFound, PRouterError
from prouter.keeper.wire import Decoder, encode
from prouter.runners.slurm.relay import Broken, use
from prouter.runners.sockets import Address

__all__ = ["NodeLink"]

_PATIENCE = 30.0
"""Seconds that a node has to answer a request."""
_TRIES = 4
"""Spare connections tried for one client; those of a node that was away may all be broken."""
_ERRORS: dict[str, type[PRouterError]] = {"unknown_job": NotFound, "not_running": Conflict}

_log = logging.getLogger("prouter.runner")


class NodeLink:
    """The connection to the node on which a job runs.

    Args:
        connection: TLS, authenticated.
        decoder: holds what was received after the first message.
        on_event: called for each event, in the greenlet of `serve`.

    Attributes:
        node: the node's name.
    """

    def __init__(
        self, job: str, node: str, connection: Any, decoder: Decoder, on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        self.job = job
        self.node = node
        self._connection = connection
        self._decoder = decoder
        self._on_event = on_event
        self._sending = RLock()
        self._pending: dict[int, AsyncResult[Any]] = {}
        self._number = 0
        self._spares: Queue[Any] = Queue()
        self._ordered = 0
        self._closed = False

    def serve(self, messages: list[dict[str, Any]]) -> None:
        """Read until the connection is lost or closed.

        Args:
            messages: those received before.
        """
        try:
            for message in messages:
                self._dispatch(message)
            while data := self._connection.recv(262144):
                for message in self._decoder.feed(data):
                    self._dispatch(message)
        except (OSError, ValueError) as error:
            if not self._closed:
                _log.info("event=node_connection_broke job=%s node=%s error=%r", self.job, self.node, str(error))
        finally:
            self.close()

    def request(self, op: str, *, timeout: float = _PATIENCE, **arguments: Any) -> Any:
        """Send the node a request and wait for the answer.

        Raises:
            AgentUnavailable: the node is lost, or does not answer in time.
            NotFound, Conflict: it refuses.
        """
        self._number += 1
        number = self._number
        answer = self._pending[number] = AsyncResult()
        try:
            self._send({"id": number, "op": op, **arguments})
            return answer.get(timeout=timeout)
        except gevent.Timeout:
            raise self._lost(f"did not answer {op!r} within {timeout:g} s") from None
        finally:
            self._pending.pop(number, None)

    def notify(self, op: str, **arguments: Any) -> None:
        """Send a request whose answer does not matter; drop it if the node is lost."""
        with contextlib.suppress(AgentUnavailable):
            self._send({"op": op, **arguments})

    def add_spare(self, connection: Any) -> None:
        """Keep a connection that the node has opened for a client."""
        if self._closed:
            connection.close()
            return
        self._ordered = max(0, self._ordered - 1)
        self._spares.put(connection)

    def connect(self, address: Address, timeout: float, *, assigned: bool) -> socket.socket:
        """Connect to a server of the job. Arguments and errors as of `Runner.connect`."""
        with gevent.Timeout(timeout + 2.0, TimeoutError(f"node {self.node} did not connect in time")):
            for _ in range(_TRIES):
                spare = self._take_spare()
                try:
                    return use(spare, address, timeout, job=self.job, assigned=assigned)
                except Broken as error:
                    _log.debug("event=spare_broken job=%s node=%s error=%r", self.job, self.node, str(error))
        raise JobUnreachable(f"node {self.node}, where the job runs, does not connect", job=self.job)

    def close(self) -> None:
        """Disconnect; whoever waits for an answer gets `AgentUnavailable`."""
        if self._closed:
            return
        self._closed = True
        self._connection.close()
        while not self._spares.empty():
            self._spares.get_nowait().close()
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            answer.set_exception(self._lost("was lost"))

    def _take_spare(self) -> Any:
        """A spare connection, and another one ordered for the next client."""
        try:
            spare = self._spares.get_nowait()
            missing = 1 - self._spares.qsize() - self._ordered
        except Empty:
            spare = None
            missing = 2
        if missing > 0:
            self._ordered += missing
            self._send({"op": "spares", "count": missing})
        return spare if spare is not None else self._spares.get()

    def _send(self, message: dict[str, Any]) -> None:
        if self._closed:
            raise self._lost("is not connected")
        try:
            with self._sending:
                self._connection.sendall(encode(message))
        except OSError as error:
            raise self._lost(f"was lost: {error}") from None

    def _lost(self, how: str) -> AgentUnavailable:
        return AgentUnavailable(f"node {self.node}, where job '{self.job}' runs, {how}", job=self.job, retry_after=1.0)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            if "event" in message:
                self._on_event(message)
            return
        answer = self._pending.pop(message["id"], None)
        if answer is None:
            return
        error = message.get("error")
        if error is None:
            answer.set(message["result"])
        else:
            kind = _ERRORS.get(error["code"], PRouterError)
            answer.set_exception(kind(error["text"], job=self.job))
