"""CURVE key pairs in Z85 text, and the check that a text is such a key (ZeroMQ RFC 26 and 32)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

__all__ = ["KEY_LENGTH", "KeyPair", "check_key", "from_bytes", "is_key", "to_bytes"]

KEY_LENGTH = 40
"""Characters of a key: 32 bytes in Z85."""
KEY_BYTES = 32
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_GROUP = 5
"""Characters that stand for four bytes."""
_NUMBERS = struct.Struct(f">{KEY_BYTES // 4}I")
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
"""The two characters of each number below 85 squared."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair.

    Attributes:
        public: 40 characters of Z85; everybody may know it.
        secret: likewise, for its owner alone; not part of the pair's representation, so that no log shows it.
    """

    public: str
    secret: str = field(repr=False)


def is_key(text: str) -> bool:
    """Whether `text` is a CURVE key in Z85."""
    if len(text) != KEY_LENGTH or not all(character in _VALUES for character in text):
        return False
    return all(_number(text[at : at + _GROUP]) < 2**32 for at in range(0, KEY_LENGTH, _GROUP))


def check_key(text: str) -> str:
    """Return `text` if it is a CURVE key in Z85.

    Raises:
        ValueError: it is not.
    """
    if not is_key(text):
        raise ValueError(f"a CURVE public key has {KEY_LENGTH} characters of Z85, as 'prouter keygen' prints it")
    return text


def to_bytes(key: str) -> bytes:
    """The 32 bytes of a key.

    Raises:
        ValueError: `key` is none.
    """
    check_key(key)
    return b"".join(_number(key[at : at + _GROUP]).to_bytes(4, "big") for at in range(0, KEY_LENGTH, _GROUP))


def from_bytes(data: bytes) -> str:
    """The key with these bytes, in Z85.

    Raises:
        ValueError: there are not 32 bytes.
    """
    if len(data) != KEY_BYTES:
        raise ValueError(f"a CURVE key has {KEY_BYTES} bytes, not {len(data)}")
    return "".join(
        _PAIRS[number // 85**3] + _ALPHABET[number // 85**2 % 85] + _PAIRS[number % 85**2]
        for number in _NUMBERS.unpack(data)
    )


def _number(group: str) -> int:
    """The number that five characters stand for; some stand for one that four bytes do not hold."""
    number = 0
    for character in group:
        number = number * 85 + _VALUES[character]
    return number
