"""What a peer's useless frames cost this end."""

from __future__ import annotations

__all__ = ["Strays"]

_COSTLY = 4096
"""Useless bytes, received or resent, that cost about as much as a frame."""
_COSTLY_ROSTER = 64
"""Bytes of a roster that cost as much: each eight of them are looked up on their own."""
_TOO_MANY = 100_000
"""Count above which this end neither resends nor reads rosters for the peer. The owner of the mux normally ends the
path long before; this bounds the work within one message."""


class Strays:
    """Counts frames that led to no stream, brought nothing new or made this end resend.

    A correct peer causes some of them after a lost path. A peer that causes very many wastes this end's processor, on
    purpose or not; the owner of the mux compares the count with a rate and ends the path.

    Attributes:
        count: useless frames; large ones count as several. The owner starts again from 0 whenever it likes.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    @property
    def too_many(self) -> bool:
        """Whether requests of the peer to resend are ignored by now."""
        return self.count > _TOO_MANY

    def add(self, size: int = 0) -> None:
        """Count a frame with `size` useless bytes."""
        self.count += 1 + size // _COSTLY

    def add_roster(self, size: int) -> None:
        """Count a roster of `size` bytes."""
        self.count += 1 + size // _COSTLY_ROSTER
