"""Connections from the agent to the job's servers on this node.

The node opens each of them towards the agent, ahead of its use. The agent then says where to connect to. After the
node's answer both sides send pieces: a length (u32, big-endian) and as many bytes. A length of 0 ends one direction,
which TLS itself cannot do (RFC 8446, 6.1, but not Python's ssl).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from typing import Any

from prouter.runners.slurm.node.dialling import Connection
from prouter.runners.slurm.node.own_sockets import NotOwn, OwnSockets

__all__ = ["PIECE", "serve"]

PIECE = struct.Struct("!I")
_MOST = 65536


async def serve(spare: Connection, sockets: OwnSockets) -> None:
    """Serve one connection from the agent's first word to the end."""
    try:
        request = await spare.receive()
        if request is None:
            return
        try:
            reader, writer = await asyncio.wait_for(_connect(request, sockets), request["timeout"])
        except NotOwn as error:
            spare.send({"refused": str(error)})
        except (asyncio.TimeoutError, TimeoutError):
            spare.send({"errno": errno.ETIMEDOUT})
        except OSError as error:
            spare.send({"errno": error.errno or errno.ECONNREFUSED})
        else:
            spare.send({"connected": True})
            await _relay(spare, reader, writer)
        await spare.writer.drain()
    except (OSError, ValueError, asyncio.IncompleteReadError):
        return  # The agent, or the connection to it, is gone; so are the client and its request.
    finally:
        spare.close()


async def _connect(request: dict[str, Any], sockets: OwnSockets) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    path = request.get("path")
    if path is not None:
        reader, writer = await asyncio.open_unix_connection(path)
    else:
        reader, writer = await asyncio.open_connection(request["host"], request["port"])
    connection: socket.socket = writer.get_extra_info("socket")
    try:
        if path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await sockets.check(connection, request)
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def _relay(spare: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    directions = [
        asyncio.create_task(_to_job(spare.reader, writer)),
        asyncio.create_task(_to_agent(reader, spare.writer)),
    ]
    try:
        await asyncio.gather(*directions)
    finally:
        for direction in directions:
            direction.cancel()
        writer.close()


async def _to_job(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while True:
        (length,) = PIECE.unpack(await source.readexactly(PIECE.size))
        if length == 0:
            break
        sink.write(await source.readexactly(length))
        await sink.drain()
    sink.write_eof()


async def _to_agent(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_MOST):
        sink.write(PIECE.pack(len(data)) + data)
        await sink.drain()
    sink.write(PIECE.pack(0))
    await sink.drain()
