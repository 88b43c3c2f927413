"""A WebSocket job server on the ``websockets`` library, on ``$PORT`` or the port given.

- ``/echo`` repeats messages, ``/stream`` repeats them fragment by fragment as they come.
- ``/greet`` says a text, an empty text, two bytes and no bytes, then repeats.
- ``/close?code=N&reason=R`` closes like that after the first message, ``/drop`` breaks the connection then.
- ``/headers`` says the fields of the handshake as a JSON list of pairs, then repeats.
- ``/silent`` reads and never says a thing.
- ``GET /seen`` without an upgrade: ``{"open": N, "ended": [{"path", "code", "reason"}…]}``.

It speaks the subprotocols ``v2`` and ``v1``, the first one offered of them, and permessage-deflate.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

SUBPROTOCOLS = ("v2", "v1")


class Server:
    """Answers the paths of the module's docstring."""

    def __init__(self) -> None:
        self.open = 0
        self.ended: list[dict[str, Any]] = []

    def seen(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer plain HTTP."""
        if "Upgrade" in request.headers:
            return None
        return connection.respond(HTTPStatus.OK, json.dumps({"open": self.open, "ended": self.ended}))

    async def handle(self, connection: ServerConnection) -> None:
        """One WebSocket."""
        assert connection.request is not None
        target = urlsplit(connection.request.path)
        self.open += 1
        try:
            await getattr(self, target.path.strip("/").replace("/", "_"))(connection, parse_qs(target.query))
        except ConnectionClosed:
            await connection.wait_closed()
        finally:
            self.open -= 1
            self.ended.append(
                {"path": connection.request.path, "code": connection.close_code, "reason": connection.close_reason}
            )

    async def echo(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        async for message in connection:
            await connection.send(message)
        await connection.wait_closed()

    async def stream(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        while True:
            await connection.send(connection.recv_streaming())

    async def greet(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        for message in ("hello ✓", "", b"\x00\xff", b""):
            await connection.send(message)
        await self.echo(connection, options)

    async def headers(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        assert connection.request is not None
        await connection.send(json.dumps(list(connection.request.headers.raw_items())))
        await self.echo(connection, options)

    async def close(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        await connection.recv()
        await connection.close(int(options["code"][0]), options.get("reason", [""])[0])

    async def drop(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        await connection.recv()
        connection.transport.abort()
        await connection.wait_closed()

    async def silent(self, connection: ServerConnection, options: dict[str, list[str]]) -> None:
        async for _ in connection:
            pass
        await connection.wait_closed()


def choose(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The first subprotocol offered that is known."""
    return next((name for name in offered if name in SUBPROTOCOLS), None)


async def main() -> None:
    """Serve until killed."""
    port = int(sys.argv[1] if len(sys.argv) > 1 else os.environ["PORT"])
    server = Server()
    async with serve(
        server.handle,
        "127.0.0.1",
        port,
        process_request=server.seen,
        select_subprotocol=choose,
        subprotocols=[Subprotocol(name) for name in SUBPROTOCOLS],
        max_size=64 << 20,
        ping_interval=None,
        close_timeout=2,
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
