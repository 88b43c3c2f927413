"""The URL by which an agent joins."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.config import ConfigError
from prouter.keys.files import make_pair
from prouter.keys.join_url import JoinUrl, format_join_url, parse_join_url

KEY, NEXT = (make_pair().public for _ in range(2))


@pytest.mark.parametrize("address", ["router.example.org:8889", "192.0.2.1:1", "[2001:db8::1]:65535"])
@pytest.mark.parametrize("keys", [(KEY,), (KEY, NEXT), ()], ids=["encrypted", "rotating", "not encrypted"])
def test_a_url_is_read_as_it_was_written(address: str, keys: tuple[str, ...]) -> None:
    url = JoinUrl(address, keys, "pri_abc-_123")
    text = format_join_url(url)
    assert parse_join_url(text) == url
    assert not set(text) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:/?&=_-.[]")


def test_a_key_may_be_in_z85() -> None:
    text = f" prouter://host:8889?key={quote(KEY, safe='')}&token=t\n"
    assert parse_join_url(text) == JoinUrl("host:8889", (KEY,), "t")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("host:8889", "a URL like prouter://"),
        ("https://host:8889/?token=t", "a URL like prouter://"),
        ("prouter://host/?token=t", "the router's address 'host' must be 'host:port'"),
        ("prouter:///?token=t", "the router's address '' must be"),
        ("prouter://[::1/?token=t", "the router's address must be 'host:port'"),
        ("prouter://host:8889/", "has no token"),
        ("prouter://host:8889/?key=", "has no token"),
        ("prouter://host:8889/?key=abc&token=t", "key is damaged"),
        (f"prouter://host:8889/?key={'A' * 42}&token=t", "key is damaged"),
        ("prouter://host:8889/?token=t&tokne=t", "the field 'tokne'"),
        ("prouter://host:8889/agents?token=t", "a path or fragment"),
        ("prouter://host:8889/?token=t#x", "a path or fragment"),
    ],
)
def test_other_texts_are_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_join_url(text)
    assert problem in str(caught.value)


@given(st.text(alphabet="[]:/?#&=%keytokn.-1é@\\ \0", max_size=40))
def test_any_other_text_is_refused_and_nothing_else_happens(text: str) -> None:
    with suppress(ConfigError):
        url = parse_join_url(f"prouter://{text}")
        assert parse_join_url(format_join_url(url)) == url


def test_what_is_said_of_a_damaged_url_repeats_no_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_join_url("prouter://host:8889/?key=abc&token=geheim&x=geheim")
    assert "geheim" not in str(caught.value)
    assert "geheim" not in repr(JoinUrl("host:1", (), "geheim"))
