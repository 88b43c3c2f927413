"""The death notice: an agent's last message to its routers, sent by a process of its own after the agent has died.

A router cannot tell a dead agent's closed connection from one that the network broke, so it waits for the agent to come
back. The keeper knows better. It runs the command that the agent left (`notice_for`) once the agent has died and its
jobs have ended: ``python -m prouter.agent.links.death_notice``, with routers, tokens and keys on stdin.

The process uses the project's ordinary transports, encryption included, but no event loop: each router gets a thread,
which blocks. What fails is printed, one line for each router, and the keeper logs it.
"""

from __future__ import annotations

import _socket
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prouter.addresses import router_endpoint, split_address, tcp_endpoint
from prouter.errors import ProtocolError
from prouter.fabric.frames import HELLO, VERSION, Frame, encode, pack_body
from prouter.key_pairs import KeyPair
from prouter.process.cores import forbid_inspection
from prouter.transport.connection import Connection
from prouter.transport.zeromq.context import destroy_context
from prouter.transport.zeromq.curve import ClientCurve
from prouter.transport.zeromq.dealer import DealerConnection
from prouter.transport.zmtp.wire import Wire

__all__ = ["Command", "deliver", "main", "notice_for"]

_TIMEOUT = 2.0
"""Seconds for one attempt to connect and hand the message over, and for libzmq to send it."""


@dataclass(frozen=True, slots=True)
class Command:
    """A process that the keeper is to start.

    Attributes:
        argv: the program and its arguments.
        environment: variables that it needs beside those of the keeper.
        input: what it reads from stdin; it holds secrets, which must not be logged or show up in a process list.
    """

    argv: list[str]
    environment: dict[str, str]
    input: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Router:
    """A router to be told.

    Attributes:
        address: ``HOST:PORT`` or ``ipc://PATH``.
        keys: public keys that it may have; none for a link without encryption.
        message: parts of the message.
    """

    address: str
    keys: tuple[str, ...]
    message: list[bytes]


def notice_for(routers: Iterable[Any], pair: KeyPair | None, *, uid: str, incarnation: str) -> Command:
    """Return the command that tells `routers` of this agent's death.

    Args:
        routers: with ``address``, ``keys`` and ``token`` each (`prouter.keys.known_routers.KnownRouter`).
        pair: this agent's own key pair; None without encryption.
        uid: of the agent.
        incarnation: likewise.
    """
    body = {
        "uid": uid,
        "incarnation": incarnation,
        "pair": [pair.public, pair.secret] if pair is not None else None,
        "routers": [{"address": one.address, "keys": list(one.keys), "token": one.token} for one in routers],
    }
    # The keeper runs without site packages and in "/": the process is told where this one found its modules.
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    argv = [sys.executable, "-X", "utf8", "-m", __name__]
    return Command(argv, {"PYTHONPATH": places, "PYTHONDONTWRITEBYTECODE": "1"}, json.dumps(body))


def deliver(router: str, parts: Sequence[bytes], curve: ClientCurve | None = None) -> None:
    """Send one message to the router at ``HOST:PORT`` or ``ipc://PATH``. Blocks for a few seconds at most.

    The message is on its way to the router's kernel when `destroy_context` returns afterwards.

    Raises:
        OSError: the router cannot be reached or does not take the message.
        ProtocolError: what answers is no router, or does not accept the key.
    """
    failure: Exception = ConnectionError("the name has no address")
    for connection in _connections(router, curve):
        try:
            _hand_over(connection, parts)
        except (OSError, ProtocolError) as error:
            failure = error
            connection.close()
        else:
            connection.finish(_TIMEOUT)
            return
    raise failure


def _connections(router: str, curve: ClientCurve | None) -> Iterator[Connection]:
    """Start a connection to each address of a router, one after the other."""
    endpoint = router_endpoint(router)
    if endpoint.startswith("ipc://"):
        sock = _socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(endpoint.removeprefix("ipc://"))
            yield Wire(sock, b"DEALER", b"ROUTER")
        finally:
            sock.close()
        return
    host, port = split_address(router)
    for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        yield DealerConnection(tcp_endpoint(str(entry[4][0]), port), curve=curve, timeout=_TIMEOUT)


def _hand_over(connection: Connection, parts: Sequence[bytes]) -> None:
    """Wait until a connection is established, and give it a message."""
    deadline = time.monotonic() + _TIMEOUT
    poll = select.poll()
    queued = False
    while not queued or connection.blocked:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer")
        poll.register(connection.fd, select.POLLIN | (select.POLLOUT if connection.blocked else 0))
        poll.poll(0 if connection.more else left * 1000)
        connection.receive()
        if connection.ready and not queued:
            connection.queue(parts)
            queued = True
        connection.flush()


def _tell(router: _Router, pair: KeyPair | None) -> None:
    """Deliver the notice to a router, with each of its keys until one is right; print why it fails."""
    curves = [ClientCurve(key, pair) for key in router.keys] if pair is not None else []
    failure: Exception | None = None
    for curve in curves or (None,):
        try:
            deliver(router.address, router.message, curve)
        except (OSError, ValueError, ProtocolError) as error:
            failure = error
        else:
            return
    print(f"event=death_notice_not_delivered router={router.address} error={str(failure)!r}", flush=True)


def _read(text: str) -> tuple[list[_Router], KeyPair | None]:
    """Read what `notice_for` wrote."""
    body = json.loads(text)
    about = {"kind": "obituary", "uid": body["uid"], "incarnation": body["incarnation"], "protocol": VERSION}
    routers = []
    for entry in body["routers"]:
        frame = Frame(HELLO, payload=pack_body({**about, "token": entry["token"]}))
        routers.append(_Router(entry["address"], tuple(entry["keys"]), [b"", *encode([frame])]))
    return routers, KeyPair(*body["pair"]) if body["pair"] is not None else None


def main() -> None:
    """Tell all routers of stdin at once, and return when each has got the notice or had time to take it."""
    forbid_inspection()
    routers, pair = _read(sys.stdin.read())
    threads = [threading.Thread(target=_tell, args=(router, pair)) for router in routers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    destroy_context(_TIMEOUT)


if __name__ == "__main__":
    main()
