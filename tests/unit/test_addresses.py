"""Addresses of routers as users write them."""

from __future__ import annotations

import pytest

from prouter.addresses import join_address, router_endpoint, split_address, tcp_endpoint


@pytest.mark.parametrize("host", ["router.example.org", "127.0.0.1", "::1", "fe80::1%eth0"])
def test_host_and_port_are_joined_so_that_they_can_be_split(host: str) -> None:
    assert split_address(join_address(host, 8889)) == (host, 8889)
    assert router_endpoint(join_address(host, 8889)) == tcp_endpoint(host, 8889)


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("router:8889", "tcp://router:8889"),
        ("[::1]:8889", "tcp://[::1]:8889"),
        ("ipc:///run/prouter/agents.sock", "ipc:///run/prouter/agents.sock"),
        ("ipc:///with a space.sock", "ipc:///with a space.sock"),
    ],
)
def test_an_address_names_an_endpoint(address: str, endpoint: str) -> None:
    assert router_endpoint(address) == endpoint


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("tcp://router:8889", "without 'tcp://'"),
        ("ipc://agents.sock", "an absolute path"),
        ("ipc://", "an absolute path"),
        ("ipc:///" + "x" * 107, "107 bytes"),
        ("router", "host:port"),
    ],
)
def test_another_text_is_refused_with_what_is_expected(address: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        router_endpoint(address)
