"""The sockets on which the job's processes listen on this node, and whether a connection has reached one of them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prouter.runners.local import sock_diag
from prouter.runners.local.listening_sockets import survey
from prouter.runners.ownership import is_peer, leads_to, peer_of
from prouter.runners.sockets import Address, Sockets

__all__ = ["NotOwn", "OwnSockets"]

_LOOKS = 2
"""Looks before a connection is refused: a process may change its parent during one."""
_FRESH = 1.0
"""Seconds for which a listener counts as the job's after a look that found it."""


class NotOwn(Exception):
    """A connection has reached another program."""


class OwnSockets:
    """What the job's processes listen on.

    Args:
        processes: pids of the job's processes.
    """

    def __init__(self, processes: Callable[[], Awaitable[list[int]]]) -> None:
        self._processes = processes
        self._known: dict[int, float] = {}
        try:
            self._lookup: sock_diag.Lookup | None = sock_diag.Lookup()
        except OSError:
            self._lookup = None

    async def survey(self) -> Sockets:
        """All listening sockets, the job's and others'."""
        pids = await self._processes()
        return await asyncio.get_running_loop().run_in_executor(None, survey, pids)

    async def check(self, connection: socket.socket, request: dict[str, Any]) -> None:
        """Make sure that the job has got a new connection.

        The listener is identified by its inode, and looked for among the sockets of the job's processes unless it was
        just found there. Where the kernel does not tell who listens, the look has to do.

        Args:
            request: ``host`` and ``port``, or ``path``; ``assigned`` if the agent chose the port.

        Raises:
            NotOwn: somebody else has got it.
        """
        path = request.get("path")
        inode = (
            0 if path is not None or self._lookup is None else self._lookup.listener(request["host"], request["port"])
        )
        if inode and self._known.get(inode, 0.0) > time.monotonic():
            return
        for _ in range(_LOOKS):
            sockets = await self.survey()
            if path is not None:
                if is_peer(peer_of(connection), path, sockets):
                    return
                continue
            own = leads_to(Address(request["host"], request["port"]), sockets, assigned=request["assigned"])
            if own and (inode in own or not inode):
                self._known = {one: time.monotonic() + _FRESH for one in own}
                return
        where = f"socket {path}" if path is not None else f"port {request['port']}"
        raise NotOwn(f"{where} is another program's: only the job's own processes are served")
