"""The keeper's end of the connection to its agent.

The keeper serves one agent at a time, and checks that it runs as the same user and is none of its own jobs. It never
blocks on the agent: it queues what the socket does not take. It sends log lines to the agent, or prints them to stderr
while none is connected.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import time
from typing import Any

from prouter.keeper.wire import Decoder, encode
from prouter.processes.process_tree import read_process

__all__ = ["AgentLink"]

_CREDENTIALS = struct.Struct("3i")


class AgentLink:
    """The connection to the agent, and the socket that the next agent connects to.

    Args:
        path: of the listening socket; an existing one is replaced, so the caller must hold the state directory's lock.
        poller: gets the sockets registered; the caller hands readiness to `accept`, `receive` and `flush`.
        first: the connection of the agent that started the keeper.
    """

    def __init__(self, path: str, poller: select.epoll, first: socket.socket) -> None:
        self._poller = poller
        self._path = path
        self._listener: socket.socket | None = _listen(path)
        self._poller.register(self._listener.fileno(), select.EPOLLIN)
        self._agent: socket.socket | None = None
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._take(first)

    @property
    def connected(self) -> bool:
        """Whether an agent is connected."""
        return self._agent is not None

    @property
    def agent(self) -> socket.socket | None:
        """The connection; a request compares it to see whether its agent is still connected."""
        return self._agent

    def is_listener(self, fd: int) -> bool:
        """Whether a ready descriptor is the socket that the next agent connects to."""
        return self._listener is not None and fd == self._listener.fileno()

    def is_agent(self, fd: int) -> bool:
        """Whether a ready descriptor is the agent's connection."""
        return self._agent is not None and fd == self._agent.fileno()

    def accept(self) -> None:
        """Accept a connection. A process of another user, or a second agent, gets a refusal with its reason."""
        assert self._listener is not None
        try:
            peer = self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            return
        refusal = self._refusal(peer)
        if refusal is None:
            self._take(peer)
            return
        self.log("warning", f"event=agent_refused reason={refusal!r}")
        with peer:
            try:
                peer.send(encode({"event": "refused", "text": refusal}))
            except OSError as error:
                self.log("info", f"event=refusal_not_sent error={error.strerror!r}")

    def receive(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None if the agent disconnected or broke the protocol.

        Descriptors that come along become the keeper's stdout and stderr, which jobs without log files inherit.
        """
        assert self._agent is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._agent, 262144, 2)
        except BlockingIOError:
            return []
        except OSError as error:
            self._lose(error.strerror)
            return None
        for fd, target in zip(fds, (1, 2), strict=False):
            os.dup2(fd, target)
        for fd in fds:
            os.close(fd)
        if not data:
            self._lose("closed")
            return None
        try:
            return self._decoder.feed(data)
        except ValueError as error:
            self._lose(str(error))
            return None

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message for the agent; drop it if none is connected."""
        if self._agent is None:
            return
        waiting = bool(self._unsent)
        self._unsent += encode(message)
        if not waiting:
            self.flush()

    def flush(self) -> None:
        """Send as much of the queue as the socket takes."""
        if self._agent is None:
            return
        try:
            sent = self._agent.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unsent.clear()  # The agent disconnected; `receive` is about to notice.
            return
        del self._unsent[:sent]
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
        self._poller.modify(self._agent.fileno(), wanted)

    def log(self, level: str, text: str) -> None:
        """Log an event line.

        Args:
            level: name of a logging level in lower case.
        """
        if self._agent is not None:
            self.send({"event": "log", "level": level, "text": text})
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        # The agent's stderr may be closed, and there is no other place to log to.
        with contextlib.suppress(OSError):
            print(f"{stamp} {level.upper()} prouter.keeper {text}", file=sys.stderr, flush=True)

    def stop_listening(self) -> None:
        """Accept no further agent."""
        if self._listener is not None:
            self._poller.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None
            os.unlink(self._path)

    def close(self) -> None:
        """Send as much of the queue as the socket takes at once, and disconnect."""
        self.flush()
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _refusal(self, peer: socket.socket) -> str | None:
        pid, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            return f"the keeper runs as user {os.geteuid()}, not as user {uid}: start the agent as that user"
        if _may_be_a_job(pid):
            return "the keeper takes no orders from its own jobs: start the agent outside of them"
        if self._agent is not None:
            return (
                "another agent is using this state directory: stop it, or give this agent a state directory of its own"
            )
        return None

    def _take(self, agent: socket.socket) -> None:
        agent.setblocking(False)
        self._poller.register(agent.fileno(), select.EPOLLIN)
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._agent = agent

    def _lose(self, reason: str | None) -> None:
        assert self._agent is not None
        self._poller.unregister(self._agent.fileno())
        self._agent.close()
        self._agent = None
        self.log("info", f"event=agent_disconnected reason={reason!r}")


def _may_be_a_job(pid: int) -> bool:
    """Whether a process descends from this one, as all jobs do; also if that cannot be told.

    The keeper adopts processes whose parents have ended, so no job leaves the line of descent.
    """
    if pid == 0:  # It is in a namespace of its own.
        return True
    mine = os.getpid()
    while pid > 1:
        process = read_process(pid) if pid != mine else None
        if process is None:
            return pid == mine or not _is_of_another_user(pid)
        pid = process.parent
    return False


def _is_of_another_user(pid: int) -> bool:
    """Whether a process that /proc does not show is another user's, and so no job; hidepid hides those (proc(5))."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        pass
    return False


def _listen(path: str) -> socket.socket:
    """A listening unix socket. Its path may be longer than a socket address holds (108 bytes)."""
    try:
        os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)
    listener.listen(8)
    listener.setblocking(False)
    return listener
