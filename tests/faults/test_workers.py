"""Workers are killed, reloaded, added, taken away and recycled under load."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
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
    linked = {int(pid) for pid in re.findall(r"prouter\.api\[(\d+)\] event=broker_linked", router.log.read_text())}
    return linked & worker_pids(router)


def ports_of(pid: int) -> set[int]:
    """Ports of the clients whose TCP connections the process holds."""
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
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
