"""Encrypted connections from the node to the agent, each authenticated both ways.

TLS proves the agent to the node: only the agent has the key of the certificate in the shared directory. The secret of
the job's start, sent over TLS, proves the node to the agent. So nothing listens on the node, and nobody else can use
what listens at the agent.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from typing import Any

from prouter.keeper.wire import Decoder, encode
from prouter.runners.slurm.node import job_files

__all__ = ["Connection", "Refused", "dial"]

_PATIENCE = 10.0
"""Seconds that connection, handshake and welcome may take."""
_PIECE = 262144
_SAME_TIME = 1.0
"""Seconds by which clocks may differ that count as synchronous; the message itself takes a part of that."""


class Refused(Exception):
    """The agent does not know this start of the job: it has to end."""


class Connection:
    """A connection on which messages come first (`prouter.keeper.wire`), perhaps followed by other bytes.

    Attributes:
        ahead: seconds by which the agent's clock is ahead of this node's; 0 if that is less than a second.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ahead = 0.0
        self.reader = reader
        self.writer = writer
        self._decoder = Decoder()
        self._messages: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end.

        Raises:
            OSError, ValueError: the connection broke; what came is no message.
        """
        while not self._messages:
            data = await self.reader.read(_PIECE)
            if not data:
                return None
            self._messages = self._decoder.feed(data)
        return self._messages.pop(0)

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message."""
        self.writer.write(encode(message))

    def close(self) -> None:
        """Disconnect."""
        self.writer.close()


async def dial(directory: str, hello: dict[str, Any]) -> Connection:
    """Connect to the agent at the first of its addresses that works.

    Args:
        directory: of the job; the file beside it tells where the agent is now.
        hello: the first message; holds the job's uid and secret.

    Raises:
        OSError: the agent is not there.
        Refused: it does not know this start.
    """
    agent = job_files.read(os.path.dirname(os.path.dirname(directory)), job_files.AGENT)
    if agent is None:
        raise FileNotFoundError("the agent has told no address")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # The certificate itself is known, not just its name.
    context.load_verify_locations(cadata=agent["certificate"])
    problem: OSError = ConnectionError("the agent has told no address")
    for host, port in agent["addresses"]:
        try:
            return await asyncio.wait_for(_welcomed(host, port, context, hello), _PATIENCE)
        except asyncio.TimeoutError:
            problem = TimeoutError(f"{host} port {port} does not answer")
        except (OSError, ValueError) as error:
            problem = error if isinstance(error, OSError) else ConnectionError(str(error))
    raise problem


async def _welcomed(host: str, port: int, context: ssl.SSLContext, hello: dict[str, Any]) -> Connection:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    connection = Connection(reader, writer)
    try:
        connection.send(hello)
        answer = await connection.receive()
        if answer is None:
            raise ConnectionError("the agent has closed the connection")
        if "welcome" not in answer:
            raise Refused(str(answer.get("refused", "")))
        ahead = float(answer.get("time", time.time())) - time.time()
        connection.ahead = ahead if abs(ahead) >= _SAME_TIME else 0.0
    except BaseException:
        writer.close()
        raise
    return connection
