"""Requests that come back to the router are refused, whatever is in between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.raw_http import Raw, exchange

RELAY = Path(__file__).parent.parent / "jobs" / "tcp_relay.py"
NGINX = """
daemon off; pid {place}/pid; error_log {place}/log; events {{}}
http {{
  access_log off;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; proxy_set_header Host $http_host; }} }}
}}
"""


def lead_to(router: Router, agent: Agent, port: int, path: str) -> str:
    """A job that leads to whatever listens on a port; its path."""
    job = router.create(agent.uid, "leads elsewhere")
    router.start(job, [sys.executable, str(RELAY), str(port)], expose={"port": "assign", "path": path})
    return job


def port_of(router: Router) -> int:
    return int(router.url.rpartition(":")[2])


@pytest.fixture
def nginx(router: Router, work_dir: Path) -> Iterator[int]:
    """nginx before the router; its port."""
    port = free_port()
    (work_dir / "conf").write_text(NGINX.format(place=work_dir, port=port, upstream=router.url))
    process = subprocess.Popen(["nginx", "-c", work_dir / "conf", "-e", work_dir / "log"])
    try:
        wait_until(lambda: (work_dir / "pid").exists(), what="nginx")
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("path", ["keep", "strip"])
@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
def test_a_job_that_leads_to_its_router_is_a_loop(router: Router, agent: Agent, path: str, method: str) -> None:
    job = lead_to(router, agent, port_of(router), path)
    below = f"{job}/http{job}/http/x" if path == "strip" else f"{job}/http/x"
    answer, cut = exchange(router.url, method, below, "Content-Length: 2\r\n", b"ok")
    assert answer.startswith(b"HTTP/1.1 508 Loop Detected\r\n")
    assert not cut
    assert b'"code": "loop_detected"' in answer


def test_the_api_is_not_reached_through_a_job(router: Router, agent: Agent) -> None:
    job = lead_to(router, agent, port_of(router), "strip")
    assert router.get(f"{job}/http/info").status_code == 508


def test_an_upgrade_that_comes_back_is_a_loop(router: Router, agent: Agent) -> None:
    job = lead_to(router, agent, port_of(router), "keep")
    with Raw(router.url) as raw:
        raw.request("GET", f"{job}/http/ws", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 508 ")


def test_a_loop_through_another_proxy_is_found(router: Router, agent: Agent, nginx: int) -> None:
    job = lead_to(router, agent, nginx, "keep")
    assert router.get(f"{job}/http/x").status_code == 508


def test_routers_may_be_chained_but_not_in_a_ring(
    router: Router, agent: Agent, jobs: Path, launch: Callable[..., Any]
) -> None:
    second: Router = launch(start_router)
    second_agent: Agent = launch(start_agent, second)
    app = second.serve(second_agent.uid, jobs / "prefix_server.py")
    onward = lead_to(router, agent, port_of(second), "strip")
    found = router.get(f"{onward}/http{app}/http/deep").json()
    assert found["path"] == "/deep"
    first, last = found["headers"]["x-prouter-via"].split(", ")
    assert first != last
    assert "via" not in found["headers"], "servers compress nothing for requests with Via"
    back = lead_to(second, second_agent, port_of(router), "strip")
    answer = router.get(f"{onward}/http{back}/http{onward}/http/x")
    assert (answer.status_code, answer.json()["code"]) == (508, "loop_detected")


def test_the_same_job_through_another_worker_has_the_same_mark(router: Router, agent: Agent, jobs: Path) -> None:
    app = router.serve(agent.uid, jobs / "prefix_server.py")
    seen = {router.get(f"{app}/http/").json()["headers"]["x-prouter-via"] for _ in range(20)}
    assert len(seen) == 1
    assert router.get(f"{app}/http/", headers={"X-PRouter-Via": "other"}).status_code == 200
    assert router.get(f"{app}/http/", headers={"X-PRouter-Via": f"a, {seen.pop()}"}).status_code == 508
