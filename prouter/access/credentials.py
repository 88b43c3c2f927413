"""Credentials in the fields of a request, and how a response asks for them."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable

__all__ = ["CHALLENGE", "SIGN_IN", "authorization", "is_basic", "presented"]

SIGN_IN = (
    "this router asks for an access token, and the request has none that is valid: send 'Authorization: Bearer TOKEN', "
    "or the token as the password of Basic; 'prouter token create' makes one"
)
"""Detail of the error for requests without valid credentials."""

CHALLENGE = 'Bearer realm="pRouter"'
"""Value of WWW-Authenticate (RFC 9110 section 11.6.1). Basic counts, but is not offered: browsers would remember it."""


def authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the value of Authorization; None without one, and with two, which leave open which of them counts."""
    found: bytes | None = None
    for name, value in headers:
        if len(name) == 13 and name.lower() == b"authorization":
            if found is not None:
                return None
            found = value
    return found


def presented(value: bytes) -> bytes | None:
    """Return the token in a value of Authorization: of Bearer (RFC 6750), or the password of Basic (RFC 7617).

    None if there is none.
    """
    scheme, _, rest = value.strip().partition(b" ")
    rest = rest.strip()
    kind = scheme.lower()
    if kind == b"bearer":
        return rest or None
    if kind != b"basic":
        return None
    try:
        pair = b64decode(rest, validate=True)
    except (binascii.Error, ValueError):
        return None
    return pair.partition(b":")[2] or None


def is_basic(value: bytes) -> bool:
    """Whether a value of Authorization is Basic, which browsers remember and add to later requests of any page."""
    return value.lstrip()[:6].lower() == b"basic "
