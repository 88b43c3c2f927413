"""Fields and cookies of something in front that jobs do not get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prouter.config.router import RouterControl
from prouter.web.admin.requests.bridge_headers import handshake_headers
from prouter.web.proxy.addresses.fields import RequestFields
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.addresses.mapping import Site
from prouter.web.proxy.addresses.rewrite import request_to_job
from prouter.web.proxy.messages.heads import parse_request

FIELDS = RequestFields(("X-Auth-*", "Authorization"), ("_oauth2_proxy*", "sso"))
COOKIE_TEXT = st.text('abso_2 =;"\t*', max_size=8)


def nowhere() -> Site:
    raise AssertionError("no address in this head")


def to_job(lines: bytes) -> bytes:
    head = parse_request(b"GET /x HTTP/1.1\r\nHost: h\r\n" + lines + b"\r\n")
    origin = Origin("127.0.0.1", 1, trusted=True)
    return request_to_job(Forwarded(head, origin), b"/x", b"", site=nowhere, fields=FIELDS)


@pytest.mark.parametrize("name", [b"X-Auth-Token", b"x-auth-", b"X_Auth_User", b"x-AUTH_user", b"Authorization"])
def test_a_job_does_not_get_the_fields(name: bytes) -> None:
    sent = to_job(b"X-Author: 1\r\nX-Aut: 2\r\n" + name + b": s3cret\r\n")
    assert b"s3cret" not in sent
    assert b"X-Author: 1\r\nX-Aut: 2\r\n" in sent


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        (b"a=1; _oauth2_proxy=s3cret; b=2", b"a=1; b=2"),
        (b"_oauth2_proxy_0=s3cret;_oauth2_proxy_csrf=s3cret;a=1", b"a=1"),
        (b"sso=s3cret", None),
        (b"sso =s3cret; \tsso=s3cret", None),
        (b"sso", None),
        (b"a=_oauth2_proxy; ssop=1; SSO=2; =sso", b"a=_oauth2_proxy; ssop=1; SSO=2; =sso"),
        (b'a="1; sso=s3cret; x"; b=2', b'a="1; x"; b=2'),
        (b"a=1;; b=2;", b"a=1;; b=2;"),
    ],
)
def test_a_job_does_not_get_the_cookies(cookie: bytes, kept: bytes | None) -> None:
    sent = to_job(b"Cookie: " + cookie + b"\r\n")
    assert b"s3cret" not in sent
    assert (b"Cookie: " in sent) is (kept is not None)
    assert kept is None or b"\r\nCookie: " + kept + b"\r\n" in sent


@given(st.lists(st.tuples(COOKIE_TEXT, COOKIE_TEXT), max_size=6))
def test_other_cookies_pass_in_their_order(pairs: list[tuple[str, str]]) -> None:
    given = ";".join("=".join(pair) for pair in pairs).encode().strip()
    kept = FIELDS.cookies(given) or b""
    wanted = [part for part in given.split(b";") if not _is_withheld(part)]
    assert [part.strip() for part in kept.split(b";") if part.strip()] == [w.strip() for w in wanted if w.strip()]


def _is_withheld(part: bytes) -> bool:
    name = part.partition(b"=")[0].strip()
    return name == b"sso" or name.startswith(b"_oauth2_proxy")


def test_a_bridge_does_not_pass_them_either() -> None:
    given = {"COOKIE": "a=1; sso=s3cret", "X-AUTH-TOKEN": "s3cret", "X-OTHER": "1", "AUTHORIZATION": "s3cret"}
    passed = handshake_headers(given, fields=FIELDS)
    assert passed == [("Cookie", "a=1"), ("X-Other", "1")]


def test_nothing_is_dropped_unless_the_configuration_says_so() -> None:
    assert RequestFields().cookies(b"_oauth2_proxy=1") == b"_oauth2_proxy=1"


@pytest.mark.parametrize("name", ["", "*x", "a b", "X-Ä", "x:", "Host", "content_length", "Transfer-Encoding"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"is no name|without it"):
        RouterControl(drop_headers=(name,))


def test_a_cookie_may_have_any_name() -> None:
    assert RouterControl(drop_cookies=("host", "__Host-sso", "a*")).drop_cookies == ("host", "__Host-sso", "a*")
