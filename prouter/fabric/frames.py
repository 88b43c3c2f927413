"""Frames, the unit of the protocol, and how a ZeroMQ message carries them.

A message carries any number of frames for one destination. Its first part, the *block*, holds the frames' headers, each
followed by its payload. A payload of `BULK_MIN` bytes or more is a further part of the message instead, so that nobody
has to copy it; its frame has the flag `BULK`, and such parts have the order of their frames. Layout of a header,
little-endian, 32 bytes::

    type u8 | flags u8 | reserved u16 | payload length u32 | stream id u64 | offset u64 | ack u64
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from prouter.errors import ProtocolError
from prouter.fabric.bounds import MAX_FRAMES, MAX_PART, MAX_PAYLOAD

__all__ = [
    "ACK",
    "ASK",
    "BULK_MIN",
    "BYE",
    "CALL",
    "DATA",
    "EVENT",
    "FIN",
    "HEADER",
    "HELLO",
    "MAX_FRAMES",
    "MAX_PAYLOAD",
    "OPEN",
    "PING",
    "PONG",
    "REFUSE",
    "REPLY",
    "RESET",
    "RESUME",
    "STREAM_TYPES",
    "VERSION",
    "WELCOME",
    "Frame",
    "batches",
    "decode",
    "encode",
    "pack_body",
    "unpack_body",
]

VERSION = 1
"""Protocol version, sent in HELLO as ``protocol``; a peer with another version is refused."""

# Session frames.
HELLO = 1
"""First frame of the end that dials: identity, token, incarnation."""
WELCOME = 2
"""Accepts a HELLO."""
REFUSE = 3
"""Refuses a HELLO with a reason; nothing follows."""
PING = 4
"""Heartbeat: asks for a PONG. Any other frame shows as well that its sender is alive."""
PONG = 5
"""Answers a PING with the number that the PING had, and tells how long the other side may wait with the next one."""
BYE = 6
"""The sender closes the session on purpose."""

# Call frames.
CALL = 16
"""A request with a call id."""
REPLY = 17
"""The reply to a CALL."""
EVENT = 18
"""A notification without a reply."""

# Stream frames.
OPEN = 32
"""Opens a stream; the payload names what it connects to."""
DATA = 33
"""Bytes at an offset, and an acknowledgement."""
ACK = 34
"""An acknowledgement alone."""
RESET = 35
"""Ends both directions of a stream at once, with a reason."""
RESUME = 36
"""After a lost path: how far the sender has received (`offset`) and consumed (`ack`) a stream. For stream 0: which
streams it has."""

STREAM_TYPES = frozenset({OPEN, DATA, ACK, RESET, RESUME})

# Flags.
FIN = 1
"""On DATA: the sender writes nothing after this payload."""
BULK = 2
"""The payload is the message's next bulk part."""
ASK = 4
"""On RESUME: asks the receiver for its own position in return."""

BULK_MIN = 4096
"""Payload bytes from which a frame gets a message part of its own; to copy fewer costs less than one more part."""

_MESSAGE_FRAMES = 4096
"""Frames in a message that `batches` makes, at most."""
_MESSAGE_BYTES = 256 * 1024
"""Payload bytes in such a message with several frames, at most. A message shows that its sender is alive only when all
of it has arrived: with larger ones, a busy link of 1 Mbit/s would be taken for a dead one."""

HEADER = struct.Struct("<BBHIQQQ")
_HEADER_SIZE = HEADER.size
_pack = HEADER.pack
_unpack_from = HEADER.unpack_from


class Frame(NamedTuple):
    """One frame.

    Attributes:
        type: one of this module's frame types.
        flags: `FIN`, `ASK` or 0. `BULK` belongs to the encoding: `encode` sets it and `decode` removes it.
        sid: stream id, 0 for session and call frames.
        offset: DATA: position of the first payload byte in its direction. RESUME: position received so far. OPEN, ACK:
            bytes of the window. PING, PONG: number of the PING.
        ack: DATA, ACK, RESUME, RESET: position consumed so far in the other direction. PONG of a listener: milliseconds
            between heartbeats, if they are to be longer than the dialler's own.
        payload: the bytes, or a msgpack map.
    """

    type: int
    flags: int = 0
    sid: int = 0
    offset: int = 0
    ack: int = 0
    payload: bytes = b""


