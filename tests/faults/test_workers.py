"""Workers are killed, reloaded, added, taken away and recycled under load."""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.faults import clients
from tests.faults.load import Load
from tests.faults.stand import MIB, Amount, Stand
from tests.support.processes import Router, wait_until
from tests.support.raw_http import Raw


def worker_pids(router: Router) -> set[int]:
    """Pids of the workers that run."""
    parent = router.child("gunicorn")
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


def linked_workers(router: Router) -> set[int]:
    """Pids of the workers that run and have been linked to the broker."""
    linked = {int(pid) for pid in re.findall(r"prouter\.web\[(\d+)\] event=broker_linked", router.log.read_text())}
    return linked & worker_pids(router)


def ports_of(pid: int) -> set[int]:
    """Ports of the clients whose TCP connections the process holds."""
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # a living worker closes files meanwhile
            found = re.match(r"socket:\[(\d+)\]", os.readlink(entry.path))
            if found:
                inodes.add(found[1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[2].rpartition(":")[2], 16) for row in rows if row[9] in inodes}


@pytest.fixture
def websocket() -> Iterator[Callable[[Stand], ClientConnection]]:
    """``websocket(stand)``: a WebSocket to its echo; closed after the test."""
    with ExitStack() as stack:

        def open_one(it: Stand) -> ClientConnection:
            target = it.router.url.replace("http", "ws") + it.fast_job + "/http/ws"
            return stack.enter_context(connect(target, ping_interval=None, close_timeout=1))

        yield open_one


def echoes(socket: ClientConnection) -> bool:
    try:
        socket.send(b"still there?")
        return socket.recv(10) == b"still there?"
    except ConnectionClosed:
        return False


def test_a_killed_worker_breaks_its_own_connections_only(
    stand: Callable[..., Stand], load: Load, websocket: Callable[[Stand], ClientConnection]
) -> None:
    it = stand()
    sockets = [websocket(it) for _ in range(20)]
    hanging = [Raw(it.router.url) for _ in range(20)]
    for raw in hanging:
        raw.request("GET", f"{it.bytes_job}/http/hang")
    wait_until(lambda: it.open_connections() >= 20)
    killed = sorted(worker_pids(it.router))[0]
    theirs = ports_of(killed)
    assert theirs
    survivors = [s for s in sockets if s.socket.getsockname()[1] not in theirs]
    assert 0 < len(survivors) < len(sockets)
    kept = [raw for raw in hanging if raw.sock.getsockname()[1] not in theirs]
    os.kill(killed, signal.SIGKILL)
    started = time.monotonic()
    wait_until(lambda: it.open_connections() <= len(kept) + 1, 2, "the job's side of the broken connections closes")
    wait_until(lambda: len(linked_workers(it.router)) == 2, 10, "two workers work")
    back = time.monotonic() - started
    assert back <= 3, f"capacity was back after {back:.1f} s"
    assert {s for s in sockets if echoes(s)} == set(survivors)
    for raw in hanging:
        raw.sock.setblocking(False)
        if raw in kept:
            with pytest.raises(BlockingIOError):
                raw.sock.recv(1)
        raw.sock.close()
    load.add("small", clients.small_request(it.router.url, f"{it.fast_job}/http/", fresh=True), 2)
    load.started()
    load.finish()


def test_reload_growth_and_shrinkage_cost_no_request(stand: Callable[..., Stand], load: Load) -> None:
    it = stand(router={"control__drain_timeout": 20})
    small = f"{it.fast_job}/http/"
    load.add("fresh", clients.small_request(it.router.url, small, fresh=True), 2)
    load.add("kept", clients.small_request(it.router.url, small, fresh=False), 2)
    load.add("admin", clients.small_request(it.router.url, f"{it.fast_job}/info", fresh=False), 1)
    load.add("slow", clients.small_request(it.router.url, f"{it.bytes_job}/http/slow?ms=700", fresh=True), 2)
    it.transfers(load, Amount(size=4 * MIB, rate=2 * MIB))
    load.started()
    before = worker_pids(it.router)
    for number, wanted in ((signal.SIGHUP, 2), (signal.SIGTTIN, 3), (signal.SIGTTOU, 2)):
        os.kill(it.router.pid, number)
        fresh = number == signal.SIGHUP

        def settled(wanted: int = wanted, fresh: bool = fresh, old: set[int] = before) -> bool:
            now = worker_pids(it.router)
            return len(now) == wanted and linked_workers(it.router) == now and not (fresh and old & now)

        wait_until(settled, 30, f"{wanted} workers after {number!r}")
        before = worker_pids(it.router)
        load.started()
    load.finish()
    assert all(load.rounds().values()), load.rounds()


def test_workers_that_have_served_enough_are_replaced_without_losing_a_request(
    stand: Callable[..., Stand], load: Load
) -> None:
    it = stand(router={"control__max_requests": 200})
    small = f"{it.fast_job}/http/"
    load.add("fresh", clients.small_request(it.router.url, small, fresh=True), 2)
    load.add("kept", clients.small_request(it.router.url, small, fresh=False), 2)
    it.transfers(load, Amount(size=2 * MIB, rate=2 * MIB))
    load.started()
    first = worker_pids(it.router)
    wait_until(lambda: not first & worker_pids(it.router), 30, "both workers are replaced")
    load.started()
    load.finish()


