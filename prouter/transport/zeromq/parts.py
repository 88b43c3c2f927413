"""Messages as libzmq's sockets take and give them: one part at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_MESSAGE, MAX_PART, PART_OVERHEAD

__all__ = [
    "EVENTS",
    "NOBLOCK",
    "POLLIN",
    "SNDMORE",
    "check_size",
    "fast_calls",
    "held_size",
    "queued_size",
    "receive_rest",
    "send_parts",
]

_BULKY = 64 * 1024
"""Bytes from which a part is handed on as a view of libzmq's memory instead of a copy."""
_BUFFER_COST = 96
"""What a part that waits to be sent costs beside its bytes."""
# Plain integers: pyzmq looks flags of an enum up at every call.
NOBLOCK = int(zmq.NOBLOCK)
SNDMORE = int(zmq.SNDMORE) | NOBLOCK
EVENTS = int(zmq.EVENTS)
POLLIN = int(zmq.POLLIN)
POLLOUT = int(zmq.POLLOUT)


def held_size(parts: Sequence[Any]) -> int:
    """What a message that arrived counts for, bytes."""
    return sum(map(len, parts)) + len(parts) * PART_OVERHEAD


def queued_size(parts: Sequence[bytes]) -> int:
    """What a message that waits to be sent costs, bytes."""
    return sum(map(len, parts)) + len(parts) * _BUFFER_COST


def check_size(parts: Sequence[bytes]) -> None:
    """Refuse what the other end would not accept.

    Raises:
        ProtocolError: a part or the whole message is too large.
    """
    for part in parts:
        if len(part) > MAX_PART:
            raise ProtocolError(f"a part of {len(part)} bytes is larger than {MAX_PART}")
    size = held_size(parts)
    if size > MAX_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes is larger than {MAX_MESSAGE}")


def fast_calls(socket: zmq.Socket[bytes]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`recv` and `send` of a socket without the checks for drafts around them, which take longer than the calls."""
    plain: Any = super(zmq.Socket, socket)
    return plain.recv, plain.send


def receive_rest(recv: Callable[..., Any], frame: zmq.Frame, parts: list[Any]) -> int:
    """Append the parts that follow a message's first; the bytes of all large ones.

    A frame says for nothing whether another one follows; asking the socket takes four times as long as a part.

    Args:
        recv: of the socket.
        frame: the first part.
        parts: it, as bytes.
    """
    size = 0
    more = frame.more
    while more:
        frame = recv(NOBLOCK, False)
        more = frame.more
        length = len(frame)
        if length >= _BULKY:
            size += length
            parts.append(frame.buffer)
        else:
            parts.append(frame.bytes)
    return size


def send_parts(send: Callable[..., Any], parts: Sequence[bytes]) -> None:
    """Hand over a message's parts; only the first of a message can fail with EAGAIN."""
    last = len(parts) - 1
    for index in range(last):
        send(parts[index], SNDMORE)
    send(parts[last], NOBLOCK)
