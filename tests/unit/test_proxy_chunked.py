"""The chunked coding: every split of every body decodes to the same bytes, and nothing malformed passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.api.proxy.chunked import LAST_CHUNK, ChunkDecoder, ChunkError, encode_chunk


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
def test_malformed_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(ChunkError):
        ChunkDecoder().feed(body)


@given(st.binary(max_size=200), st.lists(st.integers(0)))
def test_no_input_raises_anything_else(data: bytes, cuts: list[int]) -> None:
    decoder = ChunkDecoder()
    try:
        feed_in_pieces(decoder, data, cuts)
    except ChunkError:
        assert not decoder.complete
