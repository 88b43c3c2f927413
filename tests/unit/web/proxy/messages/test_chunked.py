"""The chunked coding: every split of every body decodes to the same bytes, and nothing malformed passes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.web.proxy.messages.bodies import ResponseBody
from prouter.web.proxy.messages.chunked import LAST_CHUNK, ChunkDecoder, ChunkError, encode_chunk
from prouter.web.proxy.messages.heads import parse_request, parse_response


def feed_in_pieces(decoder: ChunkDecoder, data: bytes, cuts: list[int]) -> bytes:
    found = b""
    position = 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        if decoder.complete:
            break
        found += b"".join(decoder.feed(data[position:cut]))
        position = cut
    decoder.rest += data[position:] if decoder.complete else b""
    return found


@given(chunks=st.lists(st.binary(min_size=1, max_size=300)), rest=st.binary(max_size=20), cuts=st.lists(st.integers(0)))
def test_any_split_decodes_to_the_body_and_the_rest(chunks: list[bytes], rest: bytes, cuts: list[int]) -> None:
    encoded = b"".join(encode_chunk(chunk) for chunk in chunks) + LAST_CHUNK
    decoder = ChunkDecoder()
    assert feed_in_pieces(decoder, encoded + rest, cuts) == b"".join(chunks)
    assert decoder.complete
    assert decoder.rest == rest


@given(
    sizes=st.lists(st.one_of(st.integers(1, 9), st.integers(1000, 1100), st.integers(1, 40_000)), max_size=60),
    forms=st.lists(st.sampled_from([b"%x\r\n", b"%X\r\n", b"%04x\r\n", b"%x;a=1\r\n"]), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0), max_size=5),
    view=st.booleans(),
)
def test_small_and_large_chunks_may_be_mixed(sizes: list[int], forms: list[bytes], cuts: list[int], view: bool) -> None:
    body = random.Random(len(sizes)).randbytes(sum(sizes))
    encoded, start = [], 0
    for number, size in enumerate(sizes):
        encoded += [forms[number % len(forms)] % size, body[start : start + size], b"\r\n"]
        start += size
    whole = b"".join([*encoded, LAST_CHUNK, b"rest"])
    decoder = ChunkDecoder()
    if view:
        assert b"".join(decoder.feed(memoryview(whole))) == body
    else:
        assert feed_in_pieces(decoder, whole, cuts) == body
    assert decoder.complete
    assert decoder.rest == b"rest"


def test_pieces_of_many_chunks_become_one() -> None:
    decoder = ChunkDecoder()
    view = memoryview(b"3\r\nabc\r\n2;" + b"x" * 100 + b"\r\nde\r\n1\r")
    assert encode_chunk(decoder.feed(view)) == b"5\r\nabcde\r\n"
    assert encode_chunk(decoder.feed(b"\n")) == b""
    assert decoder.feed(b"f\r\n0\r\n\r\n") == [b"f"]


def test_extensions_are_ignored_and_trailers_dropped() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b'5;name="x"\r\nhello\r\n0\r\nTrailer: 1\r\nOther: 2\r\n\r\nnext') == [b"hello"]
    assert decoder.complete
    assert decoder.rest == b"next"


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n",
        b"\r\n",
        b"1234567890abcdef0\r\n",
        b"5;" + b"x" * 5000,
        b"0\r\n" + b"T: " + b"x" * 4000 + b"\r\n" + (b"T: " + b"x" * 4000 + b"\r\n") * 20,
    ],
)
@pytest.mark.parametrize("before", [b"", b"1\r\nx\r\n" * 5])
def test_malformed_bodies_are_refused(body: bytes, before: bytes) -> None:
    with pytest.raises(ChunkError):
        ChunkDecoder().feed(before + body)


@given(st.binary(max_size=200), st.lists(st.integers(0)))
def test_no_input_raises_anything_else(data: bytes, cuts: list[int]) -> None:
    decoder = ChunkDecoder()
    try:
        feed_in_pieces(decoder, data, cuts)
    except ChunkError:
        assert not decoder.complete


@pytest.mark.parametrize(("size", "fragmented"), [(1, True), (4, True), (5, False), (1000, False)])
def test_an_answer_of_tiny_chunks_is_known_once_much_has_come(size: int, fragmented: bool) -> None:
    request = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    body = ResponseBody(request, parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
    chunks = encode_chunk(b"x" * size)
    body.feed(chunks)
    assert not body.fragmented
    body.feed(chunks * (10_000 // len(chunks)))
    assert body.fragmented is fragmented
