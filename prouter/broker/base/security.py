"""What a connection proves about its peer before the peer says anything."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PLAIN", "Security"]


@dataclass(frozen=True, slots=True)
class Security:
    """How a connection is protected.

    Attributes:
        public_key: the peer's, proved in CURVE's handshake, in Z85; empty when the connection is not encrypted.
        local: whether the peer came through a unix socket, whose mode says who may.
    """

    public_key: str = ""
    local: bool = False

    @property
    def encrypted(self) -> bool:
        """Whether nobody on the way can read or change what passes."""
        return bool(self.public_key)


PLAIN = Security()
"""A tcp connection without encryption."""
