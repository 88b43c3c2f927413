"""Frames: encoding and decoding agree, and malformed input is only ever refused."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.errors import ProtocolError
from prouter.fabric.frames import (
    BULK,
    BULK_MIN,
    CALL,
    DATA,
    HEADER,
    MAX_FRAMES,
    MAX_PAYLOAD,
    Frame,
    batches,
    decode,
    encode,
    pack_body,
    unpack_body,
)

U64 = st.integers(0, 2**64 - 1)
PAYLOADS = st.one_of(st.binary(max_size=100), st.integers(BULK_MIN - 2, BULK_MIN + 2).map(lambda size: b"x" * size))
FRAMES = st.builds(Frame, st.integers(0, 255), st.sampled_from([0, 1, 4, 5]), U64, U64, U64, PAYLOADS)


@given(st.lists(FRAMES, max_size=8))
def test_what_is_encoded_is_decoded(frames: list[Frame]) -> None:
    parts = encode(frames)
    assert decode(parts) == frames
    assert len(parts) == 1 + sum(len(frame.payload) >= BULK_MIN for frame in frames)


def test_large_payloads_travel_uncopied() -> None:
    payload = b"x" * BULK_MIN
    parts = encode([Frame(DATA, payload=payload)])
    assert parts[1] is payload
    assert decode(parts)[0].payload is payload


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_noise_raises_protocol_errors_only(parts: list[bytes]) -> None:
    try:
        decode(parts)
    except ProtocolError:
        return


@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_damaged_messages_raise_protocol_errors_only(frames: list[Frame], data: st.DataObject) -> None:
    parts = [bytearray(part) for part in encode(frames)]
    part = data.draw(st.sampled_from(parts))
    change: Callable[[], None] = data.draw(
        st.sampled_from([lambda: part.append(0), lambda: part.clear(), lambda: parts.append(bytearray(b"more"))])
    )
    change()
    for _ in range(data.draw(st.integers(0, 3))):
        if part:
            part[data.draw(st.integers(0, len(part) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode([bytes(part) for part in parts])
    except ProtocolError:
        return


def test_lengths_that_lie_are_refused() -> None:
    with pytest.raises(ProtocolError, match="empty message"):
        decode([])
    with pytest.raises(ProtocolError, match="header"):
        decode([b"x" * 31])
    with pytest.raises(ProtocolError, match="truncated payload"):
        decode([HEADER.pack(DATA, 0, 0, 2**32 - 1, 1, 0, 0)])
    with pytest.raises(ProtocolError, match="bulk part"):
        decode([HEADER.pack(DATA, BULK, 0, 5, 1, 0, 0), b"1234"])
    with pytest.raises(ProtocolError, match="bulk part"):
        decode([HEADER.pack(DATA, BULK, 0, MAX_PAYLOAD + 1, 1, 0, 0), bytes(MAX_PAYLOAD + 1)])
    with pytest.raises(ProtocolError, match="without a frame"):
        decode([b"", b"x"])
    with pytest.raises(ProtocolError, match="too many frames"):
        decode([HEADER.pack(DATA, 0, 0, 0, 1, 0, 0) * (MAX_FRAMES + 1)])


@given(st.binary(max_size=100))
def test_bodies_are_maps_or_protocol_errors(payload: bytes) -> None:
    try:
        body = unpack_body(payload)
    except ProtocolError:
        return
    assert all(isinstance(key, str) for key in body)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({1: 2}),
        b"\x91" * 5000,
        b"\x81\xa1\xff\x01",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_payloads_that_are_no_maps_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_body(payload)


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.binary(), st.text(), st.lists(st.floats()))))
def test_bodies_survive(body: dict[str, object]) -> None:
    again = unpack_body(pack_body(body))
    assert repr(again) == repr(body)


def test_frames_are_spread_over_messages_by_size_and_number() -> None:
    large, small = Frame(DATA, payload=bytes(100_000)), Frame(DATA, payload=b"x")
    assert list(batches([])) == []
    assert list(batches([small, large])) == [[small, large]]
    assert list(batches([large, large, large, small])) == [[large, large], [large, small]]
    alone = Frame(DATA, payload=bytes(300_000))
    assert list(batches([alone])) == [[alone]], "a frame that is too large for a batch is one of its own"
    assert list(batches([alone, alone, small])) == [[alone], [alone], [small]]
    assert [len(batch) for batch in batches([small] * 10_000)] == [4096, 4096, 1808]


def test_frames_are_plain_tuples() -> None:
    assert Frame(CALL) == (CALL, 0, 0, 0, 0, b"")
