"""The server's end of a ZMTP connection with the mechanism CURVE, without I/O.

The handshake has four commands. HELLO shows that the client knows the server's public key; WELCOME gives it a key made
for this connection alone; INITIATE proves that the client owns its key pair; READY accepts the
client, or ERROR refuses it. From then on each part travels in a *box* of its own (encrypted and authenticated), with a
counter that the receiver expects. If an attacker changes, repeats, reorders or leaves out a box, the connection ends.

Names are those of the specification: S and C are the permanent public keys of server and client, S' and C' those made
for the connection. Secret keys have small letters.

Source: rfc.zeromq.org/spec/25 and rfc.zeromq.org/spec/26.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from enum import Enum
from hmac import compare_digest

from nacl import bindings as sodium

from prouter.errors import ProtocolError
from prouter.fabric.bounds import PART_OVERHEAD
from prouter.key_pairs import from_bytes
from prouter.transport.zmtp.boxes import TAG, open_box, open_in_place, seal_in_place
from prouter.transport.zmtp.codec import BULKY, MAX_MESSAGE, MAX_PART, Zmtp
from prouter.transport.zmtp.handshakes import (
    COMMAND,
    GREETING_SIZE,
    LONG,
    MORE,
    SHORT,
    frame_head,
    greeting,
    next_command,
    properties,
)
from prouter.transport.zmtp.server_keys import Accepts, ServerKeys

__all__ = ["OVERHEAD", "CurveServer"]

_GREETING = greeting(b"CURVE", server=True)
_KEY = 32
_COUNTER = struct.Struct(">Q")
_LONG_NONCE = 16
"""Random bytes of a long nonce, behind 8 characters that name its use."""

# HELLO: name, version 1.0, zeros against amplification, C', counter, Box[64 zeros](C' -> S).
_HELLO = b"\x05HELLO\x01\x00" + bytes(72)
_HELLO_CLIENT, _HELLO_COUNTER, _HELLO_BOX, _HELLO_SIZE = 80, 112, 120, 200
_HELLO_CONTENT = bytes(64)
# INITIATE: name, cookie, counter, Box[C, nonce of the vouch, vouch, properties](C' -> S').
_INITIATE = b"\x08INITIATE"
_COOKIE = 96
_INITIATE_COUNTER = len(_INITIATE) + _COOKIE
_INITIATE_BOX = _INITIATE_COUNTER + _COUNTER.size
_VOUCH, _PROPERTIES = 48, 128
_MAX_INITIATE = 2048
"""Bytes; it holds a routing id of up to 255."""
# MESSAGE: name, counter, Box[flags, part].
_MESSAGE = b"\x07MESSAGE"
_MESSAGE_HEAD = struct.Struct(">8sQ")
_BOX = _MESSAGE_HEAD.size
OVERHEAD = _BOX + TAG + 1
"""Bytes of a frame beside the part that it carries."""
_NONCE = struct.Struct(">16sQ")
_FROM_CLIENT, _FROM_SERVER = b"CurveZMQMESSAGEC", b"CurveZMQMESSAGES"
_FLAGS = {b"\0": 0, b"\1": MORE, b"\2": COMMAND}
"""Flags of a part, by the first byte in its box."""
_MAX_COMMAND = 255
_COUNTERS = 2**63
"""The counter of a client's INITIATE is smaller. Counters have 64 bits and must not wrap; honest ones begin at 1."""
# Frames with a MESSAGE that has no box yet: flags, length, name, counter, space for the tag, flags of the part.
_SHORT_FRAME = struct.Struct(f">BB8sQ{TAG}x?")
_LONG_FRAME = struct.Struct(f">BQ8sQ{TAG}x?")
_REFUSED = b"\x05ERROR\x03400"
"""What libzmq's clients report as a key that is not accepted (ZAP's status 400)."""


class _Step(Enum):
    """The message that a handshake waits for."""

    GREETING = "greeting"
    HELLO = "hello"
    INITIATE = "initiate"


