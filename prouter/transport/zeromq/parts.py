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
    "RCVMORE",
    "SNDMORE",
    "held_size",
    "queued_size",
    "receive_rest",
    "send_parts",
]

_BULKY = 64 * 1024
"""Bytes from which a part is handed on as a view of libzmq's memory instead of a copy."""
_BUFFER_COST = 96
"""What a part that waits to be sent costs beside its bytes."""
_HEADS = 2
"""Parts before bulk: route and block."""

# Plain integers: pyzmq looks flags of an enum up at every call.
NOBLOCK = int(zmq.NOBLOCK)
SNDMORE = int(zmq.SNDMORE) | NOBLOCK
RCVMORE = int(zmq.RCVMORE)
EVENTS = int(zmq.EVENTS)
POLLIN = int(zmq.POLLIN)


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


def receive_rest(recv: Callable[..., Any], get: Callable[[int], Any], parts: list[Any]) -> int:
    """Append the parts that follow the first; bytes of those after the block.

    Args:
        recv: of the socket.
        get: likewise.
        parts: the first part.
    """
    size = 0
    while get(RCVMORE):
        if len(parts) < _HEADS:
            parts.append(recv(NOBLOCK))
            continue
        part = recv(NOBLOCK, False)
        length = len(part)
        size += length
        parts.append(part.buffer if length >= _BULKY else part.bytes)
    return size


def send_parts(send: Callable[..., Any], parts: Sequence[bytes]) -> None:
    """Hand over a message's parts; only the first of a message can fail with EAGAIN."""
    last = len(parts) - 1
    for index in range(last):
        send(parts[index], SNDMORE)
    send(parts[last], NOBLOCK)
