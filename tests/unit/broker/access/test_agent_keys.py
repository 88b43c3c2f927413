"""Which agents that listen are dialled, and with which key."""

from __future__ import annotations

from pathlib import Path

import pytest

from prouter.broker.access.agent_keys import AgentKeys
from prouter.config import ConfigError
from prouter.keys.files import make_pair, store_pair

KEY = make_pair().public


def test_an_agent_has_the_key_of_its_address(tmp_path: Path) -> None:
    pair = make_pair()
    store_pair(tmp_path, "gpu", pair)
    keys = AgentKeys({"gpu-7:8890": KEY, "[2001:db8::1]:1": str(tmp_path / "gpu.key")}, insecure=False)
    assert keys.of("gpu-7:8890") == KEY
    assert keys.of("[2001:db8::1]:1") == pair.public
    assert keys.of("gpu-7:8891") is None


def test_agents_on_other_machines_are_dialled_only_with_a_key() -> None:
    keys = AgentKeys({"gpu-7:8890": KEY}, insecure=False)
    for address in ("gpu-7:8890", "127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert not keys.why_not(address)
    assert "the agent at gpu-8:8890 is on another machine" in keys.why_not("gpu-8:8890")
    assert not AgentKeys({}, insecure=True).why_not("gpu-8:8890")


def test_a_mistake_names_the_setting_and_the_address() -> None:
    with pytest.raises(ConfigError, match=r"client\.agent_keys: gpu-7:8890: neither a key"):
        AgentKeys({"gpu-7:8890": "nonsense"}, insecure=False)
