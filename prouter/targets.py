"""Where the router connects to on behalf of its users: ``control.allow_targets``.

Everything that a user names and the router connects to passes here, with the address that it connects to: a name says
nothing, because whoever owns it decides what it stands for, at each lookup anew. So who connects looks a name up once,
asks `Targets.usable`, and connects to what that returns.

IPv6 has several forms for an IPv4 address that some router on the way unpacks. An address counts as forbidden if any
reading of it is. Sources: RFC 4291 (IPv6), 3056 (6to4), 4380 (Teredo), 5214 (ISATAP), 6052 and 8215 (NAT64), 7915
(SIIT).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from prouter.addresses import join_address
from prouter.errors import Forbidden
from prouter.host_names import check_pattern

__all__ = ["Found", "Targets", "check_target", "is_of_this_machine"]

KEY = "control.allow_targets"
_ANY = "*"
_WITH_PORTS = re.compile(r"(.*):([0-9]{1,5})(?:-([0-9]{1,5}))?", re.DOTALL)
_MOST_PORT = 65535

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Found = tuple[int, Any]
"""Family, and what ``connect`` takes: the address as text, the port, and more with IPv6."""

_SPECIAL: tuple[tuple[Network, str], ...] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("169.254.0.0/16", "a link-local address"),
        ("fe80::/10", "a link-local address"),
        ("0.0.0.0/8", "an unspecified address"),
        ("::/128", "an unspecified address"),
        ("224.0.0.0/4", "a multicast address"),
        ("ff00::/8", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("fd00:ec2::254/128", "the address of a cloud's metadata"),  # Amazon
        ("fd20:ce::254/128", "the address of a cloud's metadata"),  # Google
        ("168.63.129.16/32", "the address of a cloud's metadata"),  # Azure
        ("192.0.0.192/32", "the address of a cloud's metadata"),  # Oracle
        ("100.100.100.200/32", "the address of a cloud's metadata"),  # Alibaba
    )
)
_NAT64, _LOCAL_NAT64 = IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48")
_COMPATIBLE, _TRANSLATED = IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96")
_ISATAP = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))


@dataclass(frozen=True)
class _Rule:
    """One entry: a network, or a name (``*`` for everything), and a range of ports."""

    network: Network | None
    name: str
    low: int
    high: int

    def covers(self, name: str, address: Address, port: int) -> bool:
        """Whether the entry names this address and port; `name` is what the user wrote."""
        if not self.low <= port <= self.high:
            return False
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        if self.name == _ANY:
            return True
        if not (name == self.name or (self.name.startswith("*.") and name.endswith(self.name[1:]))):
            return False
        # Whoever owns the name could have it stand for this machine.
        return not _is_loopback(address) or name == "localhost" or name.endswith(".localhost")

    @property
    def exact(self) -> bool:
        """Whether the entry is one address or name, with its one port."""
        one = self.network.num_addresses == 1 if self.network is not None else not self.name.startswith(_ANY)
        return one and self.low == self.high

    def is_within(self, network: Network) -> bool:
        """Whether the entry is a part of this network, which it therefore means."""
        return self.network is not None and self.network.version == network.version and _contains(network, self.network)


def check_target(text: str) -> str:
    """Return an entry of ``control.allow_targets`` as it was given.

    Raises:
        ValueError: it is neither ``*``, a network, an address nor a pattern of names, with or without ports.
    """
    _rule(text)
    return text


def is_of_this_machine(address: Address) -> bool:
    """Whether connections to the address end at this machine. Sends nothing.

    The kernel takes an address of this machine as source for packets to itself (ip(7), udp(7)).
    """
    if _is_loopback(address):
        return True
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ip_address(probe.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False


class Targets:
    """Decides what the router may connect to for a user.

    Args:
        entries: as `check_target` accepts them; with none, everything but special addresses and the router itself.
        own_ports: gives the TCP ports on which the router itself listens.
        is_own: whether an address is this machine's.
    """

    def __init__(
        self,
        entries: Iterable[str] = (),
        own_ports: Callable[[], Collection[int]] = tuple,
        is_own: Callable[[Address], bool] = is_of_this_machine,
    ) -> None:
        self._rules = [_rule(entry) for entry in entries]
        self._own_ports = own_ports
        self._is_own = is_own

    def usable(self, host: str, found: Iterable[Found]) -> list[Found]:
        """Return those of a host's addresses that may be connected to, in order.

        Args:
            host: the name or address as the user wrote it.
            found: what `socket.getaddrinfo` says of it: each one's family, and what ``connect`` takes.

        Raises:
            Forbidden: none may; the code is ``target_forbidden``.
        """
        usable, refusals = [], []
        for family, address in found:
            refusal = self.why_not(host, address[0], address[1])
            if refusal:
                refusals.append(refusal)
            else:
                usable.append((family, address))
        if refusals and not usable:
            raise Forbidden(refusals[0], code="target_forbidden")
        return usable

    def why_not(self, host: str, address: str, port: int) -> str:
        """Return why the router does not connect to an address; empty if it may.

        Args:
            host: the name or address as the user wrote it.
            address: the IP address that it stands for.
        """
        found = _parsed(address)
        name = host.lower().rstrip(".")
        readings = (found, *_embedded(found))
        rules = [rule for rule in self._rules if rule.covers(name, found, port)]
        for network, what in _SPECIAL:
            if any(_is_in(reading, network) for reading in readings) and not any(r.is_within(network) for r in rules):
                return _text(name, found, port, f"it is {what}")
        own = port in self._own_ports() and any(self._is_own(reading) for reading in readings)
        if own and not any(rule.exact for rule in rules):
            return _text(name, found, port, "it is a port of the router itself")
        if self._rules and not rules:
            return _text(name, found, port, "it is not listed")
        return ""


def _text(name: str, address: Address, port: int, why: str) -> str:
    shown = join_address(str(address), port)
    of = "" if name in (str(address), f"[{address}]") else f", an address of '{name}'"
    return f"the router does not connect to {shown}{of}: {why} (setting {KEY} of the router)"


def _rule(text: str) -> _Rule:
    """Parse an entry.

    Raises:
        ValueError: it is none.
    """
    place, low, high = text, 1, _MOST_PORT
    bare = text.count(":") > 1 and not text.startswith("[")  # an IPv6 address or network without ports
    ports = None if bare else _WITH_PORTS.fullmatch(text)
    if ports is not None:
        place, low = ports[1], int(ports[2])
        high = int(ports[3] or low)
    if not 0 < low <= high <= _MOST_PORT:
        raise ValueError(f"'{text}': ports are numbers between 1 and {_MOST_PORT}, the lower one first")
    place = place[1:-1] if place.startswith("[") and place.endswith("]") else place
    try:
        network = ip_network(place)
    except ValueError:
        network = None
    if network is not None:
        return _Rule(_plain_network(network), "", low, high)
    if "/" in place or place.rstrip(".").rpartition(".")[2].isdigit():  # a short form of an address is no name
        raise _wrong(text)
    try:
        return _Rule(None, check_pattern(place), low, high)
    except ValueError:
        raise _wrong(text) from None


def _wrong(text: str) -> ValueError:
    return ValueError(
        f"'{text}' is no target: give a network such as '10.0.0.0/8' or '2001:db8::/32' (without host bits), an "
        "address, a name, '*.example.org' for all names below it, or '*' for what is allowed by default; with "
        "':PORT' or ':PORT-PORT' behind it for some ports only, and IPv6 in brackets then"
    )


def _plain_network(network: Network) -> Network:
    """Return a network of IPv4-mapped addresses as one of IPv4 addresses."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return IPv4Network((mapped, network.prefixlen - 96))


def _parsed(text: str) -> Address:
    """Return an address without its zone; an IPv4-mapped one as IPv4, which it is for the kernel."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that some router could take from an IPv6 address."""
    if not isinstance(address, IPv6Address) or int(address) < 2:  # :: and ::1
        return
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    octets = address.packed
    if address in _NAT64 or address in _COMPATIBLE or address in _TRANSLATED:
        yield IPv4Address(octets[12:])
    if address in _LOCAL_NAT64:  # RFC 6052, section 2.2: prefixes of 48, 56, 64 and 96 bits
        for packed in (octets[6:8] + octets[9:11], octets[7:8] + octets[9:12], octets[9:13], octets[12:]):
            if packed[0]:  # which of these it is depends on the translator; zeros are none of them
                yield IPv4Address(packed)
    if octets[8:12] in _ISATAP:
        yield IPv4Address(octets[12:])


def _is_loopback(address: Address) -> bool:
    return address.is_loopback or any(embedded.is_loopback for embedded in _embedded(address))


def _is_in(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _contains(outer: Network, inner: Network) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen
