"""The ZMTP codec without I/O: messages survive any split, and bytes that are not ZMTP are refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.errors import ProtocolError
from prouter.fabric.bounds import PART_OVERHEAD
from prouter.transport.zmtp.codec import BULKY, MAX_PART, Zmtp, encode_message
from prouter.transport.zmtp.handshakes import opening

GREETING = 64
"""Bytes of a greeting (rfc.zeromq.org/spec/23)."""

SIZES = st.sampled_from([0, 1, 255, 256, 8191, 8192, BULKY - 1, BULKY, BULKY + 1, 3 * BULKY])
MESSAGES = st.lists(st.lists(SIZES, min_size=1, max_size=5), max_size=6)
READ = 64 * 1024


def part(size: int, seed: int) -> bytes:
    return (bytes((seed % 251, seed // 251)) * (size // 2 + 1))[:size]


def feed(zmtp: Zmtp, data: bytes, cuts: list[int]) -> list[list[bytes]]:
    """Give `data` to `zmtp` in pieces of `cuts` bytes, as a socket would; return the messages."""
    messages: list[list[bytes]] = []
    at = turn = 0
    while at < len(data):
        have = cuts[turn % len(cuts)] if cuts else READ
        turn += 1
        room = zmtp.room
        if room is None:
            piece = data[at : at + min(have, READ)]
            messages += zmtp.receive(piece)
        else:
            piece = data[at : at + min(have, len(room))]
            room[: len(piece)] = piece
            messages += zmtp.filled(len(piece))
        at += len(piece)
    return [[bytes(part) for part in message] for message in messages]


def introduced(kind: bytes = b"DEALER", identity: bytes = b"", limit: int | None = None) -> Zmtp:
    zmtp = Zmtp(kind, limit=limit)
    assert zmtp.receive(opening(kind, identity)) == []
    assert zmtp.ready
    return zmtp


@settings(deadline=None)
@given(MESSAGES, st.lists(st.integers(500, 3 * BULKY), max_size=8))
def test_messages_arrive_as_they_were_sent_however_they_are_cut(shape: list[list[int]], cuts: list[int]) -> None:
    sent = [[part(size, 7 * number + index) for index, size in enumerate(sizes)] for number, sizes in enumerate(shape)]
    data = opening(b"DEALER", b"me") + b"".join(b"".join(encode_message(parts)) for parts in sent)
    zmtp = Zmtp(b"DEALER")
    assert feed(zmtp, data, cuts) == sent
    assert zmtp.ready
    assert zmtp.identity == b"me"


@settings(deadline=None)
@given(MESSAGES)
def test_messages_arrive_byte_by_byte_too(shape: list[list[int]]) -> None:
    sent = [[part(min(size, 300), number) for size in sizes] for number, sizes in enumerate(shape)]
    zmtp = introduced()
    assert feed(zmtp, b"".join(b"".join(encode_message(parts)) for parts in sent), [1]) == sent


def test_large_parts_are_neither_copied_when_sent_nor_when_received() -> None:
    large = bytes(BULKY)
    buffers = encode_message([b"route", b"block", large])
    assert any(buffer is large for buffer in buffers)
    zmtp = introduced()
    messages = zmtp.receive(buffers[0] + large[:1000])
    assert messages == []
    room = zmtp.room
    assert room is not None
    assert len(room) == BULKY - 1000
    ((route, block, received),) = zmtp.filled(len(room))
    assert (route, block, bytes(received)) == (b"route", b"block", large)
    assert type(received) is not bytes


def test_many_small_messages_come_in_portions() -> None:
    zmtp = introduced()
    messages = zmtp.receive(b"".join(encode_message([b"%d" % number])[0] for number in range(5000)))
    assert len(messages) == 1024
    while zmtp.more:
        portion = zmtp.receive(b"")
        assert 0 < len(portion) <= 1024
        messages += portion
    assert messages == [[b"%d" % number] for number in range(5000)]


def test_received_parts_do_not_change_when_more_arrives() -> None:
    zmtp = introduced()
    first = feed(zmtp, b"".join(encode_message([b"a" * BULKY])), [])
    second = feed(zmtp, b"".join(encode_message([b"b" * BULKY])), [])
    assert first == [[b"a" * BULKY]]
    assert second == [[b"b" * BULKY]]


def test_a_connection_is_ready_only_after_the_handshake() -> None:
    data = opening(b"ROUTER")
    zmtp = Zmtp(b"DEALER", b"ROUTER")
    for index in range(len(data) - 1):
        zmtp.receive(data[index : index + 1])
        assert not zmtp.ready
    zmtp.receive(data[-1:])
    assert zmtp.ready


def test_commands_of_later_versions_are_passed_over() -> None:
    ping = b"\x04\x07\x04PING\x00\x00"
    zmtp = introduced()
    assert zmtp.receive(ping + b"".join(encode_message([b"x"])) + ping) == [[b"x"]]


GOOD = opening(b"DEALER")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7e" + GOOD[10:],
        GOOD[:10] + b"\x02" + GOOD[11:],
        GOOD.replace(b"NULL", b"PLAIN"[:4]),
        GOOD[:GREETING] + b"\x00" + GOOD[GREETING + 1 :],
        GOOD[:GREETING] + b"\x04\x0f\x05ERROR\x08go away!",
        opening(b"PUSH"),
        GOOD[:GREETING] + b"\x04\x0b\x05READY\x0bSocke",
        GOOD[:GREETING] + b"\x04\x16\x05READY\x0bSocket-Type" + b"\xff" * 4,
    ],
    ids=["HTTP", "signature", "version", "mechanism", "no command", "refused", "type", "cut name", "cut value"],
)
def test_other_protocols_than_zmtp_are_refused(data: bytes) -> None:
    zmtp = Zmtp(b"DEALER")
    with pytest.raises(ProtocolError):
        zmtp.receive(data)
    assert not zmtp.ready


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits(data: bytes) -> None:
    zmtp = Zmtp(b"DEALER")
    try:
        assert zmtp.receive(data) == []
    except ProtocolError:
        assert not zmtp.ready


@given(st.binary(max_size=400))
def test_garbage_after_the_handshake_is_refused_or_decoded(data: bytes) -> None:
    zmtp = introduced()
    try:
        feed(zmtp, data, [])
    except ProtocolError:
        return
    assert zmtp.room is None or len(zmtp.room) <= MAX_PART


@pytest.mark.parametrize("length", [MAX_PART + 1, 2**63, 2**64 - 1])
def test_too_large_a_part_is_refused_before_it_takes_memory(length: int) -> None:
    with pytest.raises(ProtocolError, match="beyond"):
        introduced().receive(b"\x02" + length.to_bytes(8, "big") + b"x")


def test_messages_of_endlessly_many_parts_are_refused() -> None:
    zmtp = introduced(limit=32 * 64)
    assert zmtp.receive(b"\x01\x00" * 32) == []
    with pytest.raises(ProtocolError, match="beyond"):
        zmtp.receive(b"\x01\x01x")


def test_an_unauthenticated_peer_has_so_many_frames_in_all() -> None:
    zmtp = introduced(limit=64 * 1024)
    one = b"".join(zmtp.encode([b"", b"x"]))
    for _ in range(31):
        assert zmtp.receive(one) == [[b"", b"x"]]
    assert zmtp.receive(one + one) == [[b"", b"x"]]
    assert zmtp.more
    with pytest.raises(ProtocolError, match="more than an introduction"):
        zmtp.receive(b"")
    zmtp.trust()
    assert zmtp.receive(b"") == [[b"", b"x"]]


def test_an_unauthenticated_peer_has_so_many_bytes_in_all() -> None:
    zmtp = introduced(limit=1000)
    assert zmtp.receive(encode_message([bytes(500)])[0]) == [[bytes(500)]]
    with pytest.raises(ProtocolError, match="beyond"):
        zmtp.receive(encode_message([bytes(500)])[0])


def test_trust_lifts_the_limit() -> None:
    with pytest.raises(ProtocolError, match="beyond"):
        introduced(limit=1000).receive(encode_message([bytes(1500)])[0])
    zmtp = introduced(limit=1000)
    zmtp.trust()
    assert zmtp.receive(b"".join(encode_message([bytes(1500)]))) == [[bytes(1500)]]


def test_an_unauthenticated_peer_cannot_reserve_memory() -> None:
    zmtp = introduced(limit=4 * BULKY)
    assert zmtp.receive(b"\x02" + (2 * BULKY).to_bytes(8, "big")) == []
    assert zmtp.room is None
    assert zmtp.receive(bytes(2 * BULKY)) == [[bytes(2 * BULKY)]]


def test_messages_before_garbage_are_returned_first() -> None:
    zmtp = introduced()
    assert zmtp.receive(b"".join(encode_message([b"x"])) + b"\xff" * 20) == [[b"x"]]
    assert zmtp.more
    with pytest.raises(ProtocolError):
        zmtp.receive(b"")


def test_long_commands_are_refused_after_the_handshake() -> None:
    with pytest.raises(ProtocolError):
        introduced().receive(b"\x06" + (1000).to_bytes(8, "big"))


def test_a_long_routing_id_is_taken() -> None:
    assert introduced(identity=b"i" * 255).identity == b"i" * 255


def test_what_has_arrived_of_a_message_is_counted() -> None:
    zmtp = introduced()
    assert zmtp.unfinished == 0
    zmtp.receive(b"\x01\x03abc\x00\x05de")
    assert zmtp.unfinished == PART_OVERHEAD + 3 + 4, "a part with its overhead, and the head and beginning of the next"
    assert zmtp.receive(b"fgh") == [[b"abc", b"defgh"]]
    assert zmtp.unfinished == 0
    zmtp.receive(b"\x02" + BULKY.to_bytes(8, "big") + b"x")
    assert zmtp.unfinished == BULKY + PART_OVERHEAD, "its memory is taken"


def test_heads_that_come_in_pieces_wait_for_the_rest() -> None:
    zmtp = introduced()
    head = b"\x02" + (300).to_bytes(8, "big")
    assert zmtp.receive(head[:1]) == []
    assert zmtp.receive(head[1:5]) == []
    assert zmtp.receive(head[5:]) == []
    assert zmtp.receive(bytes(300)) == [[bytes(300)]]


def test_a_ready_command_of_the_long_form_may_come_in_pieces() -> None:
    long = GOOD[:GREETING] + b"\x06" + (len(GOOD) - GREETING - 2).to_bytes(8, "big") + GOOD[GREETING + 2 :]
    zmtp = Zmtp(b"DEALER")
    for position in range(len(long)):
        assert not zmtp.ready
        zmtp.receive(long[position : position + 1])
    assert zmtp.ready
