"""Which routers that dial an agent are let in."""

from __future__ import annotations

from pathlib import Path

from prouter.agent.links.router_gate import RouterGate
from prouter.config import load_agent
from prouter.keys.files import make_pair, store_pair
from tests.support.processes import wait_until

KEY, UNKNOWN = (make_pair().public for _ in range(2))


def code(refusal: tuple[str, str] | None) -> str:
    return refusal[0] if refusal is not None else ""


def test_on_loopback_without_settings_any_router_is_let_in() -> None:
    gate = RouterGate.of(load_agent(None, ("server.enabled=True",), {}))
    assert gate.accepts(UNKNOWN)
    assert gate.refusal("router", "", "") is None


def test_tokens_are_asked_for_where_they_are_set() -> None:
    gate = RouterGate.of(load_agent(None, ("server.accept_tokens={'router': 'token-one'}",), {}))
    assert gate.refusal("router", "token-one", "") is None
    assert code(gate.refusal("other", "token-one", "")) == "bad_token"


def test_a_router_whose_key_is_listed_needs_no_token(tmp_path: Path) -> None:
    sets = ("server.interface=0.0.0.0", f"server.accept_keys={tmp_path}")
    gate = RouterGate.of(load_agent(None, sets, {}))
    assert not gate.accepts(KEY)
    pair = make_pair()
    store_pair(tmp_path, "router", pair, uid="router")
    wait_until(lambda: gate.accepts(pair.public))
    assert gate.refusal("router", "", pair.public) is None
    assert code(gate.refusal("other", "", pair.public)) == "unknown_key"
    assert code(gate.refusal("router", "", UNKNOWN)) == "unknown_key"
    assert code(gate.refusal("router", "", "")) == "unknown_key"
    (tmp_path / "router.key").unlink()
    wait_until(lambda: not gate.accepts(pair.public))
    assert code(gate.refusal("router", "", pair.public)) == "unknown_key"


def test_with_both_settings_a_router_needs_both(tmp_path: Path) -> None:
    pair = make_pair()
    store_pair(tmp_path, "router", pair)
    gate = RouterGate.of(load_agent(None, ("server.accept_tokens=['token-one']", f"server.accept_keys={tmp_path}"), {}))
    assert gate.refusal("router", "token-one", pair.public) is None
    assert code(gate.refusal("router", "", pair.public)) == "bad_token"
    assert code(gate.refusal("router", "token-one", "")) == "unknown_key"


def test_beyond_loopback_nobody_is_let_in_without_a_token_or_a_listed_key() -> None:
    assert code(RouterGate(closed=True).refusal("router", "", KEY)) == "bad_token"
