"""Addresses as users write them: ``host:port``, with brackets round IPv6 addresses."""

from __future__ import annotations

__all__ = ["split_address"]


def split_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port.

    Raises:
        ValueError: it is something else.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be 'host:port'")
    return host.strip("[]"), int(port)
