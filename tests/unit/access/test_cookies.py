"""The router's own cookies among others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prouter.access.cookies import PASS, SESSION, cookie_name, find, is_own, set_cookie, without_own

_NAMES = [
    cookie_name(base, secure=secure, path=path)
    for base in (SESSION, PASS)
    for secure in (False, True)
    for path in (b"/", b"/jobs")
]
_PAIR = st.tuples(
    st.sampled_from([*_NAMES, b"_xsrf", b"prouter_other", b"xprouter_pass", b"a"]),
    st.text("abc=. %", max_size=5).map(lambda text: text.encode()),
)


def test_names_say_how_a_cookie_was_set() -> None:
    assert cookie_name(SESSION, secure=True, path=b"/") == b"__Host-Http-prouter_session"
    assert cookie_name(PASS, secure=True, path=b"/jobs/c/j/http") == b"__Secure-prouter_pass"
    assert cookie_name(PASS, secure=False, path=b"/") == b"prouter_pass"


@given(st.lists(_PAIR, max_size=6), st.sampled_from([b"; ", b";", b" ;  "]))
def test_a_job_gets_all_cookies_but_the_routers(pairs: list[tuple[bytes, bytes]], separator: bytes) -> None:
    value = separator.join(name + b"=" + text for name, text in pairs)
    kept = without_own(value) or b""
    left = [pair.strip().partition(b"=") for pair in kept.split(b";") if pair.strip()]
    assert [(name, text) for name, _, text in left] == [
        (name, text.rstrip()) for name, text in pairs if name not in _NAMES
    ]
    for name in _NAMES:
        assert find([(b"Cookie", value)], name) == [text.rstrip().decode() for key, text in pairs if key == name]
        assert find([(b"Cookie", kept)], name) == []


def test_a_job_cannot_set_the_routers_cookies() -> None:
    for name in _NAMES:
        assert is_own(b" " + name + b" =x; Path=/")
        assert is_own(name)
        assert is_own(name + b"; Path=/")
        assert is_own(b"=" + name + b"=x; Path=/")
        assert is_own(b" = " + name + b" =x")
    assert not is_own(b"a=prouter_session=x")
    assert not is_own(b"prouter_theme=dark")
    assert not is_own(b"=a; prouter_session=x")
    assert not is_own(b"==prouter_session=x")


def test_no_script_can_read_a_cookie() -> None:
    line = set_cookie(b"__Host-Http-prouter_session", "v", path=b"/", secure=True, same_site="Strict", lifetime=60)
    assert line == "__Host-Http-prouter_session=v; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=60"
    assert set_cookie(b"p", "", path=b"/j", secure=False, same_site="Lax", lifetime=60).endswith("Lax; Max-Age=0")
