"""systemd's watchdog, played by a socket: it hears from a router as long as that answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.peak_memory import descendants
from tests.support.processes import Process, wait_until

ALIVE = b"WATCHDOG=1"
Start = Callable[..., Process]


@pytest.fixture
def manager(work_dir: Path) -> Iterator[socket.socket]:
    """Where a service manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(work_dir / "notify"))
        manager.settimeout(30)
        yield manager


@pytest.fixture
def start(work_dir: Path, manager: socket.socket) -> Iterator[Start]:
    """``start(command, WATCHDOG_USEC=…)``: a command of prouter that is watched; ended after the test."""
    started: list[Process] = []

    def begin(command: str, **environment: str) -> Process:
        sets = (f"state.dir={work_dir / 's'}", f"state.run_dir={work_dir / 'r'}", "control.port=0", "server.port=0")
        words = [sys.executable, "-m", "prouter", command, *(word for one in sets for word in ("--set", one))]
        environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_PID": "", **environment}
        started.append(Process(words, work_dir / f"{command}.log", environment))
        return started[-1]

    yield begin
    for process in started:
        process.stop()


def _hears(manager: socket.socket, expected: bytes) -> None:
    """Wait until the service manager is told this; what else it is told does not matter."""
    while manager.recv(100) != expected:
        continue


def _hears_nothing(manager: socket.socket, seconds: float) -> None:
    """Skip what was told before, and check that nothing follows for so long."""
    manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while manager.recv(100):
            continue
    manager.settimeout(seconds)
    with pytest.raises(TimeoutError):
        manager.recv(100)
    manager.settimeout(30)


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.mark.parametrize("who", ["prouter broker", "gunicorn"])
def test_nothing_is_told_while_broker_or_workers_do_not_answer(start: Start, manager: socket.socket, who: str) -> None:
    process = start("up", WATCHDOG_USEC="800000")
    _hears(manager, b"READY=1")
    for _ in range(3):
        _hears(manager, ALIVE)
    stopped = [pid for pid in descendants(process.popen.pid)[1:] if who in _command_line(pid)]
    assert stopped
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: "event=no_answer" in process.log_end())
    _hears_nothing(manager, 3)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    _hears(manager, ALIVE)
    wait_until(lambda: "event=answers_again" in process.log_end())
    process.popen.terminate()
    _hears(manager, b"STOPPING=1")


def test_the_broker_alone_tells_that_its_loop_runs(start: Start, manager: socket.socket) -> None:
    process = start("broker", WATCHDOG_USEC="800000")
    for _ in range(3):
        _hears(manager, ALIVE)
    process.popen.send_signal(signal.SIGSTOP)
    _hears_nothing(manager, 1)
    process.popen.send_signal(signal.SIGCONT)
    _hears(manager, ALIVE)


def test_nothing_is_told_of_a_router_that_is_not_watched(start: Start, manager: socket.socket) -> None:
    start("up", WATCHDOG_USEC="400000", WATCHDOG_PID="1")
    assert manager.recv(100) == b"READY=1"
    _hears_nothing(manager, 1)
