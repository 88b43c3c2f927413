"""Fixtures of the tests of jobs' servers: exposures, and HTTP servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer

from prouter.agent.expose.exposure import Exposure
from prouter.agent.expose.ports import reserve
from prouter.runners.local.servers import connected
from tests.support.exposures import BASE, Application, plan, port_of


@pytest.fixture
def exposure(tmp_path: Path) -> Iterator[Callable[..., Exposure]]:
    made: list[Exposure] = []

    def make(**body: Any) -> Exposure:
        resolved = plan(**body)
        port = reserve() if resolved.port == "assign" else None
        place = tmp_path / "s" if resolved.port == "unix" else None
        made.append(Exposure(resolved, base_url=BASE, sandbox=tmp_path, connect=connected, port=port, socket=place))
        return made[-1]

    yield make
    for one in made:
        one.release()


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    servers: list[Any] = []

    def start(application: Application, port: int = 0, host: str = "127.0.0.1") -> int:
        servers.append(WSGIServer((host, port), application, log=None))
        servers[-1].start()
        return port_of(servers[-1])

    yield start
    for server in servers:
        server.stop(timeout=0)
