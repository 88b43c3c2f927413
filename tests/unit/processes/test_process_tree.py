"""Process trees as seen through /proc: descent, marks, safe signals, listening sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from prouter.processes import halting, limits, process_tree
from prouter.processes.limits import Limits, Sample
from prouter.processes.process_tree import Process
from prouter.runners.local.listening_sockets import listening
from tests.support.processes import wait_until


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for a condition of processes, which give no notice."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        os.sched_yield()


def alive(pid: int) -> bool:
    process = process_tree.read_process(pid)
    return process is not None and process.alive


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            argv, stdout=subprocess.PIPE, start_new_session=True, **options
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for member in process_tree.descend([process.pid]):
            process_tree.send(member, signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_reads_a_process_whose_name_holds_spaces_and_parentheses(tmp_path: Path, start: Callable[..., object]) -> None:
    program = tmp_path / ") S 1 (x"
    program.symlink_to("/bin/sleep")
    process = start(str(program), "60")
    found = process_tree.read_process(process.pid)  # type: ignore[attr-defined]
    assert found is not None
    assert (found.parent, found.session) == (os.getpid(), found.pid)


def test_read_of_a_pid_without_process_gives_none() -> None:
    assert process_tree.read_process(2**22 + 1) is None


def test_descend_gives_grandchildren_after_their_parents(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    first = start("sh", "-c", "sh -c 'sleep 60 & wait' & wait")
    until(lambda: len(process_tree.descend([first.pid])) == 3)
    tree = process_tree.descend([first.pid])
    assert tree[0].pid == first.pid
    assert [process.parent for process in tree[1:]] == [process.pid for process in tree[:-1]]


def test_children_by_file_and_by_scan_agree(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    first = start("sh", "-c", "sleep 60 & sleep 60 & wait")
    until(lambda: len(process_tree._children_by_scan(first.pid)) == 2)
    assert sorted(process_tree._children_by_file(first.pid)) == sorted(process_tree._children_by_scan(first.pid))


def test_zombie_is_not_alive_until_its_last_thread_has_ended(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    code = (
        "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start();"
        "print(flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    process = start(sys.executable, "-c", code)
    assert process.stdout is not None
    process.stdout.readline()

    def state() -> str:
        found = process_tree.read_process(process.pid)
        assert found is not None
        return found.state

    until(lambda: state() == "Z")
    assert alive(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(process.pid)


def test_signal_reaches_the_process(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = start("sleep", "60")
    found = process_tree.read_process(process.pid)
    assert found is not None
    assert process_tree.send(found, signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM


@pytest.mark.parametrize("send", [process_tree.send, process_tree._send_by_pid])
def test_signal_never_reaches_another_process_with_the_same_pid(
    start: Callable[..., subprocess.Popen[bytes]], send: Callable[[Process, int], bool]
) -> None:
    process = start("sleep", "60")
    found = process_tree.read_process(process.pid)
    assert found is not None
    assert not send(found._replace(start=found.start - 1), signal.SIGKILL)
    assert alive(process.pid)


def test_limit_mark_survives_a_wiped_environment(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = token_hex(16)
    process = start("env", "-i", "/bin/sleep", "60", preexec_fn=lambda: limits.apply(Limits(), job))
    assert process_tree.limit_mark(process.pid) == process_tree.mark_value(job)
    assert process_tree._limit_from_proc(process.pid) == process_tree.mark_value(job)


def test_ordinary_process_has_no_mark() -> None:
    assert process_tree.limit_mark(os.getpid()) is None
    assert process_tree.environment_mark(2**22 + 1) is None


def test_environment_mark_is_not_taken_from_a_longer_name(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = token_hex(16)
    other = start("sleep", "60", env={"X_PROUTER_JOB_ID": job})
    marked = start("sleep", "60", env={"A": "1", "PROUTER_JOB_ID": job, "B": "2"})
    wait_until(lambda: process_tree.environment_mark(marked.pid) == job)
    assert process_tree.environment_mark(other.pid) is None


@pytest.mark.parametrize("uid", ["", "job", "0x0000000000000000", "../" + "a" * 29, "A" * 32])
def test_mark_needs_a_hexadecimal_uid(uid: str) -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        process_tree.mark_value(uid)


def test_end_marked_ends_only_the_marked_with_their_descendants(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    job, other = token_hex(16), token_hex(16)
    # The first has neither mark by itself: its child is found as a descendant of the second.
    marked = start("sh", "-c", "env -i sleep 60 & wait", env={**os.environ, "PROUTER_JOB_ID": job})
    limited = start("env", "-i", "/bin/sleep", "60", preexec_fn=lambda: limits.apply(Limits(), job))
    spared = start("sleep", "60", env={**os.environ, "PROUTER_JOB_ID": other})
    until(lambda: len(process_tree.descend([marked.pid])) == 2)
    tree = process_tree.descend([marked.pid])
    assert halting.end_marked([job], patience=5) == []
    assert not any(alive(process.pid) for process in tree)
    assert not alive(limited.pid)
    assert alive(spared.pid)


def test_memory_of_a_process_counts_its_pages(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = start(sys.executable, "-c", "x = b'x' * (64 << 20); print(flush=True); input()", stdin=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert process_tree.rss_bytes(process.pid) > 64 << 20
    assert 64 << 20 < process_tree.pss_bytes(process.pid) <= process_tree.rss_bytes(process.pid)
    process.stdin.close()  # type: ignore[union-attr]


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert process_tree.rss_bytes(2**22 + 1) == process_tree.pss_bytes(2**22 + 1) == 0


def test_listening_finds_tcp_and_unix_sockets_of_the_given_processes_only(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket() as bound,
        socket.create_connection(four.getsockname()),
    ):
        path = str(tmp_path / "a socket")
        local.bind(path)
        local.listen()
        name = token_hex(8)
        abstract.bind(f"\0{name}")
        abstract.listen()
        bound.bind(("127.0.0.1", 0))
        found = {(listener.family, listener.host, listener.port) for listener in listening([os.getpid()])}
        assert ("ipv4", "127.0.0.1", four.getsockname()[1]) in found
        assert ("unix", path, 0) in found
        assert ("unix", f"@{name}", 0) in found
        assert bound.getsockname()[1] not in {port for _, _, port in found}
    assert four.fileno() == -1
    assert ("unix", path, 0) not in {listener[:3] for listener in listening([os.getpid()])}


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_listening_finds_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        found = {listener[:3] for listener in listening([os.getpid()])}
        assert ("ipv6", "::1", server.getsockname()[1]) in found


def test_listening_of_processes_that_are_gone_is_empty() -> None:
    assert listening([2**22 + 1]) == []


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (Limits(memory=99), "memory"),
        (Limits(cpu_seconds=1.0), "cpu"),
        (Limits(processes=2), "processes"),
        (Limits(memory=100, cpu_seconds=1.1, processes=3), None),
        (Limits(), None),
    ],
)
def test_breach_names_the_limit_that_is_exceeded(limit: Limits, reason: str | None) -> None:
    assert limits.breach(limit, Sample(cpu_seconds=1.0, rss_bytes=100, processes=3)) == reason


def test_trees_near_their_limit_are_looked_at_more_often() -> None:
    calm = limits.interval(Limits(memory=1000), Sample(0.0, 100, 1))
    assert limits.interval(Limits(memory=1000), Sample(0.0, 900, 1)) < calm
    assert limits.interval(Limits(processes=10), Sample(0.0, 0, 9)) < calm
    assert limits.interval(Limits(cpu_seconds=9.0), Sample(8.5, 0, 1)) < calm


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_user_of_a_process_is_known_if_it_forbids_inspection() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(64998, 64998, 64998)  # Which forbids it until something is executed.
        os.write(write, b".")
        signal.pause()
        os._exit(0)
    try:
        os.read(read, 1)
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
        assert process_tree.effective_uid(pid) == 64998
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
        assert process_tree.effective_uid(pid) == 64998
    finally:
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
    assert process_tree.effective_uid(pid) is None
