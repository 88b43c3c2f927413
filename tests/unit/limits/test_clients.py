"""Which clients share a budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.limits.clients import client_key


def trusted(address: str) -> bool:
    return address.startswith("10.")


@pytest.mark.parametrize(
    ("peer", "chain", "key"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("2001:db8::1", [], "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", [], "2001:db8::/64"),
        ("2001:db8:0:1::1", [], "2001:db8:0:1::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("unix", [], "unix"),
        ("unix", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.7", "192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.7", "192.0.2.1", "10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["192.0.2.1", "unknown"], "10.0.0.1"),
        ("10.0.0.1", ["unknown", "10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["2001:db8::5"], "2001:db8::/64"),
        ("10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_address_that_no_client_can_choose_counts(peer: str, chain: list[str], key: str) -> None:
    assert client_key(peer, chain, trusted) == key


@given(claims=st.lists(st.text(max_size=20) | st.ip_addresses().map(str), max_size=5))
def test_what_a_client_claims_changes_nothing(claims: list[str]) -> None:
    assert client_key("10.0.0.1", [*claims, "192.0.2.1"], trusted) == "192.0.2.1"
    assert client_key("10.0.0.1", [*claims, "192.0.2.1", "10.0.0.9"], trusted) == "192.0.2.1"
