"""The node's connection to its agent: requests and events, made again whenever it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from prouter.runners.slurm.node.dialling import Connection, Refused, dial
from prouter.runners.slurm.node.notes import note

__all__ = ["AgentLink"]

_FIRST_DELAY = 0.05
_GROWTH = 1.6
_LONGEST_DELAY = 5.0
"""Seconds between attempts, so that a new agent finds all its jobs again within about that time."""


class AgentLink:
    """The connection to the agent, whoever that is now.

    Args:
        hello: makes the first message, which tells all that the agent may have missed.
        serve: carries out a request; its result or `Exception` is the answer.
        refused: called when the agent no longer knows the job.
        linked: called when the agent is connected and its clock known.
    """

    def __init__(
        self,
        directory: str,
        *,
        hello: Callable[[], dict[str, Any]],
        serve: Callable[[dict[str, Any]], Coroutine[Any, Any, None]],
        refused: Callable[[], None],
        linked: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._hello = hello
        self._serve = serve
        self._refused = refused
        self._linked = linked
        self._connection: Connection | None = None
        self._tried = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ahead = 0.0

    @property
    def connected(self) -> bool:
        """Whether the agent is connected."""
        return self._connection is not None

    def agent_time(self, own: float) -> float:
        """A time of this node's clock by the agent's, as far as that is known; seconds since the epoch."""
        return own + self._ahead

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; drop it if the agent is away."""
        if self._connection is not None:
            self._connection.send(message)

    async def run(self) -> None:
        """Stay connected, for ever."""
        delay = _FIRST_DELAY
        told = ""
        while True:
            try:
                connection = await dial(self._directory, self._hello())
            except Refused:
                self._refused()
            except (OSError, ValueError, KeyError) as error:
                self._tried.set()
                if str(error) != told:
                    told = str(error)
                    note(f"the agent is not reached: {error}")
            else:
                delay, told, self._ahead = _FIRST_DELAY, "", connection.ahead
                await self._converse(connection)
            await asyncio.sleep(delay)
            delay = min(delay * _GROWTH, _LONGEST_DELAY)

    async def flush(self) -> None:
        """Wait until the agent, once it has been told the job's end, closes the connection, or cannot be reached."""
        await self._tried.wait()
        while self._connection is not None:
            await asyncio.sleep(0.005)

    async def _converse(self, connection: Connection) -> None:
        self._connection = connection
        self._tried.set()
        self._linked()
        # What happened while the connection was made is told by another hello.
        connection.send({"event": "hello", **self._hello()})
        try:
            while (message := await connection.receive()) is not None:
                task = asyncio.create_task(self._serve(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (OSError, ValueError) as error:
            note(f"the connection to the agent broke: {error}")
        finally:
            self._connection = None
            connection.close()
