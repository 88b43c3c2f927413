"""Addresses as users write them: ``host:port``, with brackets round IPv6 addresses."""

from __future__ import annotations

__all__ = ["split_address"]


def split_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port.

    Raises:
        ValueError: it is something else.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        place = rest.partition("/")[0] or "host:port"
        raise ValueError(f"must be 'host:port', not a URL; write '{place}' without '{scheme}://'")
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be 'host:port'")
    bare = host[1:-1] if host[0] == "[" and host[-1] == "]" else host
    if not bare or not bare.isprintable() or any(c in "[]/@?# \\" for c in bare):
        raise ValueError("must be 'host:port', with the name or address of a machine and nothing else before the port")
    return bare, int(port)
