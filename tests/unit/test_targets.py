"""What the router may connect to for its users."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prouter.errors import Forbidden
from prouter.targets import Targets, check_target, is_of_this_machine

OWN = 8888
OURS = "10.0.0.5"
"""This machine's own address in the tests of the decision."""


def targets(*entries: str) -> Targets:
    def is_own(address: IPv4Address | IPv6Address) -> bool:
        return address.is_loopback or str(address) == OURS

    return Targets(entries, lambda: {OWN, 0}, is_own)


def allows(entries: Sequence[str], host: str, address: str | None = None, port: int = 80) -> bool:
    return not targets(*entries).why_not(host, address or host, port)


def embeddings(v4: IPv4Address) -> list[str]:
    """The IPv6 addresses that some router may take for this IPv4 address."""
    octets, number = v4.packed, int(v4)

    def v6(*parts: bytes) -> str:
        return str(IPv6Address(b"".join(parts)))

    local = bytes.fromhex("0064ff9b0001")
    return [
        v6(bytes(10), b"\xff\xff", octets),
        v6(bytes(12), octets),
        v6(bytes(8), b"\xff\xff\0\0", octets),
        v6(bytes.fromhex("0064ff9b"), bytes(8), octets),
        v6(local, bytes(6), octets),
        v6(local, octets[:2], b"\0", octets[2:], bytes(5)),
        v6(local, b"\x07", octets[:1], b"\0", octets[1:], bytes(4)),
        v6(local, b"\x07\x07\0", octets, bytes(3)),
        v6(b"\x20\x02", octets, bytes(10)),
        v6(bytes.fromhex("20010000"), octets, bytes(4), (number ^ 0xFFFFFFFF).to_bytes(4, "big")),
        str(IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))),
        v6(bytes.fromhex("20010db8000000000000" + "5efe"), octets),
        v6(bytes.fromhex("20010db8000000000200" + "5efe"), octets),
    ]


SERVERLESS = 10
"""Which of these is Teredo with the unspecified address as server, and so never allowed."""

SPECIAL = [
    "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%lo", "fd00:ec2::254", "fd20:ce::254", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "224.0.0.1", "239.1.2.3", "ff02::1", "0.0.0.0", "0.1.2.3", "::", "255.255.255.255",
]  # fmt: skip


@pytest.mark.parametrize("address", SPECIAL)
@pytest.mark.parametrize("entries", [(), ("*",), ("0.0.0.0/0", "::/0"), ("*:80",), ("evil.example.org",)])
def test_special_addresses_are_refused_unless_they_are_named_themselves(address: str, entries: Sequence[str]) -> None:
    assert not allows(entries, address)
    assert not allows(entries, "evil.example.org", address)
    bare = address.partition("%")[0]
    assert allows((*entries, f"[{bare}]" if ":" in bare else bare), address)
    assert not allows((*entries, f"[{bare}]:81"), address)


@given(st.sampled_from(["169.254.169.254", "224.0.0.1", "255.255.255.255"]), st.sampled_from(range(13)))
def test_no_ipv6_form_hides_a_special_address(v4: str, form: int) -> None:
    assert not allows((), embeddings(IPv4Address(v4))[form])


@given(st.ip_addresses(v=4) | st.ip_addresses(v=4, network="21.0.0.0/8"), st.sampled_from(range(13)))
@example(IPv4Address("20.20.20.20"), SERVERLESS)
@example(IPv4Address("20.20.20.20"), 0)
def test_no_ipv6_form_hides_a_port_of_the_router(v4: IPv4Address, form: int) -> None:
    assert not allows((), embeddings(IPv4Address(OURS))[form], port=OWN)
    if form != SERVERLESS and all(octet in range(20, 100) for octet in v4.packed):
        assert allows((), embeddings(v4)[form], port=OWN)


