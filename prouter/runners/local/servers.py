"""Whether a connection to a job's server has reached the job, decided for each connection once it is established.

A port that was the job's once may be another program's now, and a unix socket a link to somebody else's. So each new
connection is identified by the listening socket that got it (its inode, which the kernel tells in a few microseconds),
or with unix sockets by the process that listens. What was found to be the job's is remembered. Anything else is looked
for among the job's processes, which blocks the greenlet for some milliseconds, and happens at most ten times a second
for each job.

The identity is taken once the connection is established, not before: the kernel gives a connection to whoever listens
when it is established, and that may be seconds after connect(2).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import gevent
from gevent.socket import wait_write

from prouter.errors import JobUnreachable
from prouter.runners.local.sock_diag import Lookup
from prouter.runners.ownership import Peer, is_peer, leads_to, loopback, loopback_addresses, no_such_port, peer_of
from prouter.runners.sockets import Address, Sockets

__all__ = ["Identity", "Look", "Servers", "connected"]

_LOOKS = 2
"""Looks before a connection is refused: a process may change its parent during one."""
_PAUSE = 0.1
"""Least seconds between the looks at one job's processes."""
_SHARE = 10
"""How many times longer than a look the pause after it is at least: a job may have very many descriptors."""
_UNSEEN = 1.0
"""Seconds for which a port counts as the job's after a look, where the kernel does not tell who listens."""
_REMEMBERED = 256
"""Most listening sockets of one job that are remembered; the oldest ones are most likely closed."""
_ACCEPTED_WITHIN = 1.0
"""Seconds that a job has to accept a connection whose listening socket is closed already."""
_ACCEPT_POLL = 0.01
_RETRY = 0.02
"""Seconds between attempts at a unix socket whose backlog is full: the kernel does not tell when it has space."""
_SYN_SENT = 2
"""State of a TCP connection that is being made (linux/tcp_states.h)."""
_CREDENTIALS = struct.Struct("3i")

_log = logging.getLogger("prouter.agent")

Identity = int | Peer | None
"""Who got a connection: the inode of the listening socket, 0 if it is closed again; who listens at a unix socket; None
where the kernel does not tell."""


class Look(NamedTuple):
    """What a look at a job finds: sockets, and the port that the agent chose for the job, if it did."""

    sockets: Sockets
    assigned: int | None


@dataclass
class _Job:
    """What is known of one job's server."""

    found: dict[int | Peer, None] = field(default_factory=dict)
    until: dict[Address, float] = field(default_factory=dict)
    """Until when an address counts as the job's, where the kernel does not tell who listens."""
    looking: gevent.Greenlet[..., tuple[float, Look]] | None = None
    due: float = 0.0
    """When the next look may begin."""


class Servers:
    """What was found to be the jobs' own.

    Args:
        look: looks at a job's processes. It blocks the greenlet.
    """

    def __init__(self, look: Callable[[str], Look]) -> None:
        self._look = look
        self._jobs: dict[str, _Job] = {}
        self._lookup: Lookup | None
        try:
            self._lookup = Lookup()
        except OSError as error:
            self._lookup = None
            _log.info("event=no_sock_diag error=%r", str(error))

    def connect_at_once(self, job: str, address: Address) -> socket.socket | None:
        """Connect to a server that is known to be the job's, without waiting; None if it is not known, or takes the
        connection later.
        """
        known = self._jobs.get(job)
        if known is None or not known.found:
            return None
        if address.path is None and self._listener(address) not in known.found:
            return None
        try:
            connection = _begun(address, 0.0)
        except OSError as error:
            _log.debug("event=not_connected_at_once job=%s error=%r", job, str(error))
            return None
        if connection is None:
            return None
        try:
            if self.knows(job, address, self.identify(connection, address)):
                return connection
        except OSError as error:
            _log.debug("event=connection_ended job=%s error=%r", job, str(error))
        connection.close()  # `connect` looks who listens now.
        return None

    def connect(self, job: str, address: Address, timeout: float) -> socket.socket:
        """Connect to a job's server. Arguments and errors as of `Runner.connect`."""
        connection = connected(address, timeout)
        try:
            try:
                identity = self.identify(connection, address)
            except OSError as error:
                _log.debug("event=connection_ended job=%s error=%r", job, str(error))
                return connection  # It says so, too.
            if not self.knows(job, address, identity):
                refusal = self.refusal(job, connection, address, identity)
                if refusal:
                    raise JobUnreachable(refusal, job=job)
        except BaseException:
            connection.close()
            raise
        return connection

    def identify(self, connection: socket.socket, address: Address) -> Identity:
        """Return who got an established connection. Does not block.

        Raises:
            OSError: the connection has ended.
        """
        if address.path is not None:
            return peer_of(connection)
        if self._lookup is None:
            return None
        try:
            return self._lookup.listener(address.host, address.port)
        except BlockingIOError:
            return None  # The kernel had no memory for an answer.
        except OSError as error:
            _log.warning("event=no_sock_diag error=%r", str(error))
            self._lookup = None
            return None

    def knows(self, job: str, address: Address, identity: Identity) -> bool:
        """Whether what `identify` said of a connection to this address is known to be the job. Does not block."""
        known = self._jobs.get(job)
        if known is None:
            return False
        if identity is not None:
            return identity in known.found
        return time.monotonic() < known.until.get(address, 0.0)

    def find(self, job: str, port: int) -> Address:
        """Return a loopback address with this port that leads to the job. Blocks the greenlet.

        Another program may have it by the time of a connection, which has to be identified all the same.

        Raises:
            NotFound: no process of the job listens there; the code is ``no_such_port``.
        """
        known = self._jobs.setdefault(job, _Job())
        for address in loopback(port):
            if self._listener(address) in known.found:
                return address
        look = self._look_after(job, known, time.monotonic())
        for address in loopback_addresses(port, look.sockets):
            self._remember(known, address, leads_to(address, look.sockets))
            return address
        raise no_such_port(job, port, look.sockets)

    def _listener(self, address: Address) -> int:
        """Return the inode of the socket that gets new connections now; 0 if none does, or the kernel does not tell."""
        if self._lookup is None:
            return 0
        try:
            return self._lookup.listener(address.host, address.port)
        except OSError as error:
            _log.debug("event=no_sock_diag error=%r", str(error))
            return 0

    def refusal(self, job: str, connection: socket.socket, address: Address, identity: Identity) -> str:
        """Return why an established connection is not the job's; empty if it is. Blocks the greenlet.

        Args:
            identity: what `identify` said of it.
        """
        known = self._jobs.setdefault(job, _Job())
        accepted: int | None = 0
        if identity == 0:
            accepted = self._await_accepted(connection)
            if accepted is None:
                return ""  # Nothing can be sent to anybody.
        for _ in range(_LOOKS):
            look = self._look_after(job, known, time.monotonic())
            if accepted and accepted in look.sockets.held:
                return ""
            own = self._own(identity, address, look)
            if own:
                self._remember(known, address, own)
                return ""
        known.found.clear()  # Somebody may share the port: whom the kernel names is chance then.
        _log.warning("event=connection_refused job=%s address=%r text=%r", job, str(address), "it is another program's")
        return f"{address} is another program's: only the job's own processes are served"

    def forget(self, job: str) -> None:
        """Drop what is known of a job that has ended."""
        self._jobs.pop(job, None)

    def close(self) -> None:
        """Close the socket to the kernel."""
        if self._lookup is not None:
            self._lookup.close()

    def _own(self, identity: Identity, address: Address, look: Look) -> frozenset[Identity]:
        """Return all that is the job's at this address; nothing if this identity is not."""
        if isinstance(identity, Peer):
            return frozenset({identity} if is_peer(identity, address.path or "", look.sockets) else ())
        own = leads_to(address, look.sockets, assigned=address.port == look.assigned)
        if identity is None:
            return frozenset({None} if own else ())
        return own - {0} if identity in own - {0} else frozenset()

    def _remember(self, known: _Job, address: Address, own: Iterable[Identity]) -> None:
        now = time.monotonic()
        for identity in own:
            if identity is None:
                known.until = {one: until for one, until in known.until.items() if until > now}
                known.until[address] = now + _UNSEEN
            else:
                known.found[identity] = None
        while len(known.found) > _REMEMBERED:
            del known.found[next(iter(known.found))]

    def _await_accepted(self, connection: socket.socket) -> int | None:
        """Wait for the end of a connection that came through a listening socket that is closed now.

        Returns:
            The inode of the server's end, if it was accepted before; 0 if it was not; None if the connection has ended.
        """
        deadline = time.monotonic() + _ACCEPTED_WITHIN
        while self._lookup is not None and time.monotonic() < deadline:
            try:
                ends = connection.getpeername()[:2], connection.getsockname()[:2]
            except OSError as error:
                _log.debug("event=connection_ended error=%r", str(error))
                return None
            try:
                inode = self._lookup.accepted(*ends)
            except OSError as error:
                _log.warning("event=sock_diag_failed error=%r", str(error))
                return 0
            if inode:
                return inode
            gevent.sleep(_ACCEPT_POLL)
        return 0

    def _look_after(self, job: str, known: _Job, when: float) -> Look:
        """Return what a look finds that began at `when` or later; connections that wait share looks."""
        while True:
            if known.looking is None:
                known.looking = gevent.spawn(self._take_look, job, known)
            began, look = known.looking.get()
            if began >= when:
                return look

    def _take_look(self, job: str, known: _Job) -> tuple[float, Look]:
        try:
            gevent.sleep(max(0.0, known.due - time.monotonic()))
            began = time.monotonic()
            look = self._look(job)
            ended = time.monotonic()
            known.due = ended + max(_PAUSE, _SHARE * (ended - began))
            return began, look
        finally:
            known.looking = None


