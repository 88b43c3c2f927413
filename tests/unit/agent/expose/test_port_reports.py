"""The endpoint at which jobs report their ports."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest

from prouter.agent.expose.endpoint import PATH, PortEndpoint
from prouter.errors import InvalidRequest, NotFound


@pytest.fixture
def endpoint() -> Iterator[PortEndpoint]:
    def report(uid: str, port: int, key: str) -> None:
        if uid != "known":
            raise NotFound(f"job '{uid}' is not found")
        if port == 1:
            raise InvalidRequest("the job is not waiting for a port")

    endpoint = PortEndpoint(report)
    endpoint.open()
    yield endpoint
    endpoint.close()


def ask(endpoint: PortEndpoint, target: str) -> tuple[int, str]:
    port = int(endpoint.url("k").split(":")[2].split("/")[0])
    connection = gevent.socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
    answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    connection.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("?job_id=known&port=8000", 200, "OK"),
        ("?port=8000&job_id=known&more=x", 200, "OK"),
        ("?job_id=known&port=1", 400, "not waiting"),
        ("?job_id=other&port=8000", 400, "job 'other' is not found"),
        ("?port=8000", 400, "job_id is missing"),
        ("?job_id=known", 400, "port must be a number"),
        ("?job_id=known&port=0", 400, "port must be a number"),
        ("?job_id=known&port=65536", 400, "port must be a number"),
        ("?job_id=known&port=-8000", 400, "port must be a number"),
        ("?job_id=known&port=%D9%A1", 400, "port must be a number"),
        ("", 400, "job_id is missing"),
    ],
)
def test_ports_are_reported_by_http(endpoint: PortEndpoint, query: str, status: int, text: str) -> None:
    found = ask(endpoint, PATH + query)
    assert found[0] == status
    assert text in found[1]


def test_the_endpoint_keeps_its_port_if_it_can() -> None:
    first = PortEndpoint(lambda uid, port, key: None)
    port = first.open()
    second = PortEndpoint(lambda uid, port, key: None)
    try:
        assert second.open(port) != port
        first.close()
        second.close()
        assert second.open(port) == port
    finally:
        first.close()
        second.close()
