"""The loopback endpoint on the node where a job reports its ports: ``GET <endpoint>?job_id=<uid>&port=<port>``.

It is as that on the agent's machine (`prouter.agent.expose.endpoint`): 200 ``OK``, or 400 with the reason, under a path
that only the job knows. The agent decides about each report.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

__all__ = ["ReportEndpoint"]

_HEAD_MOST = 8192
_PATIENCE = 15.0
"""Longest life of a connection in seconds."""
_CONNECTIONS = 64
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


class ReportEndpoint:
    """The endpoint's server.

    Args:
        report: tells the agent a port; gives the reason of a refusal, or an empty text.
    """

    def __init__(self, job: str, report: Callable[[int], Awaitable[str]]) -> None:
        self._job = job
        self._report = report
        self._path = f"/notify_port/{secrets.token_hex(16)}"
        self._server: asyncio.Server | None = None
        self._open = 0

    async def open(self) -> str:
        """Listen, and return the URL for the job."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_MOST)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            # Too slow, too long, reset, or more than one job has reason to open: there is nobody to answer.
            with contextlib.suppress(OSError, asyncio.TimeoutError, asyncio.LimitOverrunError, EOFError):
                if self._open <= _CONNECTIONS:
                    await asyncio.wait_for(self._answer(reader, writer), _PATIENCE)
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[0] != b"GET":
            status, text = "405 Method Not Allowed", "ports are reported with GET"
        else:
            text = await self._take(words[1].decode("ascii", "replace"))
            status = "400 Bad Request" if text else "200 OK"
        body = (text or "OK").encode("utf-8", "backslashreplace")
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode("ascii")
            + body
        )
        await writer.drain()

    async def _take(self, target: str) -> str:
        """Take one report; return why it is refused."""
        try:
            parts = urlsplit(target)
            query = parse_qs(parts.query, max_num_fields=16)
        except ValueError as error:
            return f"the request's target is not valid: {error}"
        if not hmac.compare_digest(parts.path.rstrip("/").encode(), self._path.encode()):
            return "ports are reported at the URL that the job has got"
        if query.get("job_id") != [self._job]:
            return f"this is not the endpoint of that job, but of job '{self._job}'"
        ports = query.get("port", [])
        if len(ports) != 1 or not _PORT.fullmatch(ports[0]) or not 0 < int(ports[0]) < 65536:
            return "port must be given once, as a number between 1 and 65535"
        return await self._report(int(ports[0]))
