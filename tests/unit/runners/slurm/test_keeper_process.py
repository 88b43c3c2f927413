"""The node's side of its connection to the keeper."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from prouter.keeper.wire import Decoder, encode
from prouter.runners.slurm.node.keeper_process import KeeperProcess


def test_an_answer_is_taken_before_the_event_that_came_with_it() -> None:
    """A job that ends at once: the keeper's answer to its start and its end arrive in one piece."""
    ours, keepers = socket.socketpair()
    happened: list[str] = []

    async def start(keeper: KeeperProcess) -> None:
        await keeper.request("spawn")
        happened.append("started")

    async def run() -> None:
        over = asyncio.Event()

        def on_event(message: dict[str, Any]) -> None:
            happened.append(message["event"])
            over.set()

        keeper = KeeperProcess(0, ours, on_event, over.set)
        loop, decoder = asyncio.get_running_loop(), Decoder()
        keepers.setblocking(False)

        async def requests() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            while not found:
                found += decoder.feed(await loop.sock_recv(keepers, 65536))
            return found

        opening = asyncio.create_task(keeper.open())
        (hello,) = await requests()
        keepers.sendall(encode({"id": hello["id"], "result": {}}))
        await opening
        starting = asyncio.create_task(start(keeper))
        (spawn,) = await requests()
        keepers.sendall(encode({"id": spawn["id"], "result": {"pid": 1}}) + encode({"event": "exited"}))
        await asyncio.wait_for(over.wait(), 10)
        await starting

    with ours, keepers:
        asyncio.run(run())
    assert happened == ["started", "exited"]