def connected(address: Address, timeout: float) -> socket.socket:
    """Return a connection that is established, and does not block, whoever it reached.

    Raises:
        OSError: there is none within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        connection = _begun(address, deadline)
        if connection is not None:
            return connection
        if time.monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        gevent.sleep(_RETRY)


def _begun(address: Address, deadline: float) -> socket.socket | None:
    """Return a connection; None if the backlog of the unix socket is full.

    Args:
        deadline: monotonic time; 0 for no waiting.
    """
    path = address.path
    family = socket.AF_UNIX if path is not None else socket.AF_INET6 if ":" in address.host else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = connection.connect_ex(path if path is not None else (address.host, address.port))
        if code == errno.EAGAIN:
            connection.close()
            return None
        if code == errno.EINPROGRESS:
            code = _outcome(connection, deadline)
        if code == 0 and path is not None and not _is_of(connection, address.owner):
            code = errno.EACCES
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        connection.close()
        raise
    return connection


def _outcome(connection: socket.socket, deadline: float) -> int:
    """Wait until a connection is established, as it mostly is at once on loopback; return its error, 0 if it is."""
    # The first octet of TCP_INFO is the state (tcp(7)).
    if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _SYN_SENT:
        if not deadline:
            return errno.EINPROGRESS
        late = TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        wait_write(connection.fileno(), timeout=max(0.001, deadline - time.monotonic()), timeout_exc=late)
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _is_of(connection: socket.socket, owner: int | None) -> bool:
    """Return whether the process that listens at the other end of a unix socket is of this user; None for any.

    A path may lead elsewhere than it seems, for example to a socket that only root may use (SO_PEERCRED in unix(7)).
    """
    if owner is None:
        return True
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(peer)[1] == owner)