def test_worn_workers_serve_until_others_do_while_websockets_keep_them(
    stand: Callable[..., Stand], websocket: Callable[[Stand], ClientConnection]
) -> None:
    it = stand(router={"control__max_requests": 40, "control__drain_timeout": 30})
    sockets = [websocket(it) for _ in range(8)]
    old = worker_pids(it.router)
    assert all(ports_of(pid) & {s.socket.getsockname()[1] for s in sockets} for pid in old)

    def replaced() -> bool:
        assert it.router.get(f"{it.fast_job}/http/", timeout=5).status_code == 200
        return len(linked_workers(it.router) - old) >= 2

    wait_until(replaced, 20, "others serve")
    assert old <= worker_pids(it.router)
    assert all(echoes(socket) for socket in sockets)


def test_requests_and_websockets_outlive_gunicorns_parent(
    stand: Callable[..., Stand], load: Load, websocket: Callable[[Stand], ClientConnection]
) -> None:
    it = stand(router={"control__drain_timeout": 20})
    sockets = [websocket(it) for _ in range(10)]
    load.add("download", clients.download(it.router.url, it.bytes_job, 4 * MIB, 2.0 * MIB), 4)
    load.started()
    parent, old = it.router.child("gunicorn"), worker_pids(it.router)
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: it.router.child("gunicorn") != parent, what="gunicorn is started again")
    wait_until(lambda: len(linked_workers(it.router) - old) == 2, what="there are new workers")
    wait_until(lambda: it.router.log.read_text().count("event=parent_gone") == 2, what="the old ones drain")
    assert all(map(echoes, sockets))
    load.finish()
    for socket in sockets:
        socket.close()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in old), what="the old workers end")


def test_a_worker_that_dies_while_others_drain_is_replaced_at_once(
    stand: Callable[..., Stand], websocket: Callable[[Stand], ClientConnection]
) -> None:
    it = stand(router={"control__drain_timeout": 30})
    sockets = [websocket(it) for _ in range(8)]
    old = worker_pids(it.router)
    os.kill(it.router.pid, signal.SIGHUP)
    wait_until(lambda: len(linked_workers(it.router) - old) == 2, 20, "new workers")
    killed = min(worker_pids(it.router) - old)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(linked_workers(it.router) - old - {killed}) == 2, 10, "the dead one is replaced")
    os.kill(it.router.pid, signal.SIGTTIN)
    wait_until(lambda: len(linked_workers(it.router) - old - {killed}) == 3, 10, "one more")
    assert old <= worker_pids(it.router)
    assert all(echoes(socket) for socket in sockets)


def test_no_worker_keeps_old_settings_because_a_new_one_dies(stand: Callable[..., Stand]) -> None:
    it = stand()
    old = worker_pids(it.router)
    os.kill(it.router.pid, signal.SIGHUP)
    killed = wait_until(lambda: worker_pids(it.router) - old, 20, "new workers").pop()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not worker_pids(it.router) & old, 20, "the old workers go")
    wait_until(lambda: len(linked_workers(it.router)) == 2, 20, "new ones serve")
    assert killed not in worker_pids(it.router)


def test_a_reload_leaves_idle_connections_for_one_more_request(stand: Callable[..., Stand]) -> None:
    it = stand(router={"control__drain_timeout": 30})
    with Raw(it.router.url) as idle:
        idle.request("GET", "/healthz")
        assert b"\r\nConnection: keep-alive\r\n" in idle.read_until(b'ok"}')
        old = worker_pids(it.router)
        os.kill(it.router.pid, signal.SIGHUP)
        wait_until(lambda: len(linked_workers(it.router) - old) == 2, 20, "new workers")
        wait_until(lambda: len(old & worker_pids(it.router)) == 1, 20, "the old worker without connections ends")
        assert select.select([idle.sock], [], [], 2) == ([], [], []), "it was closed"
        idle.request("GET", f"{it.fast_job}/http/")
        answer = idle.read_to_end()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
    wait_until(lambda: not old & worker_pids(it.router), 10, "the old workers end")


def test_requests_that_a_drain_cannot_wait_for_are_answered(stand: Callable[..., Stand]) -> None:
    it = stand(router={"control__drain_timeout": 1})
    requests = [
        ("POST", f"{it.sleeper}/wait", 0),
        ("GET", f"{it.bytes_job}/http/hang", 0),
        ("POST", f"{it.bytes_job}/http/check/1", 9),
    ]
    with ExitStack() as stack:
        pending = [stack.enter_context(Raw(it.router.url)) for _ in requests]
        for raw, (method, path, length) in zip(pending, requests, strict=True):
            raw.request(method, path, f"Content-Length: {length}\r\n" if method == "POST" else "")
        wait_until(lambda: it.metric("waits") == 1 and it.open_connections() >= 2)
        os.kill(it.router.pid, signal.SIGHUP)
        waited, asked, posted = (raw.read_to_end() for raw in pending)
    for answer in (waited, asked):
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b"\r\nRetry-After: 1\r\n" in answer
    assert posted.startswith(b"HTTP/1.1 504 "), posted  # the job has it, and nobody can say what it did


def test_open_websockets_of_a_reloaded_worker_are_served_until_the_drain_is_over(
    stand: Callable[..., Stand], websocket: Callable[[Stand], ClientConnection]
) -> None:
    it = stand(router={"control__drain_timeout": 4})
    socket = websocket(it)
    old = worker_pids(it.router)
    os.kill(it.router.pid, signal.SIGHUP)
    wait_until(lambda: len(linked_workers(it.router) - old) == 2, 20, "new workers")
    started = time.monotonic()
    while time.monotonic() - started < 2:
        assert echoes(socket)
    wait_until(lambda: not echoes(socket), 10, "the drain ends")
    wait_until(lambda: not old & worker_pids(it.router), 10, "the old workers end")
