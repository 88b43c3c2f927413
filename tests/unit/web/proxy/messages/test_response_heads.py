"""Heads of jobs' responses: what browsers accept passes after repair, refusals say why."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import InvalidRequest, JobUnreachable
from prouter.web.proxy.messages.bodies import ResponseBody
from prouter.web.proxy.messages.chunked import ChunkDecoder, ChunkError
from prouter.web.proxy.messages.heads import BodyKind, ResponseHead, parse_request
from prouter.web.proxy.messages.response_heads import MAX_HEAD, MAX_INTERIM, ResponseHeads, head_end, parse

OK = b"HTTP/1.1 200 OK\r\n"
GET = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")


def refusal(head: bytes) -> str:
    with pytest.raises(JobUnreachable) as caught:
        parse(head)
    assert (caught.value.status, caught.value.code) == (502, "bad_response")
    return caught.value.detail


@pytest.mark.parametrize(
    ("lines", "headers"),
    [
        (b"X-A : b\r\n", [(b"X-A", b"b")]),
        (b"X-A\t: b\r\n", [(b"X-A", b"b")]),
        (b"X-A \t :b : c\r\n", [(b"X-A", b"b : c")]),
        (b"A: b\nC: d\n", [(b"A", b"b"), (b"C", b"d")]),
        (b"A: b\nC: d\r\n", [(b"A", b"b"), (b"C", b"d")]),
    ],
)
def test_loosely_written_fields_are_put_right(lines: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    for first in (OK, b"HTTP/1.1 200 OK\n"):
        head = parse(first + lines + b"\r\n")
        assert head.headers == headers
        assert not head.keep_alive or parse(OK + lines + b"\r\n").keep_alive


@pytest.mark.parametrize(
    ("lines", "kind", "length"),
    [
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", BodyKind.CHUNKED, 0),
        (b"Transfer-Encoding: chunked, Chunked\r\n", BodyKind.CHUNKED, 0),
        (b"Transfer-Encoding : chunked\r\n", BodyKind.CHUNKED, 0),
        (b"Transfer-Encoding: identity, chunked\r\n", BodyKind.CHUNKED, 0),
        (b"Transfer-Encoding: identity\r\n", BodyKind.UNTIL_CLOSE, 0),
        (b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n", BodyKind.LENGTH, 3),
        (b"Content-Length: 3\r\nTransfer-Encoding: Identity\r\n", BodyKind.LENGTH, 3),
        (b"Content-Length: 3\r\nContent-Length: 3\r\n", BodyKind.LENGTH, 3),
        (b"Content-Length: 3, 3\r\n", BodyKind.LENGTH, 3),
    ],
)
def test_a_framing_said_twice_or_in_vain_is_understood(lines: bytes, kind: int, length: int) -> None:
    head = parse(OK + lines + b"\r\n")
    assert (head.body, head.length) == (kind, length)
    assert not head.keep_alive, "the connection must not serve another request"


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (b"Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding is 'gzip, chunked'"),
        (b"Transfer-Encoding: x\xe4\r\n", r"Transfer-Encoding is 'x\xe4'"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "Content-Length"),
        (b"Content-Length: 3\r\nContent-Length: 4\r\n", "Content-Length"),
        (b"Content-Length: 3, 4\r\n", "Content-Length"),
        (b"Content-Length: -3\r\n", "Content-Length"),
        (b"A: b\rc\r\n", "LF"),
        (b"no colon\r\n", "header token"),
        (b"A B : c\r\n", "header token"),
        (b" : c\r\n", "folded"),
        (b"A: b\r\n\tc\r\n", "folded"),
        (b"\r\n".join(b"A%d: b" % number for number in range(3000)) + b"\r\n", "more than 1000 fields"),
    ],
)
def test_what_stays_refused_says_why(lines: bytes, why: str) -> None:
    assert why in refusal(OK + lines + b"\r\n")


def test_a_status_line_is_bounded() -> None:
    assert parse(b"HTTP/1.1 200 " + b"x" * 8192 + b"\r\n\r\n").status == 200
    for end in (b"\r\n\r\n", b"\n\n"):
        assert "status line of more than 8192 bytes" in refusal(b"HTTP/1.1 200 " + b"x" * 200_000 + end)


@pytest.mark.parametrize("line", [b"X-A : b\r\n", b"X-A\t: b\r\n", b"X-A: b\n"])
def test_requests_are_never_put_right(line: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n")
    with pytest.raises(ChunkError):
        ChunkDecoder().feed(b"2\nok\n0\n\n")


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"a\r\n\r\nb", 5),
        (b"a\n\nb\r\n\r\n", 3),
        (b"a\n\r\nb\n\n", 4),
        (b"a\n\n\r\n", 3),
        (b"a\r\n\nb", 4),
        (b"a\r\nb\n", -1),
        (b"a\r\n\r", -1),
        (b"", -1),
    ],
)
def test_a_head_ends_at_its_first_empty_line(data: bytes, end: int) -> None:
    assert head_end(data) == end


def read(data: bytes, step: int) -> tuple[list[ResponseHead], bytes]:
    """The heads up to the final one, and what follows, of bytes that come `step` at a time."""
    heads, found = ResponseHeads(), []
    for at in range(0, len(data), step):
        heads.add(data[at : at + step])
        while (head := heads.next()) is not None:
            found.append(head)
            if head.status >= 200:
                return found, heads.rest() + data[at + step :]
    return found, heads.rest()


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_heads_are_found_however_they_arrive(step: int, end: bytes) -> None:
    data = (b"HTTP/1.1 103 Early|A: b||HTTP/1.1 100 Continue||HTTP/1.1 200 OK|C: d||body||").replace(b"|", end)
    heads, rest = read(data, step)
    assert [head.status for head in heads] == [103, 100, 200]
    assert heads[2].headers == [(b"C", b"d")]
    assert rest == b"body" + end + end


@pytest.mark.parametrize("status", [100, 102, 103, 199])
@pytest.mark.parametrize("step", [1, 64, 1 << 20])
@pytest.mark.parametrize("lines", [b"", b"Link: </x>; rel=preload\r\n", b"Content-Length: 5\r\n"])
def test_interim_answers_are_bounded(status: int, step: int, lines: bytes) -> None:
    interim = b"HTTP/1.1 %d Soon\r\n%s\r\n" % (status, lines)
    heads, _ = read(interim * MAX_INTERIM + OK + b"\r\n", step)
    assert [head.status for head in heads] == [status] * MAX_INTERIM + [200]
    with pytest.raises(JobUnreachable, match="interim"):
        read(interim * (MAX_INTERIM + 1) + OK + b"\r\n", step)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (OK + b"A: b\r\n" * (MAX_HEAD // 6), "more than 262144 bytes"),
        (b"x" * 5, "does not begin with 'HTTP/'"),
        (b"HTTP/1.1 103 Early\r\n\r\n<html>", "does not begin with 'HTTP/'"),
    ],
)
def test_what_can_become_no_head_is_refused_at_once(data: bytes, why: str) -> None:
    with pytest.raises(JobUnreachable, match=why):
        read(data, 65536)


@given(st.binary(max_size=200), st.sampled_from([b"", OK, b"HTTP/1.1 200 OK\n", OK + b"A : "]))
def test_no_bytes_raise_anything_but_our_error(data: bytes, before: bytes) -> None:
    with contextlib.suppress(JobUnreachable):
        heads, _ = read(before + data + b"\n\n", 50)
        for head in heads:
            assert not [part for header in head.headers for part in header if b"\n" in part or b"\r" in part]


@pytest.mark.parametrize("step", [1, 2, 5, 100])
def test_chunks_with_bare_line_feeds_are_understood_in_answers(step: int) -> None:
    head = parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    body, got = ResponseBody(GET, head), b""
    data = b"5\nhello\n6;x\r\n world\n0\nTrailer: 1\n\n"
    for at in range(0, len(data), step):
        got += body.feed(data[at : at + step])
    decoder = ChunkDecoder()
    assert b"".join(decoder.feed(got)) == b"hello world"
    assert body.over
    assert not body.clean, "the connection must not serve another request"
