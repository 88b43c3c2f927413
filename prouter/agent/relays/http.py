"""The relay of one connection: raw bytes between a stream and a job's server, as callbacks on the event loop.

This is the hot path. A relay has no greenlet once it is connected, and no buffer while it is idle:

* It reads the socket only as far as the stream's window is open, at most one `piece` per event loop iteration, so that
  busy relays take turns. While the window is full it does not read, and the kernel holds the job back.
* It writes what arrives on the stream to the socket at once. What the kernel does not take waits in `_backlog`, at most
  one window. Bytes count as consumed once the kernel has them, which holds the worker back.
* It gets a connection once that is established and known to be the job's. On loopback that is mostly so when connect(2)
  returns (`Runner.connect_at_once`). Else its owner waits in a greenlet, and what arrives meanwhile is the backlog.
* A job that dies closes its connections without meaning to. The relay then resets the stream instead of ending it, or
  a response that ends with the connection would look complete.
* If the stream is reset before the job has read all of the request, the relay resets the connection. Otherwise the job
  would learn of it only after it has read all of that.
* If the job closes the connection while its response is still unread in the kernel, the relay delivers the response
  first. Until then it does not acknowledge what the job did not take, so the worker waits and reads the response.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
from collections import deque
from itertools import islice
from termios import TIOCOUTQ as SIOCOUTQ
from typing import Any, Protocol

from prouter.fabric.stream import Stream

__all__ = ["HttpRelay", "RelayOwner"]

log = logging.getLogger("prouter.agent.relays")

_READ, _WRITE = 1, 2
_SMALL = 64 * 1024
"""Bytes of a read as long as reads return less; then the stream's `piece`."""
_IN_ORDER = frozenset({"done", "idle"})
"""Reset codes of workers that have the whole response and do not need the connection any more."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER value with which close(2) resets the connection (socket(7))."""
_INT = bytes(4)
_PIECES = 64
"""Pieces of the backlog in one sendmsg(2)."""
_REFUSED = frozenset({errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK, errno.EACCES})
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})


class RelayOwner(Protocol):
    """What a relay may ask of the object that made it."""

    @property
    def loop(self) -> Any:
        """The gevent loop, for watchers."""

    def job_dies(self, relay: HttpRelay) -> bool:
        """Whether the job has closed the connection because it dies; then the owner ends the relay."""

    def forget(self, relay: HttpRelay) -> None:
        """Drop a relay that is over."""


