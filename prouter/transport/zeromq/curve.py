"""Options of CURVE, ZeroMQ's encryption (rfc.zeromq.org/spec/26).

The server has a key pair whose public half clients know; each client has a key pair of its own. Both prove in the
handshake to own their secret keys, and everything after it is encrypted and authenticated.
"""

from __future__ import annotations

from dataclasses import dataclass

import zmq

from prouter.key_pairs import KeyPair
from prouter.transport.zmtp.server_keys import ServerCurve

__all__ = ["ClientCurve", "apply_server_curve"]


def apply_server_curve(curve: ServerCurve, socket: zmq.Socket[bytes]) -> None:
    """Set the options of a socket that will bind."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, curve.pair.secret)


@dataclass(frozen=True, slots=True)
class ClientCurve:
    """What a dialler needs for CURVE.

    Attributes:
        server_key: public key of the server, 40 characters of Z85.
        pair: of this end.
    """

    server_key: str
    pair: KeyPair

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Set the options of a socket that will connect.

        Raises:
            ValueError: one of the keys is none.
        """
        try:
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, self.server_key)
            socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self.pair.public)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.pair.secret)
        except zmq.ZMQError as error:
            raise ValueError("a key has 40 characters of Z85") from error
