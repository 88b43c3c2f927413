"""Keys of assertions: published before they sign and after, and made by one of many workers."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.access.assertion_keys import ASSERTION_KEYS, ASSERTION_LIFETIME, PUBLISHED_BEFORE, AssertionKeys
from prouter.config import ConfigError

DAY = 86400.0
NOW = 1_800_000_000.0


def verified(keys: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """What a job's server reads, whatever the time is."""
    kid = jwt.get_unverified_header(text)["kid"]
    (key,) = [jwt.PyJWK(key) for key in keys if key["kid"] == kid]
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims: dict[str, Any] = jwt.decode(text, key, algorithms=["ES256"], audience="j", options=options)
    return claims


def test_an_assertion_is_verified_with_the_public_key(tmp_path: Path) -> None:
    keys = AssertionKeys(tmp_path / "state")
    text = keys.sign({"sub": "alice", "aud": "j"})
    (public,) = keys.published()
    assert "d" not in public, "the private part"
    claims: dict[str, Any] = jwt.decode(text, jwt.PyJWK(public), algorithms=["ES256"], audience="j")
    assert claims["sub"] == "alice"
    assert claims["exp"] - claims["iat"] == ASSERTION_LIFETIME
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(text, jwt.PyJWK(public), algorithms=["ES256"], audience="another")
    mode = stat.S_IMODE((tmp_path / "state" / ASSERTION_KEYS).stat().st_mode)
    assert mode == 0o600


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 2 * DAY), max_size=12), st.floats(0, PUBLISHED_BEFORE))
def test_a_server_that_kept_the_keys_a_while_verifies_what_is_signed_now(
    tmp_path_factory: pytest.TempPathFactory, pauses: list[float], kept_for: float
) -> None:
    keys = AssertionKeys(tmp_path_factory.mktemp("keys"))
    now, old = NOW, keys.published(NOW)
    for pause in pauses:
        text = keys.sign({"sub": "alice", "aud": "j"}, now + pause)
        # Nobody asked for the keys in between: what was kept may be older than the newest key, not than its signatures.
        if pause <= kept_for:
            assert verified(old, text)
        now += pause
        old = keys.published(now)
        assert verified(old, text), "what was signed is verified by the keys of now"
        assert verified(keys.published(now + ASSERTION_LIFETIME), text), "for as long as it is valid"
        assert len(old) <= 3


def test_keys_have_successors_and_are_forgotten(tmp_path: Path) -> None:
    keys = AssertionKeys(tmp_path)
    (first,) = keys.published(NOW)
    both = keys.published(NOW + DAY)
    assert next(key["kid"] for key in both) == first["kid"]
    assert len(both) == 2
    kid = jwt.get_unverified_header(keys.sign({}, NOW + DAY + 1))["kid"]
    assert kid == first["kid"], "the new one is not known yet"
    kid = jwt.get_unverified_header(keys.sign({}, NOW + DAY + PUBLISHED_BEFORE))["kid"]
    assert kid == both[1]["kid"]
    later = keys.published(NOW + 2 * DAY)
    assert next(key["kid"] for key in later) == both[1]["kid"]


def test_workers_share_their_keys(tmp_path: Path) -> None:
    workers = [AssertionKeys(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for day in range(3):
            lists = list(pool.map(lambda keys, day=day: keys.published(NOW + day * DAY), workers))
            assert all(keys == lists[0] for keys in lists)
    text = workers[0].sign({"aud": "j"}, NOW + 2 * DAY)
    assert verified(workers[5].published(NOW + 2 * DAY), text)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"version": 1, "keys": [{"id": "a", "created": 1, "key": "no key"}]}', '{"version": 2}']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / ASSERTION_KEYS).write_text(content)
    with pytest.raises(ConfigError, match="remove it"):
        AssertionKeys(tmp_path).sign({}, 10.0)


def test_a_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    keys = AssertionKeys(tmp_path)
    keys.sign({})
    before = json.loads((tmp_path / ASSERTION_KEYS).read_text())["keys"]
    (tmp_path / ASSERTION_KEYS).unlink()
    text = keys.sign({"aud": "j"})
    after = json.loads((tmp_path / ASSERTION_KEYS).read_text())["keys"]
    assert before != after
    assert verified(keys.published(), text)
