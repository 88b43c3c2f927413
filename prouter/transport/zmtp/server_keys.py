"""Settings of a listener with CURVE: its key pair, and which clients it accepts (rfc.zeromq.org/spec/26)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prouter.key_pairs import KeyPair, to_bytes

__all__ = ["Accepts", "ServerCurve", "ServerKeys"]

Accepts = Callable[[str], bool]
"""Whether a client with this public key may connect; called on the process's own loop, once per handshake."""


def _anybody(key: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ServerCurve:
    """What a listener needs for CURVE.

    Attributes:
        pair: of this end.
        accepts: which clients may connect; by default any that knows the server's public key.
    """

    pair: KeyPair
    accepts: Accepts = _anybody


class ServerKeys:
    """A listener's permanent keys as bytes, decoded once because that takes longer than using them.

    Args:
        pair: of this end.

    Raises:
        ValueError: a key is malformed.
    """

    __slots__ = ("public", "secret")

    def __init__(self, pair: KeyPair) -> None:
        self.public = to_bytes(pair.public)
        self.secret = to_bytes(pair.secret)
