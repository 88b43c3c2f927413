"""Unfinished messages: their memory is bounded together, and honest senders are not disconnected."""

from __future__ import annotations

from prouter.broker.sockets.partial_messages import LARGE, MOST, Unfinished
from prouter.transport.zmtp.codec import Zmtp, encode_message
from prouter.transport.zmtp.handshakes import opening

MIB = 1024 * 1024


def test_what_is_on_its_way_is_known() -> None:
    zmtp = Zmtp(b"DEALER")
    zmtp.receive(opening(b"DEALER"))
    assert zmtp.unfinished == 0
    message = b"".join(encode_message([b"", bytes(MIB), bytes(2 * MIB)]))
    zmtp.receive(message[: MIB + 1000])
    assert 3 * MIB <= zmtp.unfinished <= 3 * MIB + 1000, "the part that has begun is counted whole"
    room = zmtp.room
    assert room is not None
    room[:] = bytes(len(room))
    assert len(zmtp.filled(len(room))) == 1
    assert zmtp.unfinished == 0


def test_who_holds_a_large_message_for_longest_is_cut_off_when_there_are_too_many() -> None:
    held: Unfinished[str] = Unfinished()
    held.holds("small", MIB)
    for number in range(MOST // (8 * MIB) - 1):
        held.holds(f"large {number}", 8 * MIB)
        assert held.too_much() is None
    held.holds("the last", 16 * MIB)
    assert held.too_much() == "large 0"
    assert held.let_go("large 0")
    held.holds("large 1", 0)
    assert held.too_much() is None
    held.holds("large 1", 20 * MIB)
    assert held.too_much() == "large 2", "the one that began another message is the youngest"


def test_many_small_ones_are_no_reason_until_there_is_twice_as_much() -> None:
    held: Unfinished[int] = Unfinished()
    for number in range(2 * MOST // LARGE):
        held.holds(number, LARGE)
        assert held.too_much() is None
    held.holds(-1, LARGE)
    assert held.too_much() == 0
    for number in (-1, *range(2 * MOST // LARGE)):
        assert not held.let_go(number)
    assert held.total == 0
