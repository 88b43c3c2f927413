"""Addresses of jobs' servers, and the sockets on which processes listen, on the machine where a job runs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

__all__ = ["Address", "Listener", "Sockets"]


class Address(NamedTuple):
    """The address of a server on the machine where its job runs: a port of a host, or the path of a unix socket.

    Attributes:
        owner: uid of the job's user, whose socket it must be; None for any user's.
    """

    host: str = "127.0.0.1"
    port: int = 0
    path: str | None = None
    owner: int | None = None

    @classmethod
    def of(cls, endpoint: Mapping[str, Any]) -> Address:
        """Return the address that a job record has."""
        return cls(endpoint.get("host", "127.0.0.1"), endpoint.get("port", 0), endpoint.get("socket"))

    def endpoint(self) -> dict[str, str | int]:
        """Return the address in a job record's form: ``{"port"}``, with ``"host"`` unless that is 127.0.0.1, or
        ``{"socket"}``.
        """
        if self.path is not None:
            return {"socket": self.path}
        return {"port": self.port} if self.host == "127.0.0.1" else {"port": self.port, "host": self.host}

    def __str__(self) -> str:
        if self.path is not None:
            return f"socket {self.path}"
        return f"port {self.port}" if self.host == "127.0.0.1" else f"{self.host} port {self.port}"


class Listener(NamedTuple):
    """One listening stream socket.

    Attributes:
        family: ``ipv4``, ``ipv6`` or ``unix``.
        host: the address bound, ``0.0.0.0`` and ``::`` for any; for ``unix`` the path as bound (perhaps relative to the
            process's directory), with ``@`` in front if abstract.
        port: 0 for ``unix``.
        pid: a process that holds the socket.
        inode: the socket's; no two sockets have the same.
        uid: the user id of the process that made it; 0 for ``unix``.
    """

    family: str
    host: str
    port: int
    pid: int
    inode: int = 0
    uid: int = 0


class Sockets(NamedTuple):
    """The listening stream sockets of a job's processes, and all others on the machine where they run.

    A runner whose keeper runs elsewhere fills `own` and `foreign`, and leaves the rest.

    Attributes:
        own: sockets of the processes, TCP before unix, each once even if several processes share it.
        foreign: TCP sockets of everybody else. Their `pid` is 0, but where processes are hidden that of a process that
            is known to hold the socket.
        hidden: processes of the set whose sockets this process may not see: they run as another user, or run a
            setuid program (ptrace(2), "Ptrace access mode checking").
        hidden_uids: the users as which these processes act.
        pids: all processes of the set.
        held: inodes of all sockets of the processes, those of connections included.
    """

    own: list[Listener]
    foreign: list[Listener]
    hidden: list[int]
    hidden_uids: frozenset[int] = frozenset()
    pids: frozenset[int] = frozenset()
    held: Set[int] = frozenset()