def batches(frames: list[Frame]) -> Iterator[list[Frame]]:
    """Yield the frames in order, in lists that are good sizes for a message each.

    A frame that is larger than a message should be is alone in its list.
    """
    start = size = 0
    for index, frame in enumerate(frames):
        size += len(frame.payload)
        if index > start and (size > _MESSAGE_BYTES or index - start >= _MESSAGE_FRAMES):
            yield frames[start:index]
            start, size = index, len(frame.payload)
    if start < len(frames):
        yield frames[start:] if start else frames  # mostly all fit: no copy


def encode(frames: Sequence[Frame]) -> list[bytes]:
    """Return the parts of one message that carries `frames` in order.

    Raises:
        ProtocolError: a payload is larger than `MAX_PAYLOAD`, there are more than `MAX_FRAMES`, or those that share the
            block have more than `MAX_PART` bytes.
    """
    if len(frames) > MAX_FRAMES:
        raise ProtocolError(f"{len(frames)} frames are more than one message may have ({MAX_FRAMES})")
    block: list[bytes] = []
    parts: list[bytes] = [b""]  # the block, which is joined last, then bulk parts
    for kind, flags, sid, offset, ack, payload in frames:
        length = len(payload)
        if length >= BULK_MIN:
            if length > MAX_PAYLOAD:
                raise ProtocolError(f"a payload of {length} bytes is larger than {MAX_PAYLOAD}")
            block.append(_pack(kind, flags | BULK, 0, length, sid, offset, ack))
            parts.append(payload)
        else:
            block.append(_pack(kind, flags, 0, length, sid, offset, ack))
            if length:
                block.append(payload)
    parts[0] = joined = b"".join(block)
    if len(joined) > MAX_PART:
        raise ProtocolError(f"{len(joined)} bytes of small frames are more than one message may have ({MAX_PART})")
    return parts


def decode(parts: Sequence[bytes]) -> list[Frame]:
    """Return the frames of a message.

    Raises:
        ProtocolError: the parts are no well-formed message.
    """
    # Peers may be hostile: every length is checked against what is there before it is used.
    if not parts:
        raise ProtocolError("empty message")
    block = parts[0]
    size = len(block)
    position = 0
    bulk = 0
    frames: list[Frame] = []
    while position < size:
        if len(frames) == MAX_FRAMES:
            raise ProtocolError("too many frames in one message")
        if size - position < _HEADER_SIZE:
            raise ProtocolError("truncated frame header")
        # Unknown types, flags and the reserved field are left to the receiver: later versions may use them.
        kind, flags, _reserved, length, sid, offset, ack = _unpack_from(block, position)
        position += _HEADER_SIZE
        if flags & BULK:
            bulk += 1
            if bulk >= len(parts) or len(parts[bulk]) != length or length > MAX_PAYLOAD:
                raise ProtocolError("bulk part missing or of the wrong length")
            frames.append(Frame(kind, flags & ~BULK, sid, offset, ack, parts[bulk]))
            continue
        end = position + length
        if end > size or length > MAX_PAYLOAD:
            raise ProtocolError("truncated payload, or one that is too large")
        frames.append(Frame(kind, flags, sid, offset, ack, block[position:end]))
        position = end
    # A part that no frame refers to would let a peer fill memory with what is never looked at.
    if bulk != len(parts) - 1:
        raise ProtocolError("bulk part without a frame")
    return frames


def pack_body(body: dict[str, Any]) -> bytes:
    """Encode the payload of a session, call or event frame."""
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


def unpack_body(payload: bytes) -> dict[str, Any]:
    """Decode the payload of a session, call or event frame.

    Raises:
        ProtocolError: it is no msgpack map with text keys.
    """
    try:
        body = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"malformed body: {error}") from error
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise ProtocolError("a body must be a map with string keys")
    return body
