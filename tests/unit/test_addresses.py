"""Addresses of routers as users write them."""

from __future__ import annotations

import pytest

from prouter.addresses import router_endpoint


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
