"""A request's forwarded fields are read once, whoever needs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.messages.heads import RequestHead, parse_request

HEAD = parse_request(
    b"GET / HTTP/1.1\r\nHost: inner\r\nX-Forwarded-Host: pub\r\nX-Forwarded-Proto: https\r\n"
    b"X-Forwarded-For: 1.2.3.4\r\n\r\n"
)


class CountedHeaders(list[tuple[bytes, bytes]]):
    """Header fields that count how often somebody goes through them."""

    passes = 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        self.passes += 1
        return super().__iter__()


def counted() -> tuple[RequestHead, CountedHeaders]:
    headers = CountedHeaders(HEAD.headers)
    return HEAD._replace(headers=headers), headers


def test_a_trusted_proxys_fields_are_read_once() -> None:
    head, headers = counted()
    forwarded = Forwarded(head, Origin("127.0.0.1", 80, trusted=True))
    assert forwarded.public == forwarded.public == (b"https", b"pub", b"")
    assert forwarded.hosts == ("pub",)
    assert b"X-Forwarded-For: 1.2.3.4, 127.0.0.1\r\n" in forwarded.lines(b"/jobs/c/j/http")
    assert headers.passes == 1


@pytest.mark.parametrize("address", ["203.0.113.9", "::1", "unix"])
def test_a_clients_own_fields_are_not_read_at_all(address: str) -> None:
    head, headers = counted()
    forwarded = Forwarded(head, Origin(address, 80, trusted=False))
    assert forwarded.public == (b"http", b"inner", b"")
    assert forwarded.hosts == ("inner",)
    assert b"X-Forwarded-Host: inner\r\n" in forwarded.lines(b"")
    assert headers.passes == 0
