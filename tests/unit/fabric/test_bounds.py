"""Whatever one end may encode, the other end accepts; anything larger fails where it is made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.errors import ProtocolError, PRouterError, TooLarge
from prouter.fabric.bounds import MAX_CONTROL, MAX_FRAMES, MAX_MESSAGE, MAX_PART, MAX_PAYLOAD, PART_OVERHEAD
from prouter.fabric.calls import Caller, Request, Responder, event_frame, event_name, read_event
from prouter.fabric.frames import BULK_MIN, CALL, DATA, EVENT, REPLY, Frame, decode, encode, pack_body
from prouter.fabric.parts import PART_BYTES, PART_ITEMS, in_parts
from prouter.transport.zmtp.codec import Zmtp, encode_message
from prouter.transport.zmtp.handshakes import opening

LARGE = bytes(MAX_MESSAGE + 1)


def taken(parts: list[bytes]) -> list[list[bytes]]:
    """Send one message; return the messages that the other end receives."""
    zmtp = Zmtp(b"DEALER")
    found = zmtp.receive(opening(b"DEALER"))
    for data in encode_message(parts):
        for position in range(0, len(data), 4 << 20):
            piece = data[position : position + (4 << 20)]
            room = zmtp.room
            while room is not None and piece:
                count = min(len(room), len(piece))
                room[:count] = piece[:count]
                found += zmtp.filled(count)
                piece, room = piece[count:], zmtp.room
            if piece:
                found += zmtp.receive(bytes(piece))
    while zmtp.more:
        found += zmtp.receive(b"")
    return found


sizes = st.one_of(
    st.integers(0, 2 * BULK_MIN),
    st.sampled_from([MAX_PAYLOAD - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, MAX_PART, MAX_PART + 1]),
)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(sizes, max_size=6))
def test_whatever_can_be_encoded_is_accepted(lengths: list[int]) -> None:
    frames = [Frame(DATA, sid=number, payload=LARGE[:length]) for number, length in enumerate(lengths)]
    try:
        parts = [b"route", *encode(frames)]
        messages = taken(parts)
    except ProtocolError:
        assert max(lengths) > MAX_PAYLOAD or sum(lengths) > MAX_MESSAGE - 100 * PART_OVERHEAD
        return
    ((_route, *received),) = messages
    assert [len(frame.payload) for frame in decode([bytes(part) for part in received])] == lengths


@pytest.mark.parametrize("size", [MAX_PART - 1, MAX_PART])
def test_a_part_of_the_largest_size_is_taken(size: int) -> None:
    assert [len(part) for part in taken([b"", LARGE[:size]])[0]] == [0, size]


def test_a_message_of_the_largest_size_is_taken_and_no_larger_one_is_made() -> None:
    fit = [LARGE[:MAX_PART]] * 3 + [LARGE[: MAX_PART - 4 * PART_OVERHEAD]]
    assert len(taken(fit)[0]) == 4
    with pytest.raises(ProtocolError, match="larger"):
        encode_message([*fit[:3], LARGE[: MAX_PART - 4 * PART_OVERHEAD + 1]])
    with pytest.raises(ProtocolError, match="larger"):
        encode_message([LARGE[: MAX_PART + 1]])


def test_frames_beyond_the_limits_are_not_encoded() -> None:
    with pytest.raises(ProtocolError, match="more than one message"):
        encode([Frame(DATA)] * (MAX_FRAMES + 1))
    with pytest.raises(ProtocolError, match="larger"):
        encode([Frame(DATA, payload=LARGE[: MAX_PAYLOAD + 1])])
    with pytest.raises(ProtocolError, match="small frames"):
        encode([Frame(DATA, payload=LARGE[: BULK_MIN - 1])] * MAX_FRAMES)
    assert len(decode(encode([Frame(DATA)] * MAX_FRAMES))) == MAX_FRAMES


def body(size: int) -> dict[str, Any]:
    return {"text": "x" * size}


@pytest.mark.parametrize("size", [MAX_CONTROL - 100, MAX_CONTROL - 60, MAX_CONTROL, 3 * MAX_CONTROL])
def test_calls_replies_and_events_are_accepted_or_fail_at_once(size: int) -> None:
    caller, responder = Caller(), Responder()
    try:
        _, frame = caller.call("op", body(size))
        assert isinstance(responder.receive(frame), Request)
    except TooLarge:
        assert size > MAX_CONTROL - 100
        assert caller.pending == 0, "it must not be repeated"
    try:
        assert read_event(event_frame("job", body(size)))[0] == "job"
    except ProtocolError:
        assert size > MAX_CONTROL - 100
    call_id, frame = caller.call("op", {})
    assert isinstance(responder.receive(frame), Request)
    result = caller.receive(responder.reply(call_id, body(size)))
    assert result is not None
    assert result.value == body(size) or (result.error is not None and result.error.code == "answer_too_large")


def test_a_reply_that_is_too_large_fails_its_call_and_is_not_decoded() -> None:
    caller = Caller(most=1000)
    call_id, _ = caller.call("op", {})
    nonsense = pack_body({"id": call_id})[1:] + b"\xc1" * 2000
    result = caller.receive(Frame(REPLY, payload=b"\x82" + nonsense))
    assert result is not None
    assert result.error is not None
    assert result.error.code == "answer_too_large"
    assert caller.pending == 0
    assert caller.receive(Frame(REPLY, payload=b"\x82" + nonsense)) is None


@pytest.mark.parametrize("payload", [b"\xc1" * 2000, pack_body({"value": "x" * 2000}), b"\x82", pack_body({"id": 7})])
def test_a_large_answer_without_an_id_is_malformed(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        Caller(most=1).receive(Frame(REPLY, payload=payload + bytes(10)))


def test_a_call_that_is_too_large_gets_an_error_reply() -> None:
    caller, responder = Caller(), Responder()
    call_id, _ = caller.call("op", {})
    refused = responder.receive(Frame(CALL, payload=pack_body({"id": call_id, "op": "op", "args": body(MAX_CONTROL)})))
    assert isinstance(refused, Frame)
    result = caller.receive(refused)
    assert result is not None
    assert isinstance(result.error, TooLarge)
    assert responder.running == 0


def test_a_call_that_is_too_large_and_has_no_id_is_malformed() -> None:
    with pytest.raises(ProtocolError, match="more than"):
        Responder().receive(Frame(CALL, payload=pack_body({"args": body(MAX_CONTROL)})))


def test_an_event_that_is_too_large_is_not_decoded() -> None:
    with pytest.raises(ProtocolError, match="larger than"):
        read_event(Frame(EVENT, payload=b"\xc1" * (MAX_CONTROL + 1)))


def test_a_list_is_cut_by_size_and_by_number() -> None:
    large, small = body(PART_BYTES - 100), body(1)
    assert list(in_parts([])) == [([], True)]
    assert list(in_parts([large, small, large])) == [([large, small], False), ([large], True)]
    assert [len(part) for part, _ in in_parts([small] * (2 * PART_ITEMS + 1))] == [PART_ITEMS, PART_ITEMS, 1]
    too_large = body(2 * PART_BYTES)
    assert list(in_parts([too_large, small])) == [([too_large], False), ([small], True)]


def test_a_long_error_text_crosses_shortened() -> None:
    responder = Responder()
    frame = responder.reply("call", error=PRouterError("x" * 3 * MAX_CONTROL))
    assert len(frame.payload) < 5000


def test_the_name_of_an_event_is_known_without_its_body() -> None:
    assert event_name(event_frame("jobs", body(100_000))) == "jobs"
    assert event_name(Frame(EVENT, payload=pack_body({"body": {}, "event": "jobs"}))) == ""
    assert event_name(Frame(EVENT, payload=b"\xc1")) == ""


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, PART_BYTES), max_size=6), st.integers(0, 500))
def test_a_list_in_parts_is_whole_and_no_part_is_large(lengths: list[int], small: int) -> None:
    items = [body(length) for length in lengths] + [body(1)] * small
    parts = list(in_parts(items))
    assert [item for part, _ in parts for item in part] == items
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]
    for part, _ in parts:
        assert len(part) <= PART_ITEMS
        assert len(part) == 1 or sum(len(pack_body(item)) for item in part) <= PART_BYTES
