"""Cables pulled, half-open connections, other addresses, packets lost, late, out of order or twice: real networks made
with network namespaces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import clients
from tests.faults.load import Load
from tests.faults.network import Cable, why_no_namespaces
from tests.faults.packets import Impaired, Impairment, why_no_packets
from tests.faults.stand import MIB, Amount, Stand
from tests.support.processes import start_agent, start_router, wait_until

_WHY_NOT = why_no_namespaces()
pytestmark = pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT)

Launch = Callable[..., Any]
TOKEN = "a token for the test"
CUT = 10.0
"""Seconds without network."""


@pytest.fixture
def cable(request: pytest.FixtureRequest) -> Iterator[Cable]:
    """An agent's network, gone after the test; impaired as the test's parameter says."""
    impairment: Impairment | None = getattr(request, "param", None)
    if impairment is not None and why_no_packets():
        pytest.skip(why_no_packets())
    with Cable() if impairment is None else Impaired(impairment) as made:
        yield made


@pytest.fixture
def apart(launch: Launch, cable: Cable, work_dir: Path) -> Callable[..., Stand]:
    """``apart(router={…}, agent={…})``: a router, an agent at the other end of the cable, and running jobs."""

    def make(router: dict[str, Any] | None = None, agent: dict[str, Any] | None = None) -> Stand:
        about = {
            "control__drain_timeout": 1,
            "server__interface": cable.host,
            "server__accept_tokens": [TOKEN],
            **(router or {}),
        }
        started = launch(start_router, **about)
        link = {"client__token": TOKEN, "client__router_key": started.key_file}  # beyond loopback links are encrypted
        theirs = launch(start_agent, started, prefix=cable.prefix, **{**link, **(agent or {})})
        it = Stand(started, theirs, work_dir / "marks")
        it.serve()
        return it

    return make


def up(it: Stand) -> bool:
    """Whether the agent's connection is shown as up."""
    found = it.router.get("/connections").json()["connections"]
    return bool(found and found[0]["up"])


def test_everything_goes_on_after_ten_seconds_without_network(
    apart: Callable[..., Stand], cable: Cable, load: Load
) -> None:
    it = apart()
    amount = Amount(size=8 * MIB, rate=4 * MIB, waits=10, websockets=20)
    it.everything(load, amount)
    load.started()
    cable.cut()
    began = time.monotonic()
    wait_until(lambda: not up(it), 9, "the agent is seen as away")
    load.check()
    assert not load.stopping.wait(CUT - (time.monotonic() - began))
    load.watch()
    cable.repair()
    load.started()
    pauses = load.pauses()
    assert max(pauses.values()) <= 3, pauses
    it.end_waits(amount.waits)
    load.finish()
    it.assert_nothing_left()


def test_a_cut_past_the_resume_timeout_ends_streams_at_both_ends_but_no_job(
    apart: Callable[..., Stand], cable: Cable, load: Load
) -> None:
    short = {"fabric__resume_timeout": 2.0}
    it = apart(
        router={"server__heartbeat": 0.5, "control__hold": 1, **short}, agent={"fabric__heartbeat": 0.5, **short}
    )
    it.transfers(load, Amount(size=16 * MIB, rate=2 * MIB))
    load.started()
    cable.cut()
    wait_until(lambda: len(load.errors) == len(load.gauges), 10, "streams are given up")
    answer = it.router.get(it.bytes_job + "/http/")
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    cable.repair()
    wait_until(lambda: up(it), 10, "the agent is back")
    assert it.router.get(it.bytes_job + "/http/").text == "hello"
    wait_until(lambda: it.open_connections() <= 2, 5, "the job's side of the lost streams is closed")
    assert it.router.get(it.bytes_job + "/info").json()["state"] == "RUNNING"


def test_a_connection_that_works_one_way_only_is_replaced(
    apart: Callable[..., Stand], cable: Cable, load: Load
) -> None:
    it = apart(router={"server__heartbeat": 0.5}, agent={"fabric__heartbeat": 0.5})
    it.transfers(load, Amount(size=4 * MIB, rate=4 * MIB))
    it.echoes_and_logs(load, 5)
    load.started()
    cable.cut_one_way()
    wait_until(lambda: not up(it), 5, "the agent is seen as away")
    cable.repair()
    load.started()
    load.finish()


def test_an_agent_with_another_address_goes_on_where_it_was(
    apart: Callable[..., Stand], cable: Cable, load: Load
) -> None:
    it = apart(router={"server__heartbeat": 0.5}, agent={"fabric__heartbeat": 0.5})
    it.transfers(load, Amount(size=8 * MIB, rate=4 * MIB))
    it.echoes_and_logs(load, 5)
    load.started()
    before = it.router.get("/connections").json()["connections"][0]["uid"]
    cable.change_address()
    load.started()
    load.finish()
    assert it.router.get("/connections").json()["connections"][0]["uid"] == before


def test_one_packet_in_ten_may_get_lost(apart: Callable[..., Stand], cable: Cable, load: Load) -> None:
    it = apart()
    cable.lose(10)
    url, size = it.router.url, 256 * 1024
    load.add("download", clients.download(url, it.bytes_job, size))
    load.add("upload", clients.upload(url, it.bytes_job, size))
    load.add("file", clients.file_round_trip(url, it.bytes_job, size // 4))
    it.echoes_and_logs(load, 5)
    load.started(60)
    load.finish(90)


IMPAIRED = {
    "out of order and twice": Impairment(delay=0.005, jitter=0.02, twice=0.05, loss=0.01),
    "200 ms": Impairment(delay=0.2, jitter=0.02),
    "1 Mbit/s": Impairment(rate=125_000, delay=0.01),
}


@pytest.mark.parametrize("cable", IMPAIRED.values(), ids=IMPAIRED, indirect=True)
def test_what_happens_to_packets_costs_nothing_but_time(
    apart: Callable[..., Stand], cable: Impaired, load: Load
) -> None:
    it = apart()
    url, size = it.router.url, 128 * 1024
    load.add("download", clients.download(url, it.bytes_job, size))
    load.add("upload", clients.upload(url, it.bytes_job, size))
    load.add("file", clients.file_round_trip(url, it.bytes_job, size // 4))
    it.echoes_and_logs(load, 3)
    load.started(60)
    load.finish(90)
    assert cable.overtaken or not cable.impairment.jitter
    assert it.router.log.read_text().count("event=link_down") == 0


def test_a_router_that_is_killed_while_the_network_is_away_resumes_with_it(
    apart: Callable[..., Stand], cable: Cable, load: Load
) -> None:
    it = apart(router={"server__heartbeat": 0.5}, agent={"fabric__heartbeat": 0.5})
    it.transfers(load, Amount(size=4 * MIB, rate=4 * MIB))
    load.started()
    cable.cut()
    it.router.kill_broker()
    wait_until(lambda: it.router.child("broker") != it.broker)
    wait_until(lambda: not up(it), 10)
    cable.repair()
    load.started()
    load.finish()
