"""The node's keeper as a child process, which runs the job."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from prouter.keeper.wire import Decoder, encode
from prouter.runners.slurm.node.notes import note

__all__ = ["KeeperLost", "KeeperProcess", "Refusal"]


class KeeperLost(Exception):
    """The keeper has ended."""


class Refusal(Exception):
    """The keeper refuses a request.

    Attributes:
        code: as of `prouter.keeper.requests.Refused`.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class KeeperProcess:
    """Requests to a keeper that `keeper_start.begin` has started.

    Args:
        on_event: called with each of its events.
        on_lost: called once, when the keeper has ended without having been told to.
    """

    def __init__(
        self,
        pid: int,
        connection: socket.socket,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._pid = pid
        self._connection = connection
        self._on_event = on_event
        self._on_lost = on_lost
        self._number = 0
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ending = False

    async def open(self) -> None:
        """Begin to read. Raises `KeeperLost`, `Refusal`."""
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        self._reading = asyncio.create_task(self._read(reader))
        await self.request("hello", keep_for=0)

    async def request(self, op: str, **arguments: Any) -> Any:
        """Send a request and wait for the answer. Raises `KeeperLost`, `Refusal`."""
        if self._writer is None or self._reading is None or self._reading.done():
            raise KeeperLost("the node's keeper has ended")
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[self._number] = answer
        self._writer.write(encode({"id": self._number, "op": op, **arguments}))
        return await answer

    async def end(self) -> None:
        """Have it end, with all processes that are left."""
        self._ending = True
        try:
            await self.request("end")
        except KeeperLost:
            return
        finally:
            await self.reap()

    async def reap(self) -> None:
        """Wait for the end of its process."""
        await asyncio.get_running_loop().run_in_executor(None, _wait, self._pid)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        decoder = Decoder()
        try:
            while data := await reader.read(262144):
                for message in decoder.feed(data):
                    self._dispatch(message)
                    # Whoever waits for this answer goes on before the next message: a job may end as it has begun.
                    await asyncio.sleep(0)
        except (OSError, ValueError) as error:
            note(f"the connection to the keeper broke: {error}")
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            if not answer.done():
                answer.set_exception(KeeperLost("the node's keeper has ended"))
        if not self._ending:
            self._on_lost()

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            self._on_event(message)
            return
        answer = self._pending.pop(message["id"], None)
        if answer is None or answer.done():
            return
        error = message.get("error")
        if error is None:
            answer.set_result(message["result"])
        else:
            answer.set_exception(Refusal(error["code"], error["text"]))


def _wait(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return
