"""The agent's end of the connection to its keeper: it finds or starts a keeper, sends requests, receives events.

Waits block the calling greenlet only. Sources: unix(7) for the passing of descriptors, pidfd_open(2).
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket as plain_socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.event import AsyncResult
from gevent.lock import RLock

from prouter.keeper import __file__ as keeper_package
from prouter.keeper.wire import Decoder, encode
from prouter.processes.process_tree import MARK_VARIABLE

__all__ = ["KeeperClient", "KeeperLost", "KeeperRefusal"]

log = logging.getLogger("prouter.keeper")


class KeeperLost(Exception):
    """The keeper has ended, or was never reached; the text says how."""


class KeeperRefusal(Exception):
    """The keeper refuses a request.

    Attributes:
        code: ``start_failed``, ``unknown_job``, ``not_running``, ``conflict``, ``busy``, ``invalid`` or ``internal``.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class KeeperClient:
    """A connection to a keeper.

    Args:
        connection: connected to it.
        process: the keeper's process if this agent started it, to be awaited.
        on_event: called for each event, in the greenlet that reads; must not wait.
        on_lost: called in a greenlet of its own once the keeper is gone without having been told to.
    """

    def __init__(
        self,
        connection: socket.socket,
        process: subprocess.Popen[bytes] | None,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[KeeperClient], None],
    ) -> None:
        self._connection = connection
        self._process = process
        self._on_event = on_event
        self._on_lost = on_lost
        self._sending = RLock()
        self._pending: dict[int, AsyncResult[Any]] = {}
        self._number = 0
        self._lost: str | None = None
        self._closing = False
        self._reader = gevent.spawn(self._read)

    @classmethod
    def connect(
        cls,
        state_dir: Path,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[KeeperClient], None],
    ) -> KeeperClient | None:
        """Connect to the keeper of this state directory; None if none runs."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Through the directory's descriptor, because the path may be longer than a socket address holds.
            connection.connect(f"/proc/self/fd/{directory}/keeper.sock")
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        finally:
            os.close(directory)
        return cls(connection, None, on_event, on_lost)

    @classmethod
    def start(
        cls,
        state_dir: Path,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[KeeperClient], None],
        *,
        remove_leftovers: bool,
        cgroup: str,
        move: bool,
    ) -> KeeperClient:
        """Start a keeper. It answers once an earlier keeper has ended with all its processes.

        Args:
            remove_leftovers: whether the sandboxes of a dead predecessor go too.
            cgroup: the setting ``jobs.cgroup``.
            move: whether agent and keeper may be moved into a control group of their own.

        Raises:
            OSError: no process could be made.
        """
        ours, its = plain_socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        script = str(Path(keeper_package).with_name("__main__.py"))
        words = ("remove" if remove_leftovers else "keep", cgroup, "move" if move else "stay")
        with its:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", script, str(state_dir), str(its.fileno()), *words],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                # An agent that is itself a job would mark its keeper as a process of that job.
                env={name: os.environ[name] for name in (MARK_VARIABLE,) if name in os.environ},
                start_new_session=True,
            )
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=ours.detach())
        return cls(connection, process, on_event, on_lost)

    @property
    def lost(self) -> bool:
        """Whether the connection to the keeper is lost."""
        return self._lost is not None

    def hello(self, *, keep_for: float, timeout: float) -> dict[str, Any]:
        """Become the keeper's agent; send it this process's stdout and stderr, for jobs that use them.

        Returns:
            Its ``protocol``, ``pid`` and ``jobs``.

        Raises:
            KeeperLost, KeeperRefusal: code ``busy`` if another agent is connected.
        """
        outputs = [fd for fd in (1, 2) if _is_open(fd)]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", outputs))] if len(outputs) == 2 else []
        answer: dict[str, Any] = self._request("hello", {"keep_for": keep_for}, timeout, rights)
        return answer

    def request(self, op: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Send the keeper a request, and wait for the answer.

        Raises:
            KeeperLost: the keeper went away before it answered, or did not answer within `timeout` seconds.
            KeeperRefusal: the keeper does not do it.
            ValueError: the arguments are too large to send.
        """
        return self._request(op, arguments, timeout, [])

    def _request(self, op: str, arguments: dict[str, Any], timeout: float | None, rights: list[Any]) -> Any:
        self._number += 1
        number = self._number
        data = encode({"id": number, "op": op, **arguments})
        if self._lost is not None:
            raise KeeperLost(self._lost)
        answer = self._pending[number] = AsyncResult()
        try:
            # The keeper may have sent a refusal before it disconnected, which the reader has yet to read.
            with contextlib.suppress(ConnectionError), self._sending:
                sent = self._connection.sendmsg([data], rights) if rights else 0
                self._connection.sendall(data[sent:])
            return answer.get(timeout=timeout)
        except gevent.Timeout:
            raise KeeperLost(f"the keeper did not answer {op!r} within {timeout} s") from None
        finally:
            self._pending.pop(number, None)

    def close(self, *, wait: bool) -> None:
        """Disconnect.

        Args:
            wait: return once the keeper's process has ended.
        """
        self._closing = True
        self._reader.kill()
        self._connection.close()
        self._fail("the connection to the keeper was closed")
        if wait:
            self.reap()
        elif self._process is not None:
            self._process.returncode = (
                0  # The keeper lives on without this process, which must not warn that it did not wait for it.
            )

    def reap(self) -> None:
        """Wait for the end of the keeper's process, if this agent started it."""
        if self._process is None or self._process.returncode is not None:
            return
        while self._process.poll() is None:
            _wait_for_end(self._process.pid)

    def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := self._connection.recv(262144):
                for message in decoder.feed(data):
                    self._dispatch(message)
            reason = "the keeper has closed the connection"
        except (OSError, ValueError) as error:
            reason = f"the connection to the keeper broke: {error}"
        self._fail(reason)
        if not self._closing:
            gevent.spawn(self._on_lost, self)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" in message:
            answer = self._pending.pop(message["id"], None)
            if answer is None:
                return
            error = message.get("error")
            if error is None:
                answer.set(message["result"])
            else:
                answer.set_exception(KeeperRefusal(error["code"], error["text"]))
        elif message["event"] == "log":
            log.log(logging.getLevelName(message["level"].upper()), "%s", message["text"])
        elif message["event"] == "refused":
            self._fail_with(KeeperRefusal("busy", message["text"]))
        else:
            self._on_event(message)

    def _fail(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._fail_with(KeeperLost(self._lost))

    def _fail_with(self, error: Exception) -> None:
        pending, self._pending = self._pending, {}
        for answer in pending.values():
            answer.set_exception(error)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _wait_for_end(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        gevent.sleep(0.01)  # Linux has no pidfd_open(2) before 5.3.
        return
    try:
        socket.wait_read(fd)
    finally:
        os.close(fd)
