"""Credentials in a request's fields."""

from __future__ import annotations

from base64 import b64encode

import pytest

from prouter.access.credentials import authorization, presented


def basic(pair: bytes) -> bytes:
    return b"Basic " + b64encode(pair)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (b"Bearer secret", b"secret"),
        (b"bearer  secret ", b"secret"),
        (basic(b"anybody:secret"), b"secret"),
        (basic(b":se:cret"), b"se:cret"),
        (b"BASIC " + b64encode(b"x:secret"), b"secret"),
        (b"Bearer", None),
        (b"Bearer ", None),
        (b"Basic", None),
        (b"Basic ???", None),
        (basic(b"no colon"), None),
        (basic(b"empty:"), None),
        (b"Digest secret", None),
        (b"secret", None),
        (b"", None),
    ],
)
def test_the_token_is_found_in_bearer_and_as_the_password_of_basic(value: bytes, token: bytes | None) -> None:
    assert presented(value) == token


def test_two_fields_authorization_count_as_none() -> None:
    one = (b"Authorization", b"Bearer a")
    assert authorization([(b"Host", b"x"), one]) == b"Bearer a"
    assert authorization([(b"AUTHORIZATION", b"Bearer a")]) == b"Bearer a"
    assert authorization([one, (b"authorization", b"Bearer b")]) is None
    assert authorization([(b"X-Authorization", b"Bearer a")]) is None
