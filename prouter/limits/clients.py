"""Which clients share a budget: by address, IPv6 by the network that one customer gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

__all__ = ["client_key"]

_NETWORK = 64
"""Bits of an IPv6 address that count: whoever has one address of such a network has all of them."""


def client_key(peer: str, chain: Sequence[str], is_trusted: Callable[[str], bool]) -> str:
    """Return the key of a client's budgets: its address, or its network with IPv6.

    Args:
        peer: address of the connection, ``unix`` for a unix socket.
        chain: addresses that a trusted peer names, the client first, each followed by the proxy that it came through;
            empty for a peer that is not trusted.
        is_trusted: whether an address is that of a trusted proxy.

    The last address that is no trusted proxy's counts: all before it are claims of the client. A peer whose fields name
    no address counts itself.
    """
    found = peer
    for entry in reversed(chain):
        address = _parsed(entry)
        if address is None:
            break
        found = str(address)
        if not is_trusted(found):
            break
    return _network(found)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> str:
    address = _parsed(text)
    if address is None:
        return text
    return str(ip_network((address, _NETWORK), strict=False)) if address.version == 6 else str(address)
