"""Boxes in place are those of PyNaCl's documented functions: tells when its undocumented binding has changed."""

from __future__ import annotations

import os

import pytest
from nacl import bindings as documented

from prouter.errors import ProtocolError
from prouter.transport.zmtp.boxes import TAG, open_box, open_in_place, seal_in_place

KEY, NONCE, OTHER = os.urandom(32), os.urandom(24), os.urandom(24)
SIZES = [0, 1, 63, 64, 65, 1000, 65_536, 1_048_577]


@pytest.mark.parametrize("size", SIZES)
def test_a_box_sealed_in_place_is_that_of_the_documented_function(size: int) -> None:
    text = os.urandom(size)
    memory = bytearray(b"head" + bytes(TAG) + text + b"more" + bytes(TAG) + b"other" + b"end")
    second = 4 + TAG + size + 4
    seal_in_place(memory, [(4, size, NONCE), (second, 5, OTHER)], KEY)
    expected = documented.crypto_box_easy_afternm(text, NONCE, KEY)
    other = documented.crypto_box_easy_afternm(b"other", OTHER, KEY)
    assert memory == b"head" + expected + b"more" + other + b"end"


@pytest.mark.parametrize("size", SIZES)
def test_a_box_of_the_documented_function_is_opened(size: int) -> None:
    text = os.urandom(size)
    box = documented.crypto_box_easy_afternm(text, NONCE, KEY)
    opened = open_box(box, NONCE, KEY)
    assert opened[:] == text
    assert len(opened) == size
    memory = bytearray(b"head" + box)
    assert open_in_place(memoryview(memory)[4:], NONCE, KEY) == text
    assert memory[-size:] == text[-size:] if size else memory[:4] == b"head"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at", [0, TAG - 1, -1])
def test_a_changed_box_is_not_opened_and_stays_as_it_is(size: int, at: int) -> None:
    box = bytearray(documented.crypto_box_easy_afternm(os.urandom(size), NONCE, KEY))
    box[at] ^= 1
    before = bytes(box)
    with pytest.raises(ProtocolError, match="changed"):
        open_box(before, NONCE, KEY)
    with pytest.raises(ProtocolError, match="changed"):
        open_in_place(memoryview(box), NONCE, KEY)
    assert box == before


@pytest.mark.parametrize("size", [0, 1, TAG - 1])
def test_what_is_too_short_is_no_box(size: int) -> None:
    with pytest.raises(ProtocolError):
        open_box(bytes(size), NONCE, KEY)
    with pytest.raises(ProtocolError):
        open_in_place(memoryview(bytearray(size)), NONCE, KEY)


@pytest.mark.parametrize(("of_nonce", "of_key"), [(24, 0), (24, 31), (0, 32), (23, 32)])
def test_lengths_that_libsodium_does_not_check_are_checked(of_nonce: int, of_key: int) -> None:
    nonce, key = NONCE[:of_nonce], KEY[:of_key]
    box = bytearray(documented.crypto_box_easy_afternm(b"text", NONCE, KEY))
    with pytest.raises(ValueError, match="a nonce of"):
        open_box(bytes(box), nonce, key)
    with pytest.raises(ValueError, match="a nonce of"):
        open_in_place(memoryview(box), nonce, key)
    with pytest.raises(ValueError, match="a nonce of"):
        seal_in_place(box, [(0, 4, nonce)], key)


@pytest.mark.parametrize(("at", "size"), [(-1, 4), (0, 5), (1, 4), (20, 0)])
def test_a_box_beyond_its_memory_is_not_sealed(at: int, size: int) -> None:
    memory = bytearray(TAG + 4)
    with pytest.raises(ValueError, match="not within"):
        seal_in_place(memory, [(at, size, NONCE)], KEY)
    assert memory == bytes(TAG + 4)