class CurveServer(Zmtp):
    """Decodes what a client sends, and encodes messages to it.

    Args:
        keys: the server's permanent keys.
        accepts: decides about the client's key.
        peers: types of socket that may be at the other end.
        limit: bytes that are accepted before `trust`, in all; None for an end that is trusted from the beginning.
    """

    __slots__ = (
        "_accepts",
        "_client",
        "_cookie",
        "_heard",
        "_key",
        "_keys",
        "_secret",
        "_sent",
        "_step",
        "peer_key",
    )

    answers = True
    _overhead = OVERHEAD
    # The specification calls MESSAGE a command; libzmq sends it as an ordinary frame, and takes no other.
    _flags = (0, LONG)

    def __init__(self, keys: ServerKeys, accepts: Accepts, *peers: bytes, limit: int | None = None) -> None:
        super().__init__(*peers, limit=limit)
        self.peer_key = ""
        self._keys: ServerKeys | None = keys
        self._accepts: Accepts | None = accepts
        self._step = _Step.GREETING
        self._cookie = self._client = self._secret = b""
        """Between WELCOME and INITIATE: what the client has to repeat, C' and s'."""
        self._key = b""
        """Shared by both ends of this connection."""
        self._heard = self._sent = 0
        """Counters of the last box in each direction."""

    def opening(self, kind: bytes, identity: bytes = b"") -> bytes:
        """Return what this end sends first, the greeting; READY has the socket's type."""
        return _GREETING

    def encode(self, parts: Sequence[bytes]) -> list[bytes]:
        """Encode one message once `ready`, as buffers to send one after the other.

        Raises:
            ProtocolError: a part or the whole is larger than the other end accepts.
        """
        size = len(parts) * PART_OVERHEAD
        for part in parts:
            if len(part) > MAX_PART:
                raise ProtocolError(f"a part of {len(part)} bytes is larger than {MAX_PART}")
            size += len(part)
        if size > MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes is larger than {MAX_MESSAGE}")
        pieces: list[bytes] = []
        boxes: list[tuple[int, int, bytes]] = []
        left, at = len(parts), 0
        for part in parts:
            left -= 1
            self._sent += 1
            length = OVERHEAD + len(part)
            if length <= SHORT:
                head = _SHORT_FRAME.pack(0, length, _MESSAGE, self._sent, left > 0)
            else:
                head = _LONG_FRAME.pack(LONG, length, _MESSAGE, self._sent, left > 0)
            pieces += (head, part)
            at += len(head) + len(part)
            text = 1 + len(part)
            boxes.append((at - text - TAG, text, _NONCE.pack(_FROM_SERVER, self._sent)))
        message = bytearray().join(pieces)
        seal_in_place(message, boxes, self._key)
        return [message] if boxes else []  # type: ignore[list-item]

    def _open(self, data: bytes, start: int, end: int) -> tuple[int, bytes | memoryview]:
        if end - start - OVERHEAD >= BULKY:
            return self._open_room(memoryview(bytearray(data[start:end])))
        nonce = self._nonce(data[start : start + _BOX], end - start)
        text = open_box(data[start + _BOX : end], nonce, self._key)
        return self._heard_flags(text[0], len(text) - 1), text[1:]

    def _open_room(self, body: memoryview) -> tuple[int, memoryview]:
        nonce = self._nonce(body[:_BOX], len(body))
        text = open_in_place(body[_BOX:], nonce, self._key)
        return self._heard_flags(bytes(text[:1]), len(text) - 1), text[1:]

    def _nonce(self, head: bytes | memoryview, size: int) -> bytes:
        """Check the head of a MESSAGE of `size` bytes; return the nonce of its box.

        Raises:
            ProtocolError: this is no MESSAGE, or not the one that comes next.
        """
        heard = self._heard + 1
        if size < OVERHEAD or head != _MESSAGE_HEAD.pack(_MESSAGE, heard):
            if size >= OVERHEAD and head[: len(_MESSAGE)] == _MESSAGE:
                raise ProtocolError("a box of the other end is missing, or comes twice")
            raise ProtocolError("the other end does not send MESSAGE")
        return _NONCE.pack(_FROM_CLIENT, heard)

    def _heard_flags(self, first: bytes, size: int) -> int:
        """Return the flags of a part of `size` bytes, and count its box as heard.

        Raises:
            ProtocolError: there are no such flags.
        """
        flags = _FLAGS.get(first)
        if flags is None or (flags == COMMAND and size > _MAX_COMMAND):
            raise ProtocolError(f"the other end sends a part with flags {first[0]}")
        self._heard += 1
        return flags

    # -- the handshake ------------------------------------------------------------------------------------------------

    def _shake_hands(self, data: bytes) -> int:
        """Read greeting, HELLO and INITIATE; return how much of `data` was read.

        Raises:
            ProtocolError: this end does not talk to such an end.
        """
        at = 0
        if self._step is _Step.GREETING:
            if not self._greeted(data, _GREETING):
                return 0
            at = GREETING_SIZE
            self._step = _Step.HELLO
        while not self.ready:
            found = next_command(data, at, _MAX_INITIATE)
            if found is None:
                break
            command, at = found
            if self._step is _Step.HELLO:
                self._hello(command)
                self._step = _Step.INITIATE
            else:
                self._initiate(command)
        return at

    def _hello(self, command: bytes) -> None:
        """Read HELLO, and have WELCOME sent."""
        if len(command) != _HELLO_SIZE or not command.startswith(_HELLO):
            raise ProtocolError("the other end does not begin with HELLO")
        assert self._keys is not None
        self._client = command[_HELLO_CLIENT:_HELLO_COUNTER]
        counter = command[_HELLO_COUNTER:_HELLO_BOX]
        shared = _shared(self._client, self._keys.secret)
        content = open_box(command[_HELLO_BOX:], b"CurveZMQHELLO---" + counter, shared)
        if content[:] != _HELLO_CONTENT:
            raise ProtocolError("the other end sends a HELLO that holds something")
        public, self._secret = sodium.crypto_box_keypair()
        # This end keeps its state, so the cookie need not carry it: random bytes suffice to show that WELCOME was read.
        self._cookie = os.urandom(_COOKIE)
        nonce = os.urandom(_LONG_NONCE)
        box = sodium.crypto_box_easy_afternm(public + self._cookie, b"WELCOME-" + nonce, shared)
        self._say(b"\x07WELCOME" + nonce + box)

    def _initiate(self, command: bytes) -> None:
        """Read INITIATE, and have READY sent, or ERROR if the client's key is not accepted."""
        if len(command) < _INITIATE_BOX + TAG + _PROPERTIES or not command.startswith(_INITIATE):
            raise ProtocolError("the other end does not go on with INITIATE")
        if not compare_digest(command[len(_INITIATE) : _INITIATE_COUNTER], self._cookie):
            raise ProtocolError("the other end goes on with another handshake's cookie")
        counter = command[_INITIATE_COUNTER:_INITIATE_BOX]
        self._key = _shared(self._client, self._secret)
        content = open_box(command[_INITIATE_BOX:], b"CurveZMQINITIATE" + counter, self._key)[:]
        key = self._vouched(content)
        assert self._accepts is not None
        if not self._accepts(key):
            self._say(_REFUSED)
            raise ProtocolError("the other end's key is not accepted")
        self._introduced(content, _PROPERTIES)
        self.peer_key = key
        self._heard = _COUNTER.unpack(counter)[0]
        if self._heard >= _COUNTERS:
            raise ProtocolError("the other end's counter leaves no room for its messages")
        self._sent = 1
        counter = _COUNTER.pack(self._sent)
        box = sodium.crypto_box_easy_afternm(properties(b"ROUTER", b""), b"CurveZMQREADY---" + counter, self._key)
        self._say(b"\x05READY" + counter + box)
        self._keys = self._accepts = None
        self._cookie = self._client = self._secret = b""

    def _vouched(self, content: bytes) -> str:
        """Return the client's permanent key, in Z85, which vouches for the one that it made for this connection.

        Raises:
            ProtocolError: it does not, or vouches for a connection to another server.
        """
        assert self._keys is not None
        key, nonce = content[:_KEY], content[_KEY:_VOUCH]
        vouched = open_box(content[_VOUCH:_PROPERTIES], b"VOUCH---" + nonce, _shared(key, self._secret))
        if not compare_digest(vouched[:], self._client + self._keys.public):
            raise ProtocolError("the other end's key vouches for another connection")
        return from_bytes(key)

    def _say(self, command: bytes) -> None:
        self.reply += frame_head(COMMAND, len(command)) + command


def _shared(public: bytes, secret: bytes) -> bytes:
    """Return the key that both ends share.

    Raises:
        ProtocolError: `public` is one of the few with which every secret key gives the same.
    """
    try:
        return sodium.crypto_box_beforenm(public, secret)
    except RuntimeError as error:
        raise ProtocolError("the other end's key is none") from error
