"""The keeper's end of the connection to its agent: one agent at a time, told apart from strangers, never waited for.

Output that the socket does not take is kept, so a stopped agent cannot block the keeper. What has to be logged goes to
the agent's log while there is one, and to stderr otherwise.
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

__all__ = ["AgentLink"]

_CREDENTIALS = struct.Struct("3i")


class AgentLink:
    """The connection to the agent, and the socket that the next agent connects to.

    Args:
        path: of the listening socket; an existing one is replaced, so the caller must hold the state directory's lock.
        poller: gets the sockets registered; the caller hands readiness to `accept`, `receive` and `flush`.
        first: the starting agent's connection.
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
        """Whether an agent is there."""
        return self._agent is not None

    @property
    def agent(self) -> socket.socket | None:
        """The connection, to tell by identity whether a request's agent is still there."""
        return self._agent

    def owns(self, fd: int) -> str | None:
        """What a ready descriptor is: ``listener``, ``agent`` or None if it is not of this link."""
        if self._listener is not None and fd == self._listener.fileno():
            return "listener"
        if self._agent is not None and fd == self._agent.fileno():
            return "agent"
        return None

    def accept(self) -> None:
        """Take a new connection; a stranger's, or a second agent's, is refused with a reason and closed."""
        assert self._listener is not None
        try:
            stranger = self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            return
        refusal = self._refusal(stranger)
        if refusal is None:
            self._take(stranger)
            return
        self.log("warning", f"event=agent_refused reason={refusal!r}")
        with stranger:
            try:
                stranger.send(encode({"event": "refused", "text": refusal}))
            except OSError as error:
                self.log("info", f"event=refusal_not_sent error={error.strerror!r}")

    def receive(self) -> list[dict[str, Any]] | None:
        """Messages that have arrived; None if the agent is gone, or broke the protocol.

        Descriptors sent along become the keeper's stdout and stderr, which jobs without log files inherit.
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
        """Queue a message for the agent; dropped if there is none."""
        if self._agent is None:
            return
        waiting = bool(self._unsent)
        self._unsent += encode(message)
        if not waiting:
            self.flush()

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        if self._agent is None:
            return
        try:
            sent = self._agent.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unsent.clear()  # The agent is gone; `receive` is about to say so.
            return
        del self._unsent[:sent]
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
        self._poller.modify(self._agent.fileno(), wanted)

    def log(self, level: str, text: str) -> None:
        """Log an event line."""
        if self._agent is not None:
            self.send({"event": "log", "level": level, "text": text})
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        # The agent's stderr may be gone, and with it the last place to say it.
        with contextlib.suppress(OSError):
            print(f"{stamp} {level.upper()} prouter.keeper {text}", file=sys.stderr, flush=True)

    def stop_listening(self) -> None:
        """Let no further agent connect."""
        if self._listener is not None:
            self._poller.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None
            os.unlink(self._path)

    def close(self) -> None:
        """Send what is left, as far as it goes at once, and hang up."""
        self.flush()
        if self._agent is not None:
            self._agent.close()
            self._agent = None

    def _refusal(self, stranger: socket.socket) -> str | None:
        _, uid, _ = _CREDENTIALS.unpack(stranger.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            return f"user {uid} is not the one this keeper runs as"
        if self._agent is not None:
            return "another agent is using this state directory"
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
        self.log("info", f"event=agent_gone reason={reason!r}")


def _listen(path: str) -> socket.socket:
    """A listening unix socket; works for paths longer than a socket address holds (108 bytes)."""
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
