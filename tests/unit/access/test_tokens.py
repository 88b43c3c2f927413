"""Tokens: how they are made, stored, and written in a configuration."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from prouter.access.roles import Role
from prouter.access.token_file import TOKENS, TokenFile
from prouter.access.tokens import configured, hash_of, new_token
from prouter.config import ConfigError
from prouter.errors import Conflict

HASH = hashlib.sha256(b"a token").hexdigest()


def test_tokens_are_long_random_and_marked() -> None:
    first, second = new_token(), new_token()
    assert first != second
    assert first.startswith("prt_")
    assert len(first) == 4 + 43


def test_the_file_holds_hashes_only_and_is_private(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    assert file.seen() is None
    assert file.all() == []
    token, text = file.issue(name="ann", role=Role.USER, now=1000.0, lifetime=60)
    assert file.all() == [token]
    assert (token.name, token.role, token.created, token.expires) == ("ann", Role.USER, 1000.0, 1060.0)
    assert token.hash == hash_of(text.encode())
    assert text not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert token.valid(1059.9)
    assert not token.valid(1060.0)


def test_a_revoked_token_is_gone_and_the_file_stays(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    token, _ = file.issue(name="ann", role=Role.ADMIN, now=1.0, lifetime=None)
    before = file.seen()
    assert file.revoke(token.id)
    assert not file.revoke(token.id)
    assert file.all() == []
    assert file.seen() not in (None, before)


def test_a_token_that_expired_long_ago_is_forgotten_with_the_next_one(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    file.issue(name="old", role=Role.USER, now=0.0, lifetime=10)
    file.issue(name="late", role=Role.USER, now=0.0, lifetime=86400)
    file.issue(name="new", role=Role.USER, now=30 * 86400 + 10.0, lifetime=None)
    assert [token.name for token in file.all()] == ["late", "new"]


@pytest.mark.parametrize("name", ["", "a b", "-ann", "a" * 65, "ann\n", "ännchen", "a:b", "a/b"])
def test_a_name_that_could_be_mistaken_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no name for a token"):
        TokenFile(tmp_path).issue(name=name, role=Role.USER, now=1.0, lifetime=None)


def test_a_repeated_request_makes_no_second_token(tmp_path: Path) -> None:
    file = TokenFile(tmp_path)
    token, _ = file.issue(name="ann", role=Role.USER, now=1.0, lifetime=None, key="k")
    with pytest.raises(Conflict, match=f"has made token {token.id} already"):
        file.issue(name="ann", role=Role.USER, now=2.0, lifetime=None, key="k")
    file.issue(name="ann", role=Role.USER, now=2.0, lifetime=None, key="l")
    file.issue(name="ann", role=Role.USER, now=2.0, lifetime=None)
    assert len(file.all()) == 3


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 2, "tokens": []}', '{"version": 1, "tokens": [{"id": "a"}]}', "\xff"]
)
def test_a_file_that_is_none_of_ours_is_refused_and_kept(content: str, tmp_path: Path) -> None:
    path = tmp_path / TOKENS
    path.write_text(content, "latin-1")
    for use in (TokenFile(tmp_path).all, lambda: TokenFile(tmp_path).revoke("a")):
        with pytest.raises(ConfigError, match="is no file of tokens"):
            use()
    assert path.read_text("latin-1") == content


def _issue(directory: Path, count: int) -> None:
    for number in range(count):
        TokenFile(directory).issue(name=f"p{os.getpid()}.{number}", role=Role.USER, now=1.0, lifetime=None)


def test_processes_that_make_tokens_at_the_same_time_lose_none(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_issue, args=(tmp_path, 10)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(json.loads((tmp_path / TOKENS).read_text())["tokens"]) == 30


def test_a_configuration_has_hashes() -> None:
    (token,) = configured([f"ci:user:sha256:{HASH.upper()}"])
    assert (token.id, token.name, token.role, token.hash, token.expires) == ("config-1", "ci", Role.USER, HASH, None)


@pytest.mark.parametrize(
    "entry",
    ["prt_s3cret", f"ci:root:sha256:{HASH}", f"ci:user:md5:{HASH}", f"c i:user:sha256:{HASH}", "ci:user:sha256:s3cret"],
)
def test_an_entry_that_is_none_is_refused_and_not_repeated(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 2 is not NAME:ROLE:sha256:HASH") as caught:
        configured([f"ci:user:sha256:{HASH}", entry])
    assert "s3cret" not in str(caught.value)
