"""The server's end of CURVE without I/O: whatever is changed, repeated, left out or made up is refused."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.errors import ProtocolError
from prouter.keys.files import make_pair
from prouter.transport.zmtp.codec import BULKY, MAX_PART
from prouter.transport.zmtp.curve import CurveServer
from prouter.transport.zmtp.handshakes import COMMAND, MORE, greeting, opening
from prouter.transport.zmtp.server_keys import ServerKeys
from tests.support.curve_client import GREETING, CurveClient, frame
from tests.unit.transport.zmtp.test_codec import MESSAGES, feed, part

PAIR, CLIENT, OTHER = make_pair(), make_pair(), make_pair()


def anybody(key: str) -> bool:
    return True


def server(limit: int | None = None, accepts: Callable[[str], bool] = anybody) -> CurveServer:
    return CurveServer(ServerKeys(PAIR), accepts, b"DEALER", limit=limit)


def client(**options: bytes) -> CurveClient:
    return CurveClient(PAIR.public, CLIENT, **options)


def greeted(made: CurveServer, peer: CurveClient) -> None:
    """HELLO and WELCOME."""
    assert made.receive(GREETING + peer.hello()) == []
    peer.welcomed(made.reply)
    made.reply = b""


def linked(limit: int | None = None, **options: bytes) -> tuple[CurveServer, CurveClient]:
    """Both ends after their handshake."""
    made, peer = server(limit), client(**options)
    greeted(made, peer)
    assert made.receive(peer.initiate()) == []
    peer.ready(made.reply)
    made.reply = b""
    assert made.ready
    return made, peer


def refuses(made: CurveServer, *pieces: bytes) -> bool:
    """Whether one of the pieces is refused; none of them may be taken for a message."""
    try:
        for piece in pieces:
            assert made.receive(piece) == []
    except ProtocolError:
        return True
    return False


@settings(deadline=None)
@given(MESSAGES, st.lists(st.integers(1, 3 * BULKY), max_size=8), st.integers(1, 400))
def test_messages_cross_as_they_were_sent_however_they_are_cut(
    shape: list[list[int]], cuts: list[int], piece: int
) -> None:
    made, peer = server(), client(identity=b"somebody")
    for data in (GREETING, peer.hello()):
        for at in range(0, len(data), piece):
            assert made.receive(data[at : at + piece]) == []
    peer.welcomed(made.reply)
    made.reply = b""
    sent = [[part(size, 7 * number + index) for index, size in enumerate(sizes)] for number, sizes in enumerate(shape)]
    # Nothing says that the client waits for READY.
    data = peer.initiate() + b"".join(peer.message(*parts) for parts in sent)
    assert feed(made, data, [cut + 400 for cut in cuts]) == sent
    assert (made.identity, made.peer_key) == (b"somebody", CLIENT.public)
    peer.ready(made.reply)
    for parts in sent:
        buffers = made.encode(parts)
        data = b"".join(buffers)
        assert peer.receive(data) == [parts]


def test_the_accepted_key_is_the_one_that_was_proved() -> None:
    asked: list[str] = []

    def accepts(key: str) -> bool:
        asked.append(key)
        return key == OTHER.public

    made, peer = server(accepts=accepts), client()
    greeted(made, peer)
    with pytest.raises(ProtocolError, match="not accepted"):
        made.receive(peer.initiate())
    assert asked == [CLIENT.public]
    assert made.reply == b"\x04\x0a\x05ERROR\x03400", "what libzmq's clients tell as a key that is not accepted"
    assert not made.ready
    assert not made.peer_key


_UNUSED_BIT = 8 * (2 + 112) - 1
"""Of C' in HELLO's frame: Curve25519 leaves the highest bit of a public key out of account; the vouch does not."""


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes((data[bit // 8] ^ 1 << bit % 8,)) + data[bit // 8 + 1 :]


def test_each_bit_of_a_handshake_counts() -> None:
    peer = client()
    hello = peer.hello()
    for bit in range(8 * len(hello)):
        made = server()
        if bit == _UNUSED_BIT:
            assert not refuses(made, GREETING + flipped(hello, bit))
            peer.welcomed(made.reply)
            assert refuses(made, peer.initiate())
            continue
        # A length that promises more is not refused before more comes.
        assert refuses(made, GREETING + flipped(hello, bit), bytes(4096))
        assert not made.reply
    for bit in range(0, 8 * 360, 7):
        made, peer = server(), client()
        greeted(made, peer)
        initiate = peer.initiate()
        assert refuses(made, flipped(initiate, bit % (8 * len(initiate))), bytes(4096))
        assert not made.ready


def test_each_bit_of_a_message_counts() -> None:
    length = len(linked()[1].message(b"route", b"block"))
    for bit in range(8 * length):
        made, peer = linked(limit=4096)
        before, damaged, after = (peer.message(b"route", b"block") for _ in range(3))
        got = made.receive(before)
        assert got == [[b"route", b"block"]]
        assert refuses(made, flipped(damaged, bit), after + bytes(4096))


@pytest.mark.parametrize("order", [[0, 0], [1], [0, 2], [0, 1, 0], [0, 1, 1]], ids=str)
def test_a_message_that_is_repeated_left_out_or_out_of_order_is_refused(order: list[int]) -> None:
    made, peer = linked()
    sent = [peer.message(b"%d" % number) for number in range(3)]
    *fine, last = order
    for number in fine:
        assert made.receive(sent[number]) == [[b"%d" % number]]
    with pytest.raises(ProtocolError, match="missing, or comes twice"):
        made.receive(sent[last])


def test_messages_before_a_damaged_one_are_returned_first() -> None:
    made, peer = linked()
    good, bad = peer.message(b"good"), peer.message(b"bad")
    assert made.receive(good + flipped(bad, 8 * 30)) == [[b"good"]]
    assert made.more
    for _ in range(2):
        with pytest.raises(ProtocolError):
            made.receive(b"")


def test_a_large_part_that_is_damaged_is_refused_again_and_again() -> None:
    made, peer = linked()
    data = bytearray(peer.message(bytes(3 * BULKY)))
    data[-1] ^= 1
    assert made.receive(bytes(data[:1000])) == []
    room = made.room
    assert room is not None
    room[:] = data[1000:]
    with pytest.raises(ProtocolError):
        made.filled(len(room))
    assert made.more
    with pytest.raises(ProtocolError):
        made.receive(b"")


def test_the_largest_part_passes_in_both_directions_and_no_larger_one() -> None:
    made, peer = linked()
    assert feed(made, peer.message(bytes(MAX_PART)), []) == [[bytes(MAX_PART)]]
    with pytest.raises(ProtocolError, match="beyond"):
        feed(made, peer.message(bytes(MAX_PART + 1))[:1000], [])
    made, peer = linked()
    assert peer.receive(b"".join(made.encode([bytes(MAX_PART)]))) == [[bytes(MAX_PART)]]
    with pytest.raises(ProtocolError, match="larger"):
        made.encode([bytes(MAX_PART + 1)])
    with pytest.raises(ProtocolError, match="larger"):
        made.encode([bytes(MAX_PART)] * 4)
    assert peer.receive(b"".join(made.encode([b"still"]))) == [[b"still"]], "what was refused takes no number"


def test_an_unauthenticated_client_has_the_limits_of_any() -> None:
    made, peer = linked(limit=1000)
    with pytest.raises(ProtocolError, match="beyond"):
        made.receive(peer.message(bytes(1001)))
    made, peer = linked(limit=1000)
    made.trust()
    assert made.receive(peer.message(bytes(1001))) == [[bytes(1001)]]


def test_heartbeats_are_let_pass() -> None:
    made, peer = linked()
    assert made.receive(peer.box(b"\x04PING\0\0", 2) + peer.message(b"x")) == [[b"x"]]


@pytest.mark.parametrize(("flags", "size"), [(3, 1), (4, 1), (255, 1), (2, 256)])
def test_a_box_with_flags_that_mean_nothing_is_refused(flags: int, size: int) -> None:
    made, peer = linked()
    with pytest.raises(ProtocolError, match="flags"):
        made.receive(peer.box(bytes(size), flags))


@pytest.mark.parametrize(
    "data", [frame(b""), frame(b"\x07MESSAGE" + bytes(24)), frame(b"\x07message" + bytes(40)), b"\x01\x00", b"\x04\x00"]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    made, _ = linked()
    with pytest.raises(ProtocolError):
        made.receive(data)


def test_a_message_as_a_command_or_with_more_outside_of_its_box_is_refused() -> None:
    for flags in (COMMAND, MORE):
        made, peer = linked()
        with pytest.raises(ProtocolError):
            made.receive(frame(peer.message(b"x")[2:], flags))


@pytest.mark.parametrize(
    "data",
    [
        opening(b"DEALER"),
        b"GET / HTTP/1.1\r\n",
        b"\xff" + bytes(8) + b"\x7f\x02" + bytes(60),
        greeting(b"PLAIN"),
        greeting(b"CURVE2"),
        GREETING + b"\x00\xc8" + bytes(200),
        GREETING + b"\x06" + (1 << 40).to_bytes(8, "big"),
        GREETING + frame(b"\x05HELLO" + bytes(194), COMMAND),
        GREETING + frame(b"\x05HELLO\x01\x00" + bytes(191), COMMAND),
        GREETING + frame(b"\x05HELLO\x01\x00" + bytes(192), COMMAND),
        GREETING + frame(b"\x08INITIATE" + bytes(300), COMMAND),
        GREETING + frame(b"\x05READY" + bytes(20), COMMAND),
    ],
)
def test_openings_that_are_not_curve_are_refused_without_a_reply(data: bytes) -> None:
    made = server()
    with pytest.raises(ProtocolError):
        made.receive(data)
    assert not made.reply


def test_a_long_command_may_come_in_pieces() -> None:
    made = server()
    assert made.receive(GREETING + b"\x06") == []
    assert made.receive(bytes(7)) == []
    with pytest.raises(ProtocolError):
        made.receive(bytes((200,)) + bytes(200))


def test_a_client_that_does_not_know_the_server_s_key_gets_nothing() -> None:
    made = server()
    with pytest.raises(ProtocolError):
        made.receive(GREETING + CurveClient(OTHER.public, CLIENT).hello())
    assert not made.reply


def test_a_hello_that_holds_something_is_refused() -> None:
    for content in (b"x" * 64, bytes(63) + b"x"):
        with pytest.raises(ProtocolError):
            server().receive(GREETING + client().hello(content))


def test_nobody_gets_in_with_a_key_that_is_not_its_own() -> None:
    made, peer = server(), client()
    greeted(made, peer)
    with pytest.raises(ProtocolError):
        made.receive(peer.initiate(by=os.urandom(32)))


@pytest.mark.parametrize("which", ["another connection", "another server", "nothing"])
def test_a_vouch_counts_for_its_own_connection(which: str) -> None:
    made, peer = server(), client()
    greeted(made, peer)
    said = {
        "another connection": client().own + peer.server,
        "another server": peer.own + CurveClient(OTHER.public, CLIENT).server,
        "nothing": bytes(64),
    }
    with pytest.raises(ProtocolError, match="vouches"):
        made.receive(peer.initiate(vouched=said[which]))
    assert not made.reply


@pytest.mark.parametrize(("before", "gets_in"), [(2**64 - 2, False), (2**63 - 1, False), (2**63 - 2, True), (41, True)])
def test_a_client_whose_counter_could_wrap_is_refused(before: int, gets_in: bool) -> None:
    made, peer = server(), client()
    greeted(made, peer)
    peer._sent = before
    initiate = peer.initiate()
    assert refuses(made, initiate, b"") is not gets_in
    if gets_in:
        assert made.receive(peer.message(b"a")) == [[b"a"]]


def test_the_cookie_of_another_handshake_is_refused() -> None:
    made, peer = server(), client()
    greeted(made, peer)
    with pytest.raises(ProtocolError, match="cookie"):
        made.receive(peer.initiate(cookie=os.urandom(96)))


def test_a_recorded_handshake_cannot_be_repeated() -> None:
    made, peer = server(), client()
    hello = peer.hello()
    made.receive(GREETING + hello)
    peer.welcomed(made.reply)
    initiate = peer.initiate()
    again = server()
    again.receive(GREETING + hello)
    with pytest.raises(ProtocolError):
        again.receive(initiate)


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31)])
def test_keys_with_which_every_secret_is_the_same_are_refused(key: bytes) -> None:
    peer = client()
    peer.own = key
    with pytest.raises(ProtocolError):
        server().receive(GREETING + peer.hello())


def test_only_sockets_that_this_end_talks_to_get_in() -> None:
    made, peer = server(), client(kind=b"PUB")
    greeted(made, peer)
    with pytest.raises(ProtocolError, match="no DEALER"):
        made.receive(peer.initiate())
    for extra in (b"\x05x", b"\x01x\0\0\0\x09y"):
        made, peer = server(), client()
        greeted(made, peer)
        with pytest.raises(ProtocolError, match="malformed"):
            made.receive(peer.initiate(extra=extra))


def test_keys_of_a_handshake_are_forgotten_after_it() -> None:
    made, _ = linked()
    assert made._secret == made._client == made._cookie == b""
    assert made._keys is None
