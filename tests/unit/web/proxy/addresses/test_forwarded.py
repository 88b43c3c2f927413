"""A request's forwarded fields are read once, whoever needs them."""

from __future__ import annotations

import time
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


def chain(fields: bytes) -> list[str]:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: inner\r\n" + fields + b"\r\n")
    return Forwarded(head, Origin("127.0.0.1", 80, trusted=True)).chain


@pytest.mark.parametrize(
    ("fields", "addresses"),
    [
        (b"", []),
        (b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8, [::1]:99\r\n", ["1.2.3.4", "5.6.7.8", "::1"]),
        (b'Forwarded: for=1.2.3.4;proto=http, for="[2001:db8::1]:80"\r\n', ["1.2.3.4", "2001:db8::1"]),
        (b'Forwarded: for="a, \\"b", for=1.2.3.4\r\n', ['a, "b', "1.2.3.4"]),
        # What a client claims must not swallow what a proxy appends, nor speak for it.
        (b'Forwarded: for="6.6.6.6\r\nForwarded: for=1.2.3.4\r\n', ["unknown", "1.2.3.4"]),
        (b'Forwarded: for=6.6.6.6;x="\r\nForwarded: for="1.2.3.4"\r\n', ["unknown", "1.2.3.4"]),
        (b"Forwarded: for=6.6.6.6;x=\\\r\nForwarded: for=1.2.3.4\r\n", ["6.6.6.6", "1.2.3.4"]),
        (b"Forwarded: for=6.6.6.6 for=7.7.7.7\r\nForwarded: host=x\r\n", ["unknown", "unknown"]),
    ],
)
def test_the_chain_of_addresses_ends_with_what_the_last_proxy_says(fields: bytes, addresses: list[str]) -> None:
    assert chain(fields) == addresses


@pytest.mark.parametrize("claim", [b'\\"', b'"', b";", b"a=", b"a=b;", b'"\\', b",", b'"",', b" ", b"a=b ;"])
def test_long_claims_take_no_time(claim: bytes) -> None:
    began = time.thread_time()
    for start in (b"", b'"', b'for="', b"a=b"):
        claims = start + claim * (60_000 // len(claim))
        head = parse_request(b"GET / HTTP/1.1\r\nHost: x\r\nForwarded: " + claims + b"\r\n\r\n")
        forwarded = Forwarded(head, Origin("127.0.0.1", 80, trusted=True))
        assert forwarded.hosts
        assert forwarded.chain is not None
        assert forwarded.lines(b"")
    assert time.thread_time() - began < 3