class HttpRelay:
    """One stream's connection to its job; made by `Connections.open`.

    Attributes:
        job: the job's uid.
        stream: its stream.
    """

    takes_views = True

    __slots__ = (
        "_backlog",
        "_broken",
        "_ended",
        "_finished",
        "_lost",
        "_owner",
        "_reader",
        "_size",
        "_socket",
        "_writer",
        "confirmed",
        "job",
        "stream",
    )

    def __init__(self, owner: RelayOwner, job: str, stream: Stream) -> None:
        self.job = job
        self.stream = stream
        self.confirmed = False
        """Whether the connection is known to be established."""
        self._owner = owner
        self._socket: socket.socket | None = None
        self._reader: Any = None
        self._writer: Any = None
        self._backlog: deque[bytes | memoryview] | None = None
        self._size = _SMALL
        self._finished = False  # The worker sends nothing more.
        self._ended = False  # The job sends nothing more.
        self._broken: OSError | None = None  # Why the job takes nothing any more.
        self._lost = 0  # Bytes that the job did not take.

    def exhausted(self) -> bool:
        """Whether the job's side of the connection is open and all that the job has sent is relayed."""
        if self._socket is None or self._ended:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError as error:
            self._fail(self._broken or error)
        return False

    # -- connecting ---------------------------------------------------------------------------------------------

    def connected(self, sock: socket.socket) -> None:
        """Begin to relay: the connection is established, and the job's; or it has failed."""
        self._socket = sock
        self.confirmed = True
        self._reader = self._owner.loop.io(sock.fileno(), _READ)
        self._reader.start(self._readable)
        if self._backlog is not None:
            self._flush()
        elif self._finished:
            self._finish_sending()

    def not_connected(self, error: OSError) -> None:
        """Reset the stream: there is no connection."""
        self._fail(error)

    # -- from the job to the stream -----------------------------------------------------------------------------

    def _readable(self) -> None:
        stream = self.stream
        room = stream.ask_room()
        if room <= 0:
            self._reader.stop()
            return
        size = self._size
        try:
            data = self._socket.recv(size if size < room else room)  # type: ignore[union-attr]
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(self._broken or error)
            return
        if data:
            self._size = stream.piece if len(data) >= _SMALL else _SMALL
            stream.write(data)
        else:
            self._end_of_job()

    def _end_of_job(self) -> None:
        """Handle the end of what the job sends."""
        if self._broken is not None and not isinstance(self._broken, BrokenPipeError):
            self._fail(self._broken)
            return
        # After EPIPE the job has ended its side in order: else Linux would give ECONNRESET here.
        self._ended = True
        self._reader.stop()
        if not self._owner.job_dies(self):
            self.pass_end()

    def pass_end(self) -> None:
        """End the stream's direction from the job: the job has closed its side in order."""
        self.stream.close()
        self.stream.consume(self._lost)
        if self._finished and self._backlog is None:
            self._dispose()

    def on_writable(self) -> None:
        """See `StreamHandler`."""
        if self._reader is not None and not self._ended:
            self._reader.start(self._readable)

    # -- from the stream to the job -----------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        """See `StreamHandler`."""
        if self._backlog is not None:
            self._backlog.append(data)
            return
        if self._socket is None or self._broken is not None:
            self._hold(data)
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._break(error, len(data))
            return
        if sent:
            self.confirmed = True
            self.stream.consume(sent)
        if sent < len(data):
            self._backlog = deque((memoryview(data)[sent:],))
            self._watch_writable()

    def _hold(self, data: bytes) -> None:
        """Keep bytes while the connection is being made; drop them once it has ended."""
        if self._broken is not None:
            self._lose(len(data))
        elif not self.stream.closed:
            self._backlog = deque((data,))

    def on_finish(self) -> None:
        """See `StreamHandler`."""
        self._finished = True
        if self._backlog is None:
            self._finish_sending()

    def _flush(self) -> None:
        """Send as much of the backlog as the kernel takes."""
        backlog = self._backlog
        if backlog is None or self._socket is None:
            return
        try:
            sent = self._socket.sendmsg(list(islice(backlog, _PIECES)))
        except BlockingIOError:
            self._watch_writable()
            return
        except OSError as error:
            self._break(error, 0)
            return
        self.confirmed = True
        left = sent
        while backlog and left >= len(backlog[0]):
            left -= len(backlog.popleft())
        if backlog:
            backlog[0] = memoryview(backlog[0])[left:]
            self._watch_writable()
        else:
            self._backlog = None
            self._stop_writer()
        self.stream.consume(sent)
        if self._finished and self._backlog is None:
            self._finish_sending()

    def _watch_writable(self) -> None:
        if self._writer is None:
            self._writer = self._owner.loop.io(self._socket.fileno(), _WRITE)  # type: ignore[union-attr]
            self._writer.start(self._flush)

    def _stop_writer(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer.close()
            self._writer = None

    def _finish_sending(self) -> None:
        """Shut down the sending side: the worker has ended, and the kernel has all of its bytes."""
        if self._ended or self.stream.closed:
            self._dispose()
        elif self._socket is None or self._broken is not None:
            return
        elif not self.confirmed:
            self._backlog = deque()  # shutdown(2) would abort a connection that is still being made.
            self._flush()
        else:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                self._break(error, 0)

    # -- ends ---------------------------------------------------------------------------------------------------

    def _break(self, error: OSError, unsent: int) -> None:
        """Note that the job takes nothing more. Its response, and the reason, are still to be read."""
        if not self.confirmed and not isinstance(error, (ConnectionResetError, BrokenPipeError)):
            self._fail(error)
            return
        self._broken = error
        backlog, self._backlog = self._backlog, None
        self._stop_writer()
        self._lose(unsent + sum(map(len, backlog or ())))

    def _lose(self, size: int) -> None:
        """Drop bytes that the job does not take. They count as consumed only once its response was read."""
        self._lost += size
        if self._ended:
            if self._lost > self.stream.window:
                self._fail(self._broken or ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            else:
                self.stream.consume(size)

    def _fail(self, error: OSError) -> None:
        code = error.errno or 0
        if code in _REFUSED:
            self.end("refused", f"the job refused the connection: {error.strerror}")
        elif code in _EXHAUSTED:
            log.warning("event=relay_refused job=%s stream=%d error=%r", self.job, self.stream.sid, error.strerror)
            self.end("overloaded", f"the agent cannot connect to the job: {error.strerror}")
        elif code == errno.ETIMEDOUT and not self.confirmed:
            self.end("connect_timeout", "the job did not take the connection in time")
        else:
            self.end("job_reset", "the job reset the connection")

    def end(self, code: str, text: str) -> None:
        """Reset the stream and close the connection."""
        self.stream.reset(code, text)
        self._dispose()

    def on_reset(self, code: str, text: str) -> None:
        """See `StreamHandler`."""
        sock = self._socket
        if sock is not None and code not in _IN_ORDER and (self._backlog is not None or self._unsent()):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._dispose()

    def _unsent(self) -> bool:
        """Whether the job has not received all bytes yet (SIOCOUTQ, tcp(7))."""
        sock = self._socket
        return sock is not None and sock.family != socket.AF_UNIX and fcntl.ioctl(sock, SIOCOUTQ, _INT) != _INT

    def on_closed(self) -> None:
        """See `StreamHandler`."""
        self._dispose()

    def _dispose(self) -> None:
        """Close the connection. What still arrives on the stream is dropped. Idempotent."""
        self._stop_writer()
        if self._reader is not None:
            self._reader.stop()
            self._reader.close()
            self._reader = None
        self._backlog = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self.stream.closed:
            self.stream.handler = None
        self._owner.forget(self)