@given(st.ip_addresses())
def test_by_default_everything_else_is_allowed(address: IPv4Address | IPv6Address) -> None:
    assert allows(("*",), str(address)) == allows((), str(address)) == allows(("*:1-79", "*:80"), str(address))
    assert not allows(("*:1-79",), str(address))


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", OURS, "::ffff:127.0.0.1", "::127.0.0.1"])
def test_the_routers_own_ports_are_refused_wherever_this_machine_has_them(address: str) -> None:
    assert allows((), address)
    assert not allows((), address, port=OWN)
    assert not allows((), "rebound.example.org", address, port=OWN)
    named = f"[{address}]" if ":" in address else address
    for entry in ("*", f"*:{OWN}", named, f"{named}:1-{OWN}", f"127.0.0.0/8:{OWN}", f"*.example.org:{OWN}"):
        assert not allows((entry,), address, port=OWN)
    assert allows((f"{named}:{OWN}",), address, port=OWN)
    assert allows(("*", f"{named}:{OWN}"), address, port=OWN)


def test_a_list_allows_only_what_it_names() -> None:
    entries = ("10.0.0.0/8", "[2001:db8::/32]:443-444", "192.0.2.7:8080", "api.example.org", "*.example.net:443")
    assert allows(entries, "10.1.2.3")
    assert allows(entries, "any.name", "10.1.2.3")
    assert allows(entries, "::ffff:10.1.2.3")
    assert not allows(entries, "11.0.0.1")
    assert allows(entries, "2001:db8::1", port=444)
    assert not allows(entries, "2001:db8::1", port=445)
    assert allows(entries, "192.0.2.7", port=8080)
    assert not allows(entries, "192.0.2.7", port=8081)
    assert allows(entries, "API.example.org.", "203.0.113.1")
    assert not allows(entries, "xapi.example.org", "203.0.113.1")
    assert allows(entries, "a.b.example.net", "203.0.113.1", 443)
    assert not allows(entries, "example.net", "203.0.113.1", 443)
    assert not allows(entries, "127.0.0.1")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
def test_a_listed_name_does_not_open_loopback_to_whoever_owns_it(address: str) -> None:
    assert not allows(("api.example.org", "*.example.org"), "api.example.org", address)
    assert allows(("api.example.org", "127.0.0.0/8", "::1", "64:ff9b::/96"), "api.example.org", address)
    assert allows(("localhost",), "localhost", address)


def test_of_a_names_addresses_only_the_allowed_ones_are_used() -> None:
    found = [(socket.AF_INET, (address, 80)) for address in ("169.254.1.1", "192.0.2.1", "0.0.0.0", "127.0.0.1")]
    assert [address[0] for _family, address in targets().usable("x.org", found)] == ["192.0.2.1", "127.0.0.1"]
    with pytest.raises(Forbidden) as refused:
        targets().usable("x.org", found[:1])
    assert refused.value.code == "target_forbidden"
    for part in ("169.254.1.1:80", "'x.org'", "link-local", "control.allow_targets"):
        assert part in refused.value.detail
    assert targets().usable("x.org", []) == []


@pytest.mark.parametrize("text", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "localhost", "127.0.0.1."])
def test_every_spelling_of_an_address_is_the_address(text: str) -> None:
    try:
        found = [(entry[0], entry[4]) for entry in socket.getaddrinfo(text, OWN, type=socket.SOCK_STREAM)]
    except OSError:
        return  # The system does not take it for an address.
    with pytest.raises(Forbidden):
        targets().usable(text, found)


@pytest.mark.parametrize(
    "entry",
    [
        "", "10.0.0.1/8", "10.0.0.0/33", "127.1", "0", "1.2.3.4.5", "example.org/8", "http://x", "x:0", "x:65536",
        "x:2-1", "x:", ":80", "[::1", "::1]:80", "a*b.org", "x y", "*.", "x:1-2-3", "x:-1", "user@host",
        "[fe80::1%lo]:99999",
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused_with_the_reason(entry: str) -> None:
    with pytest.raises(ValueError, match=r"no target|ports are numbers"):
        check_target(entry)


def test_this_machines_addresses_are_known() -> None:
    for own in ("127.0.0.1", "127.1.2.3", "::1"):
        assert is_of_this_machine(ip_address(own))
    for other in ("192.0.2.1", "2001:db8::1", "255.255.255.255"):
        assert not is_of_this_machine(ip_address(other))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return  # A machine without a network.
        assert is_of_this_machine(ip_address(probe.getsockname()[0]))
