"""Bytes on their way to a client: written at once where the kernel takes them, else queued until it does."""

from __future__ import annotations

import _socket
import fcntl
import logging
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Any

from prouter.fabric.stream import Stream

__all__ = ["ClientOutput"]

log = logging.getLogger("prouter.proxy")

_RESET = struct.pack("ii", 1, 0)


class ClientOutput:
    """The sending side of a client's socket.

    A byte that came over a stream counts as consumed only once the kernel has it. That is the back-pressure from a slow
    client to its job: an unread response fills the stream's window, and then the agent stops reading from the job.

    Args:
        loop: gevent's event loop.
        sock: the client's socket, non-blocking.
        on_writable: called when the kernel takes bytes again; has to call `flush`.

    Attributes:
        size: bytes in the queue.
    """

    __slots__ = ("_loop", "_on_writable", "_queue", "_socket", "_watcher", "size")

    def __init__(self, loop: Any, sock: _socket.socket, on_writable: Callable[[], None]) -> None:
        self.size = 0
        self._loop = loop
        self._socket = sock
        self._on_writable = on_writable
        self._queue: deque[tuple[memoryview, Stream | None, int]] = deque()
        self._watcher: Any = None
        """Made by the first write that the kernel does not take whole, which most connections never see."""

    @property
    def empty(self) -> bool:
        """Whether the kernel has everything."""
        return not self._queue

    def write(self, data: bytes, stream: Stream | None, size: int) -> bool:
        """Send or queue `data`; once the kernel has it, `size` bytes of `stream` count as consumed.

        Returns:
            Whether a queue began: the kernel took only a part.

        Raises:
            OSError: the connection is broken.
        """
        if self._queue:
            self._queue.append((memoryview(data), stream, size))
            self.size += len(data)
            return False
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):
            if stream is not None:
                stream.consume(size)
            return False
        self._queue.append((memoryview(data)[sent:], stream, size))
        self.size = len(data) - sent
        if self._watcher is None:
            self._watcher = self._loop.io(self._socket.fileno(), 2)
        self._watcher.start(self._on_writable)
        return True

    def flush(self) -> int:
        """Send what the kernel takes of the queue, and return how many bytes that was.

        Raises:
            OSError: the connection is broken.
        """
        queue, total = self._queue, 0
        while queue:
            data, stream, size = queue[0]
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                return total
            total += sent
            self.size -= sent
            if sent < len(data):
                queue[0] = (data[sent:], stream, size)
                return total
            queue.popleft()
            if stream is not None:
                stream.consume(size)
        self._watcher.stop()
        return total

    def undelivered(self) -> int:
        """Bytes written that the client's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)))
        return self.size + int(unacknowledged)

    def reset_on_close(self) -> None:
        """Have the kernel send RST, not FIN, when the socket is closed (socket(7), SO_LINGER with a time of 0)."""
        try:
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
        except OSError as error:  # the connection is broken already
            log.debug("event=reset_not_set error=%r", error)

    def close(self) -> None:
        """Stop and drop the queue. Its bytes count as consumed, so that their streams' windows do not stay shut."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        queue, self._queue = self._queue, deque()
        self.size = 0
        for _data, stream, size in queue:
            if stream is not None:
                stream.consume(size)
