"""Texts that the router signs and recognises: which ones count, and for how long."""

from __future__ import annotations

import stat
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prouter.access.signing import Kind, SigningKey
from prouter.config import ConfigError


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey(tmp_path_factory.mktemp("state"))


@pytest.mark.parametrize("kind", Kind)
def test_a_text_counts_as_what_it_was_signed_for(key: SigningKey, kind: Kind) -> None:
    text = key.sign(kind, {"a": 1}, 60)
    for _again in range(2):
        for other in Kind:
            found = key.read(other, text)
            assert (found is not None) is (other is kind)
            assert found is None or found["a"] == 1


def test_it_counts_no_longer_than_it_says(key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key.read(Kind.PASS, key.sign(Kind.PASS, {}, -120)) is None
    text = key.sign(Kind.PASS, {}, 2)
    found = key.read(Kind.PASS, text)
    assert found is not None
    monkeypatch.setattr(time, "time", lambda: found["exp"] - 0.5)
    assert key.read(Kind.PASS, text) == found
    monkeypatch.undo()
    while time.time() < found["exp"]:
        assert key.read(Kind.PASS, text) == found or time.time() >= found["exp"]
    assert key.read(Kind.PASS, text) is None


@settings(deadline=None)
@given(st.data())
def test_a_changed_text_counts_for_nothing(key: SigningKey, data: st.DataObject) -> None:
    text = key.sign(Kind.SESSION, {"sid": "s"}, 60)
    at = data.draw(st.integers(0, len(text) - 3))  # the last digits hold bits that mean nothing
    other = data.draw(st.sampled_from(["A", "a", "0", "_", ".", "-", "\u00e9", "\ud800"]))
    changed = text[:at] + other + text[at + 1 :]
    assert (key.read(Kind.SESSION, changed) is None) is (changed != text)


def test_workers_share_the_key_and_others_have_another(tmp_path: Path) -> None:
    one, two, other = SigningKey(tmp_path / "a"), SigningKey(tmp_path / "a"), SigningKey(tmp_path / "b")
    text = one.sign(Kind.PROOF, {}, 60)
    assert two.read(Kind.PROOF, text) is not None
    assert other.read(Kind.PROOF, text) is None
    assert stat.S_IMODE((tmp_path / "a" / "signing.key").stat().st_mode) == 0o600
    for header in (b"[" * 45_000, b"\xff", b'{"alg": 1}', b'{"alg": {}, "typ": []}', b""):
        claims = text.split(".")[1]
        assert one.read(Kind.PROOF, f"{urlsafe_b64encode(header).decode()}.{claims}.x") is None
    unsigned = jwt.encode({"aud": "proof", "iat": 1, "exp": 2**33}, "", algorithm="none")
    assert one.read(Kind.PROOF, unsigned) is None


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match="does not hold 32 bytes"):
        SigningKey(tmp_path).sign(Kind.PROOF, {}, 60)
