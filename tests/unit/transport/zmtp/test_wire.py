"""Connections on the own loop: what is read of peers that come and go."""

from __future__ import annotations

import socket

import pytest

from prouter.transport.zmtp.codec import encode_message
from prouter.transport.zmtp.handshakes import opening
from prouter.transport.zmtp.wire import Wire


def test_the_last_words_of_a_peer_are_heard_though_it_has_left_before_anything_of_it_was_read() -> None:
    """As an agent's death notice, on a busy router."""
    ours, theirs = socket.socketpair()
    wire = Wire(ours, b"ROUTER", b"DEALER")
    with theirs:
        theirs.sendall(opening(b"DEALER", b"me") + b"".join(encode_message([b"", b"goodbye"])))
    assert wire.receive() == [[b"", b"goodbye"]]
    assert wire.identity == b"me"
    with pytest.raises(ConnectionResetError):
        wire.receive()
    wire.close()
