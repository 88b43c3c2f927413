"""CURVE handshakes at a listener: genuine ones that a relay damages, and openings made up from pieces of ZMTP."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from random import Random

from prouter.errors import ProtocolError
from prouter.keys.files import make_pair
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection
from prouter.transport.zmtp.server_keys import ServerCurve
from prouter.transport.zmtp.tcp_listener import TcpListener
from tests.fuzz.damage import damaged, pieces
from tests.unit.transport.zmtp.test_tcp_listener import Stand, connected

__all__ = ["handshakes"]

_LIMIT = 64 * 1024
_QUIET = 0.05
"""Seconds without a byte after which a damaged handshake counts as over."""
_WORDS = [b"CURVE", b"NULL", b"PLAIN", b"HELLO", b"WELCOME", b"INITIATE", b"READY", b"ERROR", b"MESSAGE", b"\x05HELLO"]
_GENUINE = b"genuine"


def _greeting(random: Random) -> bytes:
    """The greeting of ZMTP 3 (rfc.zeromq.org/spec/23) with a mechanism, then commands."""
    mechanism = random.choice(_WORDS).ljust(20, b"\0")
    data = b"\xff" + bytes(8) + b"\x7f\x03" + random.choice([b"\0", b"\1"]) + mechanism + random.choice([b"\0", b"\1"])
    data += bytes(31)
    for _ in range(random.randrange(4)):
        name = random.choice(_WORDS)
        body = bytes([len(name)]) + name + random.randbytes(random.choice([0, 2, 80, 192, 194, 248, 300]))
        size = bytes([len(body) % 256]) if len(body) < 256 else len(body).to_bytes(8, "big")
        data += (b"\x04" if len(body) < 256 else b"\x06") + size + body
    return damaged(random, data, _WORDS) if random.random() < 0.5 else data


class _Relay:
    """Passes one connection on to `target`, damaging what the client sends."""

    def __init__(self, target: str, random: Random) -> None:
        self._random = random
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.endpoint = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._ends: list[socket.socket] = []
        self._left = random.randrange(1, 5)
        """Which of the client's pieces is damaged."""
        self.heard = time.monotonic()

    def pump(self) -> None:
        """Pass on what has arrived."""
        if not self._ends:
            with suppress(BlockingIOError):
                client, _ = self._server.accept()
                self._ends = [client, socket.create_connection(self._target, 5)]
                for end in self._ends:
                    end.setblocking(False)
            return
        for source, sink in (self._ends, self._ends[::-1]):
            with suppress(OSError):
                data = source.recv(65536)
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    continue
                self.heard = time.monotonic()
                if source is self._ends[0]:
                    self._left -= 1
                    data = damaged(self._random, data, _WORDS) if self._left == 0 else data
                sink.sendall(data)

    def close(self) -> None:
        for sock in (self._server, *self._ends):
            sock.close()


def _quiet(stand: Stand, relay: _Relay, dealer: DealerConnection) -> Callable[[], bool]:
    def over() -> bool:
        relay.pump()
        try:
            dealer.receive()
        except (OSError, ProtocolError):
            return True
        return time.monotonic() - relay.heard > _QUIET

    return over


@contextmanager
def handshakes() -> Iterator[Callable[[Random], None]]:
    """A listener with CURVE; each case damages a handshake, then lets an honest peer connect."""
    pair = make_pair()
    stand = Stand(TcpListener("127.0.0.1", 0, curve=ServerCurve(pair), limit=_LIMIT))
    endpoint = stand.listener.endpoint

    def made_up(random: Random) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), 5) as sock:
            for piece in pieces(random, _greeting(random)):
                with suppress(OSError):
                    sock.sendall(piece)
                stand.turn()

    def relayed(random: Random) -> None:
        with closing(_Relay(endpoint, random)) as relay:
            dealer = DealerConnection(relay.endpoint, curve=ClientCurve(pair.public, make_pair()))
            with closing(dealer):
                dealer.queue([b"", _GENUINE])
                with suppress(OSError, ProtocolError):
                    dealer.flush()
                stand.until(_quiet(stand, relay, dealer))

    def case(random: Random) -> None:
        if random.random() < 0.5:
            made_up(random)
        else:
            relayed(random)
        honest = os.urandom(8)
        dealer = DealerConnection(endpoint, curve=ClientCurve(pair.public, make_pair()))
        with closing(dealer):
            failure = connected(stand, dealer)
            assert failure is None, failure
            dealer.queue([b"", honest])
            dealer.flush()
            stand.until(lambda: any([bytes(p) for p in m][-1:] == [honest] for ms in stand.heard.values() for m in ms))
        said = {bytes(part) for messages in stand.heard.values() for parts in messages for part in parts}
        assert said <= {b"", _GENUINE, honest}, said
        for connection in list(stand.heard):
            stand.heard[connection].clear()
            if connection in stand.ended:
                del stand.heard[connection], stand.ended[connection]
                stand.connections.remove(connection)

    with closing(stand):
        yield case
