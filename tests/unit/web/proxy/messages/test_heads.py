"""Parsing heads: what passes is exactly what was sent, ambiguous input is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import InvalidRequest, JobUnreachable
from prouter.web.proxy.messages.heads import BodyKind, may_become_request, parse_request, parse_response

VALUE = st.binary(max_size=40).map(lambda value: bytes(b for b in value if b > 0x20 and b != 0x7F))
TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCDEF-_.!~0123456789", min_size=1, max_size=20).map(str.encode)


def test_a_request_keeps_target_names_order_and_repetitions() -> None:
    head = parse_request(
        b"GET /a//b/../%2e%zz?q=1&q=2&&x HTTP/1.1\r\nHost: h:1\r\nX_Under: \xe4\xff\r\nA: 1\r\na: 2\r\nEmpty:\r\n\r\n"
    )
    assert head.method == b"GET"
    assert head.target == b"/a//b/../%2e%zz?q=1&q=2&&x"
    assert head.headers == [(b"Host", b"h:1"), (b"X_Under", b"\xe4\xff"), (b"A", b"1"), (b"a", b"2"), (b"Empty", b"")]
    assert head.keep_alive


@given(st.lists(st.tuples(TOKEN.map(lambda name: b"X-" + name), VALUE), max_size=20))
def test_any_valid_header_arrives_as_sent(headers: list[tuple[bytes, bytes]]) -> None:
    lines = b"".join(b"%s: %s\r\n" % header for header in headers)
    assert parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n").headers[1:] == headers
    assert parse_response(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n").headers == headers


@pytest.mark.parametrize("method", [b"GET", b"PROPFIND", b"REPORT", b"BREW", b"x-custom!"])
def test_every_method_is_understood(method: bytes) -> None:
    assert parse_request(method + b" / HTTP/1.1\r\nHost: h\r\n\r\n").method == method


@pytest.mark.parametrize(
    ("lines", "kind", "length"),
    [
        (b"", BodyKind.NONE, 0),
        (b"Content-Length: 0\r\n", BodyKind.LENGTH, 0),
        (b"Content-Length: 12\r\n", BodyKind.LENGTH, 12),
        (b"Transfer-Encoding: Chunked\r\n", BodyKind.CHUNKED, 0),
    ],
)
def test_the_framing_of_a_request_is_known(lines: bytes, kind: int, length: int) -> None:
    head = parse_request(b"POST / HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n")
    assert (head.body, head.length) == (kind, length)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: b\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nA: \x00\r\n\r\n",
        b"GET / HTTP/1.1\nHost: h\n\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET  / HTTP/1.1 x\r\nHost: h\r\n\r\n",
        b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / RTSP/1.0\r\nHost: h\r\n\r\n",
        b"SOURCE / ICE/1.0\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET http://user@h/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET http:///path HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET http://\xc3\xa9/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xe9\r\n\r\n",
    ],
)
def test_ambiguous_or_malformed_requests_are_refused(head: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Invalid request"):
        parse_request(head)


@pytest.mark.parametrize(
    "head",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 000 Odd\r\n\r\n",
        b"HTTP/1.1 200 a\0b\r\n\r\n",
        b"HTTP/1.1 200 a\x1b[2J\r\n\r\n",
        b"RTSP/1.0 200 OK\r\n\r\n",
    ],
)
def test_malformed_answers_are_refused(head: bytes) -> None:
    with pytest.raises(JobUnreachable) as caught:
        parse_response(head)
    assert caught.value.code == "bad_response"


@given(st.binary(max_size=300))
def test_no_input_raises_anything_but_our_errors(data: bytes) -> None:
    for parse in (parse_request, parse_response):
        with contextlib.suppress(InvalidRequest, JobUnreachable):
            parse(data + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "host", "seen"),
    [
        (b"http://other:80/p?q", b"other:80", b"/p?q"),
        (b"HTTPS://other", b"other", b"/"),
        (b"http://[::1]:8888?q=/", b"[::1]:8888", b"/?q=/"),
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"BREW"])
def test_the_host_of_an_absolute_target_is_the_one_that_counts(
    method: bytes, target: bytes, host: bytes, seen: bytes
) -> None:
    head = parse_request(method + b" " + target + b" HTTP/1.1\r\nA: 1\r\nhost: ignored\r\n\r\n")
    assert (head.method, head.target, head.host) == (method, seen, host)
    assert head.headers == [(b"A", b"1"), (b"host", host)]


def test_options_of_the_server_itself() -> None:
    for target in (b"*", b"http://h:1"):
        assert parse_request(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n").target == b"*"


@pytest.mark.parametrize("target", [b"/caf\xc3\xa9?\xff", b'/"<>|^`{}\\', b"//a//", b"/%zz%00#x"])
@pytest.mark.parametrize("method", [b"GET", b"ANNOUNCE"])
def test_a_target_stays_the_bytes_that_were_sent(method: bytes, target: bytes) -> None:
    head = parse_request(method + b" " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (head.method, head.target) == (method, target)


def test_whitespace_round_a_value_is_none_of_it() -> None:
    head = parse_request(b"POST / HTTP/1.1\r\nHost:\th \r\nContent-Length: 5 \t\r\nA:b \r\n\r\n")
    assert head.headers == [(b"Host", b"h"), (b"Content-Length", b"5"), (b"A", b"b")]
    assert (head.host, head.length) == (b"h", 5)


def test_an_old_client_without_host_has_one() -> None:
    assert parse_request(b"GET / HTTP/1.0\r\n\r\n").headers == [(b"Host", b"localhost")]


@pytest.mark.parametrize(
    ("data", "may"),
    [
        (b"G", True),
        (b"BREW /x", True),
        (b"GET / HTTP/1.0\r\nHost", True),
        (b"\x16\x03\x01\x02\x00", False),
        (b"GET /\r\n", False),
        (b"PRI * HTTP/2.0\r\n", False),
    ],
)
def test_what_is_no_request_is_told_by_its_beginning(data: bytes, may: bool) -> None:
    assert may_become_request(data) is may


@pytest.mark.parametrize(
    ("asked", "granted"),
    [(b"h2c", b""), (b"H2C, websocket", b"websocket"), (b"TLS/1.2, HTTP/2.0", b""), (b"x-http, y/2", b"x-http, y/2")],
)
def test_no_upgrade_leads_to_a_tunnel_of_requests(asked: bytes, granted: bytes) -> None:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n" % asked)
    assert head.upgrade == granted


def test_several_lines_of_protocols_to_upgrade_to_are_one_list() -> None:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: a\r\nUpgrade: b/1\r\n\r\n")
    assert head.upgrade == b"a, b/1"


def test_an_old_server_that_sends_chunks_is_not_asked_again() -> None:
    head = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n"
    assert parse_response(head + b"Content-Length: 0\r\n\r\n").keep_alive
    assert not parse_response(head + b"Transfer-Encoding: chunked\r\n\r\n").keep_alive
