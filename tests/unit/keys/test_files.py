"""Key pairs as files: the format of zmq.auth, permissions, and what is said about damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq.auth

from prouter.config import ConfigError
from prouter.keys.files import load_or_make, load_pair, load_public, make_pair, store_pair, write_private


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_zmq_auth_reads_what_we_write(tmp_path: Path) -> None:
    pair = make_pair()
    store_pair(tmp_path, "router", pair)
    assert zmq.auth.load_certificate(tmp_path / "router.key_secret") == (pair.public.encode(), pair.secret.encode())
    assert zmq.auth.load_certificate(tmp_path / "router.key") == (pair.public.encode(), None)


def test_we_read_what_zmq_auth_writes(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "agent")
    Path(secret).chmod(0o600)
    pair = load_pair(Path(secret))
    assert load_public(Path(public)) == pair.public
    assert pair.secret.encode() == zmq.auth.load_certificate(secret)[1]


def test_a_pair_is_made_once_in_a_private_directory(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    pair = load_or_make(directory, "router")
    assert load_or_make(directory, "router") == pair
    assert mode(directory) == 0o700
    assert mode(directory / "router.key_secret") == 0o600
    assert sorted(path.name for path in directory.iterdir()) == ["router.key", "router.key_secret"]


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    store_pair(tmp_path, "router", make_pair())
    path = tmp_path / "router.key_secret"
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"others may read this secret key.*0644.*chmod 600 {path}"):
        load_pair(path)


def test_a_public_file_is_no_secret_one(tmp_path: Path) -> None:
    store_pair(tmp_path, "router", make_pair())
    (tmp_path / "router.key").chmod(0o600)
    with pytest.raises(ConfigError, match="holds no secret key"):
        load_pair(tmp_path / "router.key")


@pytest.mark.parametrize("text", ["", "curve\n    public-key = short\n", "\xff", "a" * 70000])
def test_files_without_a_key_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.key"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=str(path)):
        load_public(path)


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.key cannot be read: No such file"):
        load_public(tmp_path / "none.key")


def test_a_secret_of_another_pair_is_refused_without_repeating_it(tmp_path: Path) -> None:
    one, other = make_pair(), make_pair()
    write_private(tmp_path / "x.key_secret", f'public-key = "{one.public}"\nsecret-key = "{other.secret}"\n')
    with pytest.raises(ConfigError, match="does not belong") as caught:
        load_pair(tmp_path / "x.key_secret")
    assert other.secret not in str(caught.value)
