"""The client's end of CURVE, by hand: what it sends can be damaged, held back and repeated."""

from __future__ import annotations

import os
import struct

from nacl import bindings as sodium

from prouter.key_pairs import KeyPair, to_bytes
from prouter.transport.zmtp.handshakes import COMMAND, frame_head, greeting, next_command, properties

__all__ = ["GREETING", "CurveClient", "frame"]

GREETING = greeting(b"CURVE")


def frame(body: bytes, flags: int = 0) -> bytes:
    """A frame on the wire."""
    return frame_head(flags, len(body)) + body


class CurveClient:
    """One connection's client.

    Args:
        server: the server's public key, in Z85.
        pair: this end's keys.
        kind: type of its socket.
        identity: its routing id.
    """

    def __init__(self, server: str, pair: KeyPair, kind: bytes = b"DEALER", identity: bytes = b"me") -> None:
        self.server = to_bytes(server)
        self.public, self.secret = to_bytes(pair.public), to_bytes(pair.secret)
        self.properties = properties(kind, identity)
        self.own, self._own_secret = sodium.crypto_box_keypair()
        self._key = self._cookie = self._theirs = b""
        self._sent = self._heard = 0
        self._parts: list[bytes] = []
        self._rest = b""

    def _counter(self) -> bytes:
        self._sent += 1
        return struct.pack(">Q", self._sent)

    def hello(self, content: bytes = bytes(64)) -> bytes:
        """The command HELLO in its frame."""
        counter = self._counter()
        box = sodium.crypto_box_easy(content, b"CurveZMQHELLO---" + counter, self.server, self._own_secret)
        return frame(b"\x05HELLO\x01\x00" + bytes(72) + self.own + counter + box, COMMAND)

    def welcomed(self, data: bytes) -> None:
        """Read WELCOME, which `data` ends with."""
        found = next_command(data, len(data) - 170, 168)
        assert found is not None
        body = found[0]
        assert body.startswith(b"\x07WELCOME")
        plain = sodium.crypto_box_open_easy(body[24:], b"WELCOME-" + body[8:24], self.server, self._own_secret)
        self._theirs, self._cookie = plain[:32], plain[32:]

    def initiate(
        self,
        *,
        vouched: bytes | None = None,
        by: bytes | None = None,
        cookie: bytes | None = None,
        extra: bytes = b"",
    ) -> bytes:
        """The command INITIATE in its frame.

        Args:
            vouched: what the vouch says, by default what it has to.
            by: whose secret key makes the vouch, by default this end's.
            cookie: instead of the server's.
            extra: more properties.
        """
        said = vouched if vouched is not None else self.own + self.server
        nonce = os.urandom(16)
        vouch = sodium.crypto_box_easy(said, b"VOUCH---" + nonce, self._theirs, by if by is not None else self.secret)
        self._key = sodium.crypto_box_beforenm(self._theirs, self._own_secret)
        counter = self._counter()
        content = self.public + nonce + vouch + self.properties + extra
        box = sodium.crypto_box_easy_afternm(content, b"CurveZMQINITIATE" + counter, self._key)
        return frame(b"\x08INITIATE" + (cookie if cookie is not None else self._cookie) + counter + box, COMMAND)

    def message(self, *parts: bytes) -> bytes:
        """A message on the wire."""
        return b"".join(self.box(part, index < len(parts) - 1) for index, part in enumerate(parts))

    def box(self, part: bytes, flags: int) -> bytes:
        """One part on the wire, with the flags that go into its box."""
        counter = self._counter()
        box = sodium.crypto_box_easy_afternm(bytes((flags,)) + part, b"CurveZMQMESSAGEC" + counter, self._key)
        return frame(b"\x07MESSAGE" + counter + box)

    def ready(self, data: bytes) -> None:
        """Read READY, with which `data` ends."""
        start = data.rindex(b"\x05READY")
        counter = data[start + 6 : start + 14]
        plain = sodium.crypto_box_open_easy_afternm(data[start + 14 :], b"CurveZMQREADY---" + counter, self._key)
        assert plain.startswith(b"\x0bSocket-Type\0\0\0\x06ROUTER")
        self._heard = struct.unpack(">Q", counter)[0]

    def receive(self, data: bytes) -> list[list[bytes]]:
        """Messages that the server has sent, which are whole with `data`."""
        data = self._rest + data
        messages: list[list[bytes]] = []
        at = 0
        while len(data) - at >= 2:
            start = at + (9 if data[at] & 2 else 2)
            if len(data) < start:
                break
            end = start + (struct.unpack_from(">Q", data, at + 1)[0] if data[at] & 2 else data[at + 1])
            if len(data) < end:
                break
            body, at = data[start:end], end
            counter = body[8:16]
            self._heard += 1
            assert body[:8] == b"\x07MESSAGE"
            assert struct.unpack(">Q", counter)[0] == self._heard
            plain = sodium.crypto_box_open_easy_afternm(body[16:], b"CurveZMQMESSAGES" + counter, self._key)
            self._parts.append(plain[1:])
            if not plain[0]:
                messages.append(self._parts)
                self._parts = []
        self._rest = data[at:]
        return messages
