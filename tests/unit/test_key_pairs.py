"""CURVE keys in Z85, as libzmq makes and reads them."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

from prouter.key_pairs import KeyPair, check_key, from_bytes, is_key, to_bytes


def test_keys_of_libzmq_are_keys() -> None:
    for key in zmq.curve_keypair():
        text = key.decode()
        assert check_key(text) == text
        assert to_bytes(text) == z85.decode(key)
        assert from_bytes(to_bytes(text)) == text


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "a" * 39 + "'", "a" * 39 + "ü", "#" * 40])
def test_other_texts_are_none(text: str) -> None:
    assert not is_key(text)
    with pytest.raises(ValueError, match="prouter keygen"):
        check_key(text)


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        from_bytes(bytes(31))


def test_the_representation_of_a_pair_hides_its_secret() -> None:
    assert "geheim" not in repr(KeyPair("public", "geheim"))
