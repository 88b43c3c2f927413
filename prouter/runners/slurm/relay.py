"""The agent's end of one connection to a job's server on a node (`prouter.runners.slurm.node.relays`)."""

from __future__ import annotations

import contextlib
import logging
import socket as plain_socket
from typing import Any

import gevent
from gevent import socket

from prouter.errors import JobUnreachable
from prouter.keeper.wire import Decoder, encode
from prouter.runners.slurm.node.relays import PIECE
from prouter.runners.sockets import Address

__all__ = ["Broken", "use"]

_MOST = 65536
_log = logging.getLogger("prouter.runner")


class Broken(Exception):
    """The spare connection was not usable: its node or the network is gone. Another one may work."""


def use(spare: Any, address: Address, timeout: float, *, job: str, assigned: bool) -> plain_socket.socket:
    """Have the node connect to a server of the job.

    Args:
        spare: a TLS connection that the node has opened.
        timeout, assigned: as of `Runner.connect`.

    Returns:
        One end of a socketpair(2), which is as good as the connection.

    Raises:
        OSError, JobUnreachable: as of `Runner.connect`.
        Broken: the node did not answer.
    """
    target: dict[str, Any] = {"path": address.path} if address.path is not None else {}
    if address.path is None:
        target |= {"host": address.host, "port": address.port}
    try:
        spare.settimeout(timeout + 1.0)
        spare.sendall(encode({**target, "timeout": timeout, "assigned": assigned}))
        answer, rest = _answer(spare)
        spare.settimeout(None)
    except (OSError, ValueError) as error:
        spare.close()
        raise Broken(str(error)) from None
    if "connected" in answer:
        ours, theirs = plain_socket.socketpair()
        theirs.setblocking(False)
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=ours.detach())
        gevent.spawn(_relay, spare, inner, rest)
        return theirs
    spare.close()
    if "refused" in answer:
        raise JobUnreachable(str(answer["refused"]), job=job)
    raise OSError(int(answer["errno"]), f"{address}: connection failed")


def _answer(spare: Any) -> tuple[dict[str, Any], bytes]:
    """The node's answer. Nothing follows it before the job's server has sent something, but that may be at once."""
    data = b""
    while True:
        part = spare.recv(_MOST)
        if not part:
            raise ConnectionResetError("the node has closed the connection")
        data += part
        length = int.from_bytes(data[:4], "little") + 4
        if len(data) >= max(5, length):
            return Decoder().feed(data[:length])[0], data[length:]


def _relay(spare: Any, inner: Any, rest: bytes) -> None:
    directions: list[gevent.Greenlet[..., bool]]
    directions = [gevent.spawn(_to_node, inner, spare), gevent.spawn(_to_client, spare, inner, rest)]
    try:
        # When one direction breaks, both end; when one ends in order, the other goes on.
        for done in gevent.iwait(directions):
            if not done.value:
                break
    finally:
        gevent.killall(directions)
        spare.close()
        inner.close()


def _to_node(source: Any, sink: Any) -> bool:
    with contextlib.suppress(OSError):
        while data := source.recv(_MOST):
            sink.sendall(PIECE.pack(len(data)) + data)
        sink.sendall(PIECE.pack(0))
        return True
    return False


def _to_client(source: Any, sink: Any, data: bytes) -> bool:
    """Pass on pieces until the one of length 0."""
    received = bytearray(data)
    with contextlib.suppress(OSError):
        while True:
            while len(received) >= PIECE.size:
                (length,) = PIECE.unpack_from(received)
                if length == 0:
                    sink.shutdown(socket.SHUT_WR)
                    return True
                if len(received) < PIECE.size + length:
                    break
                sink.sendall(bytes(received[PIECE.size : PIECE.size + length]))
                del received[: PIECE.size + length]
            part = source.recv(4 * _MOST)
            if not part:
                return False
            received += part
    return False
