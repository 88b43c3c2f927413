"""Slow, late, deaf and broken connections between agent and router, made by a TCP proxy: no privileges needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults import clients
from tests.faults.load import Load
from tests.faults.network import Wire
from tests.faults.pattern import Checker
from tests.faults.stand import MIB, Amount, Stand
from tests.support.processes import start_agent, start_router, wait_until
from tests.support.raw_http import Raw

Launch = Callable[..., Any]
Wired = Callable[..., tuple[Stand, Wire]]


@pytest.fixture
def wired(launch: Launch, work_dir: Path) -> Iterator[Wired]:
    """``wired(router={…}, agent={…})``: a router, an agent at the other end of a wire, and running jobs."""
    with ExitStack() as stack:

        def make(router: dict[str, Any] | None = None, agent: dict[str, Any] | None = None) -> tuple[Stand, Wire]:
            started = launch(start_router, **{"control__drain_timeout": 1, **(router or {})})
            wire = stack.enter_context(Wire(started.agents))
            it = Stand(started, launch(start_agent, wire.address, **(agent or {})), work_dir / "marks")
            it.serve()
            return it, wire

        yield make


def link_events(it: Stand) -> int:
    """How often the agent was linked or lost."""
    log = it.router.log.read_text()
    return log.count("event=link_up") + log.count("event=link_down")


def test_everything_goes_on_after_connections_were_reset_and_refused(wired: Wired, load: Load) -> None:
    it, wire = wired()
    amount = Amount(size=8 * MIB, rate=4 * MIB, waits=5, websockets=10)
    it.everything(load, amount)
    load.started()
    wire.refuse()
    assert not load.stopping.wait(8)
    load.check()
    load.watch()
    wire.accept()
    load.started()
    pauses = load.pauses()
    assert max(pauses.values()) <= 3, pauses
    it.end_waits(amount.waits)
    load.finish()
    it.assert_nothing_left()


def test_connections_that_are_reset_every_now_and_then_cost_nothing_but_time(wired: Wired, load: Load) -> None:
    it, wire = wired()
    it.transfers(load, Amount(size=4 * MIB, rate=4 * MIB))
    it.echoes_and_logs(load, 10)
    load.started()
    for _ in range(5):
        wire.cut()
        load.started()
    load.finish()


def test_a_connection_that_swallows_everything_is_replaced(wired: Wired, load: Load) -> None:
    it, wire = wired(router={"server__heartbeat": 0.5}, agent={"fabric__heartbeat": 0.5})
    it.transfers(load, Amount(size=4 * MIB, rate=4 * MIB))
    it.echoes_and_logs(load, 5)
    load.started()
    wire.holes = True
    wait_until(lambda: "event=link_down" in it.router.log.read_text(), 5, "the agent is seen as away")
    wire.holes = False
    load.started()
    load.finish()


def test_a_slow_link_is_not_mistaken_for_a_dead_one(wired: Wired, load: Load) -> None:
    """A link of 750 kbit/s with the usual heartbeat, four times as fast: 3 Mbit/s with a fourth of the heartbeat."""
    it, wire = wired(router={"server__heartbeat": 0.5}, agent={"fabric__heartbeat": 0.5})
    before = link_events(it)
    wire.rate = 3_000_000 / 8
    url = it.router.url
    load.add("download", clients.download(url, it.bytes_job, MIB), 3)
    load.add("upload", clients.upload(url, it.bytes_job, MIB), 3)
    load.add("websocket", clients.echo(url, it.fast_job), 2)
    assert not load.stopping.wait(1)
    load.finish(60)
    # A wire that itself stands still for long, on a busy machine, is a dead one.
    assert link_events(it) == before or wire.late > 0.75, f"the wire was {wire.late:.2f} s late"


def test_a_transfer_that_was_fast_survives_its_link_becoming_slow(wired: Wired) -> None:
    """Pieces as large as a fast stream's take longer on the slow link than a peer may be silent."""
    it, wire = wired(router={"server__heartbeat": 0.3}, agent={"fabric__heartbeat": 0.3})
    fast, size = 48 * MIB, 56 * MIB
    checker = Checker(7)
    with Raw(it.router.url, 30) as raw:
        raw.request("GET", f"{it.bytes_job}/http/pattern/7/{size}")
        raw.read_until(b"\r\n\r\n")
        while checker.position < fast:
            checker.feed(raw.read_exactly(65536))
        wire.rate = 800_000
        while checker.position < size:
            checker.feed(raw.read_exactly(65536))


def test_two_hundred_milliseconds_of_delay_leave_transfers_fast_enough(wired: Wired, load: Load) -> None:
    it, wire = wired()
    before = link_events(it)
    wire.delay, wire.jitter = 0.1, 0.02  # each way
    size, url = 8 * MIB, it.router.url
    began = time.monotonic()
    load.add("download", clients.download(url, it.bytes_job, size))
    load.add("upload", clients.upload(url, it.bytes_job, size))
    load.add("file", clients.file_round_trip(url, it.bytes_job, MIB))
    it.echoes_and_logs(load, 5)
    load.started()
    wait_until(lambda: load.rounds()["download"] and load.rounds()["upload"], 20, "8 MiB both ways")
    assert time.monotonic() - began < 15
    load.finish()
    assert link_events(it) == before
