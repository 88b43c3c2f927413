"""The router's own cookies: found in requests, kept from jobs, and written.

Behind TLS their names have a prefix (RFC 6265bis section 4.1.3), and only the names with it count there. ``__Host-``
keeps other hosts of the site from setting such a cookie. ``__Host-Http-``, which browsers that do not know it take for
``__Host-``, also keeps scripts of the same host from it.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["PASS", "SESSION", "cookie_name", "find", "is_own", "set_cookie", "without_own"]

SESSION = b"prouter_session"
PASS = b"prouter_pass"
_MARK = b"prouter_"
_HOST, _SECURE = b"__Host-Http-", b"__Secure-"
_OWN = frozenset(prefix + name for name in (SESSION, PASS) for prefix in (b"", _HOST, _SECURE))


def cookie_name(base: bytes, *, secure: bool, path: bytes) -> bytes:
    """Return the name of a cookie: `SESSION` or `PASS` with the prefix that suits.

    Args:
        secure: whether the client uses TLS.
        path: for which the cookie is set.
    """
    if not secure:
        return base
    return (_HOST if path == b"/" else _SECURE) + base


def find(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Return the values of all cookies with this name: browsers send one for each path that fits, longest first."""
    found: list[str] = []
    for field, value in headers:
        if len(field) == 6 and _MARK in value and field.lower() == b"cookie":
            for pair in value.split(b";"):
                key, _, text = pair.strip().partition(b"=")
                if key == name:
                    found.append(text.decode("latin-1"))
    return found


def is_own(set_cookie: bytes) -> bool:
    """Whether a value of Set-Cookie sets a cookie that browsers send under one of the router's names."""
    if _MARK not in set_cookie:
        return False
    name, _, rest = set_cookie.partition(b";")[0].partition(b"=")
    # A cookie without a name is sent as its value alone, which may look like a name and a value (RFC 6265bis).
    return (name.strip() or rest.partition(b"=")[0].strip()) in _OWN


def without_own(value: bytes) -> bytes | None:
    """Return a value of Cookie without the router's cookies; None if nothing is left."""
    if _MARK not in value:
        return value
    pairs = value.split(b";")
    kept = [pair for pair in pairs if pair.strip().partition(b"=")[0].strip() not in _OWN]
    if len(kept) == len(pairs):
        return value
    return b";".join(kept).strip() or None


def set_cookie(name: bytes, value: str, *, path: bytes, secure: bool, same_site: str, lifetime: float | None) -> str:
    """Return a value of Set-Cookie for a cookie that no script can read.

    Args:
        value: empty to remove the cookie.
        same_site: ``Strict``, ``Lax`` or ``None``.
        lifetime: seconds; None until the browser is closed.
    """
    parts = [f"{name.decode('ascii')}={value}", f"Path={path.decode('latin-1')}", "HttpOnly", f"SameSite={same_site}"]
    if secure:
        parts.append("Secure")
    if not value:
        parts.append("Max-Age=0")
    elif lifetime is not None:
        parts.append(f"Max-Age={int(lifetime)}")
    return "; ".join(parts)
