"""Overload is answered fast, and what came and went leaves nothing behind."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from threading import Event

from websockets.sync.client import connect

from tests.faults import clients
from tests.faults.load import Gauge, Load
from tests.faults.measure import Sample, sample
from tests.faults.stand import MIB, Amount, Stand
from tests.support.processes import wait_until
from tests.support.raw_http import Raw

_GROWTH = 6 * MIB
"""Bytes a process may have more after thousands of requests: the allocator's own unrest."""
_CYCLES = 3
"""A leak grows in each of them; buffers that were used at the same time for the first time, in one."""


def test_connections_beyond_the_bound_are_refused_fast_and_the_others_served(stand: Callable[..., Stand]) -> None:
    it = stand(router={"workers": 1, "control__max_connections": 40})
    with ExitStack() as stack:
        busy = [stack.enter_context(Raw(it.router.url)) for _ in range(40)]
        for raw in busy:
            raw.request("GET", f"{it.fast_job}/http/bytes/{64 * MIB}")
            raw.read_until(b"\r\n\r\n")
        more = [stack.enter_context(Raw(it.router.url)) for _ in range(15)]
        began = time.monotonic()
        for raw in more:
            answer = raw.read_to_end()
            assert answer.startswith(b"HTTP/1.1 503 "), answer
            assert b"\r\nRetry-After: " in answer
        assert time.monotonic() - began < 2
        busy.pop().sock.close()
        wait_until(lambda: it.router.get(f"{it.fast_job}/http/").status_code == 200, 10)
        # Who says nothing has a place only as long as nobody else needs it.
        silent = stack.enter_context(Raw(it.router.url))
        wait_until(lambda: it.router.get(f"{it.fast_job}/http/").status_code == 200, 10)
        silent.read_to_end()
        for raw in busy:
            assert raw.read_exactly(1)


def test_workers_know_of_each_others_fast_streams(stand: Callable[..., Stand]) -> None:
    it = stand(router={"workers": 2})

    def seen() -> list[float]:
        """Fast streams as the broker counts them, as the workers do, and as each knows of the other."""
        text = it.router.get("/metrics").text
        names = ("broker_streams_fast", "worker_streams_fast", "worker_streams_fast_elsewhere")
        return [float(re.findall(rf"^prouter_{name} (\S+)$", text, re.MULTILINE)[0]) for name in names]

    stop = Event()

    def download() -> None:
        with Raw(it.router.url) as raw:
            raw.request("GET", f"{it.fast_job}/http/bytes/{1 << 40}")
            while not stop.is_set():
                raw.read_exactly(MIB)

    with ThreadPoolExecutor(4) as pool:
        downloads = [pool.submit(download) for _ in range(4)]
        try:
            wait_until(lambda: seen() == [4, 4, 4], 20)
        finally:
            stop.set()
        for done in downloads:
            done.result(20)
    wait_until(lambda: seen() == [0, 0, 0], 20)


def test_the_broker_stays_quick_under_load(stand: Callable[..., Stand], load: Load) -> None:
    it = stand()
    it.transfers(load, Amount(size=8 * MIB, rate=0))
    it.wait_everywhere(load, 100)
    creations = clients.Creations(it.router.url, it.agent.uid, it.marks)
    load.add("create", creations.one_round, 2)
    load.started()
    assert not load.stopping.wait(2)
    lag = it.metric("loop_lag_avg_seconds")
    assert lag < 0.05, lag
    load.stopping.set()
    it.end_waits(100)
    load.finish()


def test_requests_websockets_and_jobs_leave_nothing_behind(stand: Callable[..., Stand], load: Load) -> None:
    it = stand(router={"workers": 1})
    cycle(it, 0.3)
    before = settled(it, None)
    for _ in range(_CYCLES):
        cycle(it, 1.0)
        after = settled(it, before)
        assert after.sandboxes == before.sandboxes
        assert after.figures == before.figures
        for kind, count in before.descriptors.items():
            assert after.descriptors[kind] <= count + 2, (kind, count, after.descriptors[kind])
        grown = {kind: after.rss[kind] - size for kind, size in before.rss.items() if after.rss[kind] > size + _GROWTH}
        if not grown:
            return
        before = replace(before, rss=after.rss)
    raise AssertionError(f"memory grows in each cycle: {grown}")


def cycle(it: Stand, amount: float) -> None:
    """Open and drop things of every kind."""
    gauge = Gauge("cycle", Load().stopping)
    small = clients.small_request(it.router.url, f"{it.fast_job}/http/", fresh=False)
    fresh = clients.small_request(it.router.url, f"{it.fast_job}/http/", fresh=True)
    transfers = [clients.download(it.router.url, it.bytes_job, MIB), clients.upload(it.router.url, it.bytes_job, MIB)]
    files = clients.file_round_trip(it.router.url, it.bytes_job, MIB)
    creations = clients.Creations(it.router.url, it.agent.uid, it.marks)
    for _ in range(int(3000 * amount)):
        small(gauge)
    for _ in range(int(300 * amount)):
        fresh(gauge)
    for _ in range(int(20 * amount)):
        for one_round in (*transfers, files):
            one_round(gauge)
        creations.one_round(gauge)
    target = it.router.url.replace("http", "ws") + it.fast_job + "/http/ws"
    for number in range(int(150 * amount)):
        with connect(target, ping_interval=None) as socket:
            socket.send(b"hello")
            assert socket.recv() == b"hello"
            if number % 2:
                socket.socket.shutdown(2)  # dropped without a closing handshake
    for _ in range(int(100 * amount)):
        with Raw(it.router.url) as raw:
            raw.request("GET", f"{it.bytes_job}/http/pattern/1/{8 * MIB}")
            raw.read_exactly(1000)  # and leave in the middle of it


def settled(it: Stand, wanted: Sample | None) -> Sample:
    """What is held once everything that ends by itself has ended."""
    seen: list[Sample] = []

    def quiet() -> bool:
        seen.append(sample(it))
        if wanted is not None:
            same = seen[-1].figures == wanted.figures
            return same and all(seen[-1].descriptors[kind] <= n + 2 for kind, n in wanted.descriptors.items())
        return len(seen) > 3 and seen[-1].descriptors == seen[-4].descriptors and seen[-1].figures == seen[-4].figures

    wait_until(quiet, 20, "everything has ended")
    return seen[-1]
