"""The gate: what a worker knows of tokens, and when it knows it."""

from __future__ import annotations

import os
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from prouter.access.gate import AccessGate
from prouter.access.roles import OPEN_ROUTER, Role
from prouter.access.setup import check_access, gate_for
from prouter.access.signing import Kind
from prouter.access.token_file import TokenFile
from prouter.access.tokens import configured, hash_of
from prouter.config import ConfigError, load_router


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    return [(b"Host", b"x"), (b"Authorization", b"Bearer " + token.encode())]


def issue(directory: Path, role: Role = Role.USER, lifetime: float | None = None) -> tuple[str, str]:
    """Id and text of a new token, made as another process makes it."""
    token, text = TokenFile(directory).issue(name="ann", role=role, now=time.time(), lifetime=lifetime)
    return token.id, text


def test_without_tokens_nobody_needs_one(tmp_path: Path) -> None:
    gate = AccessGate(tmp_path)
    assert not gate.required
    assert gate.holds(OPEN_ROUTER)
    assert AccessGate(tmp_path, always=True).required


def test_with_the_first_token_everybody_needs_one(tmp_path: Path) -> None:
    gate = AccessGate(tmp_path)
    identifier, text = issue(tmp_path)
    generation = gate.generation
    gate.look()
    assert gate.required
    assert not gate.holds(OPEN_ROUTER), "what was open before ends"
    assert gate.generation > generation
    principal = gate.authenticate(bearer(text))
    assert principal is not None
    assert (principal.name, principal.role, principal.via, principal.id) == ("ann", Role.USER, "token", identifier)
    basic = gate.authenticate([(b"authorization", b"Basic " + b64encode(b"me:" + text.encode()))])
    assert basic == replace(principal, ambient=True), "browsers remember it, and add it to requests of any page"
    assert gate.authenticate([]) is None
    assert gate.authenticate(bearer(text + "x")) is None
    assert gate.authenticate(bearer(hash_of(text.encode()))) is None
    assert gate.authenticate([*bearer(text), *bearer(text)]) is None


def test_a_token_that_another_worker_has_made_counts_at_once(tmp_path: Path) -> None:
    issue(tmp_path)
    gate = AccessGate(tmp_path)
    _, text = issue(tmp_path)
    assert gate.authenticate(bearer(text)) is not None


def test_a_revoked_token_counts_for_a_quarter_of_a_second_at_most(tmp_path: Path) -> None:
    identifier, text = issue(tmp_path)
    gate = AccessGate(tmp_path)
    principal = gate.authenticate(bearer(text))
    assert principal is not None
    generation = gate.generation
    gate.refresh(100.0)
    TokenFile(tmp_path).revoke(identifier)
    gate.refresh(100.2)
    assert gate.authenticate(bearer(text)) is principal
    gate.refresh(100.25)
    assert gate.authenticate(bearer(text)) is None
    assert not gate.holds(principal)
    assert gate.generation > generation
    assert gate.required, "revoking the last token opens nothing"


def test_an_expired_token_counts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = issue(tmp_path, lifetime=3600)
    gate = AccessGate(tmp_path)
    principal = gate.authenticate(bearer(text))
    assert principal is not None
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    gate.look()
    assert gate.authenticate(bearer(text)) is None
    assert not gate.holds(principal)
    assert AccessGate(tmp_path).required


def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    _, text = issue(tmp_path)
    gate = AccessGate(tmp_path)
    whole = gate.file.path.read_text()
    gate.file.path.write_text("{")
    gate.look()
    assert gate.required
    assert gate.authenticate(bearer(text)) is None
    gate.file.path.write_text(whole)
    gate.look()
    assert gate.authenticate(bearer(text)) is not None
    os.unlink(gate.file.path)
    gate.look()
    assert gate.required, "a lost file opens nothing"
    assert gate.authenticate(bearer(text)) is None


def test_tokens_of_the_configuration_count_besides(tmp_path: Path) -> None:
    gate = AccessGate(tmp_path, configured([f"ci:operator:sha256:{hash_of(b'a token')}"]))
    assert gate.required
    principal = gate.authenticate(bearer("a token"))
    assert principal is not None
    assert (principal.name, principal.role, principal.id) == ("ci", Role.OPERATOR, "config-1")
    identifier, _ = issue(tmp_path)
    assert [token.id for token in gate.tokens()] == ["config-1", identifier]


def test_the_configuration_says_when_access_is_restricted_without_tokens(tmp_path: Path) -> None:
    state = f"state.dir={str(tmp_path)!r}"
    assert not gate_for(load_router(None, (state,), {})).required
    assert gate_for(load_router(None, (state, "control.interface=0.0.0.0"), {})).required
    assert not gate_for(load_router(None, (state, "control.interface=0.0.0.0", "control.allow_open=True"), {})).required


def test_a_router_that_others_reach_needs_a_token_that_is_valid(tmp_path: Path) -> None:
    reached = load_router(None, (f"state.dir={str(tmp_path)!r}", "control.interface=0.0.0.0"), {})
    for revoked in (False, True):
        with pytest.raises(ConfigError, match="no access token exists"):
            check_access(reached)
        identifier, _ = issue(tmp_path)
        check_access(reached)
        assert TokenFile(tmp_path).revoke(identifier) or revoked


def test_wrong_tokens_in_the_configuration_are_refused_on_loopback_too(tmp_path: Path) -> None:
    for interface in ("127.0.0.1", "0.0.0.0"):
        config = load_router(
            None, (f"state.dir={str(tmp_path)!r}", f"control.interface={interface}", "control.tokens=['s3cret']"), {}
        )
        with pytest.raises(ConfigError, match=r"control\.tokens: entry 1 is not") as caught:
            check_access(config)
        assert "s3cret" not in str(caught.value)


def test_routers_with_one_access_directory_let_the_same_people_in(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    configs = [
        load_router(None, (f"state.dir={tmp_path / name}", f"state.access_dir={shared}"), {}) for name in ("one", "two")
    ]
    one, two = map(gate_for, configs)
    identifier, text = issue(shared)
    one.look()
    two.look()
    for gate in (one, two):
        principal = gate.authenticate(bearer(text))
        assert principal is not None
        assert principal.id == identifier
    session = one.key.sign(Kind.SESSION, {"sub": "ann"}, 60.0)
    assert two.key.read(Kind.SESSION, session) is not None
    TokenFile(shared).revoke(identifier)
    two.look()
    assert two.authenticate(bearer(text)) is None
    assert not list((tmp_path / "one").glob("*.json"))
