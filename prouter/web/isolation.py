"""Pages of the router's own that no other page can read, although jobs' pages may share their origin.

Such a page may hold a proof (`prouter.web.proxy.callers.identity`). What keeps it apart:

- it is sent for navigations of a whole tab only. No script can forge ``Sec-Fetch-Mode`` and ``Sec-Fetch-Dest``, so none
  gets it with fetch, in a frame or in a worker;
- ``Cross-Origin-Opener-Policy`` cuts the handle that a page keeps of a window that it has opened, and its name;
- it is never stored, so no cache returns it to a script;
- it runs no script but its own, and is shown in no frame.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable

__all__ = ["is_navigation", "isolation_fields", "names_no_mode"]

_ELEMENTS = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


def isolation_fields(page: bytes, *, forms: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return the header fields of a response with this page.

    Args:
        page: HTML. Its ``<style>`` and ``<script>`` elements without attributes are allowed, by their hashes.
        forms: sources (CSP 3) to which forms of the page may lead, redirects included; ``'self'`` for the origin.
    """
    hashes: dict[bytes, list[str]] = {b"style": [], b"script": []}
    for kind, text in _ELEMENTS.findall(page):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode('ascii')}'")
    targets = list(forms)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {' '.join(hashes[b'style']) or _NONE}",
            f"script-src {' '.join(hashes[b'script']) or _NONE}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            f"form-action {' '.join(targets) or _NONE}",
            "frame-ancestors 'none'",
        )
    )
    return [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-store, must-revalidate"),
        ("Content-Security-Policy", policy),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        # Without any referrer a form's Origin would be "null", as if from another site.
        ("Referrer-Policy", "strict-origin" if targets else "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
    ]


_NONE = "'none'"


def is_navigation(field: Callable[[str], str | None]) -> bool:
    """Whether a browser fetches a document for a whole tab, at once and not in advance.

    Args:
        field: returns the value of a request's field by its name; None without one.
    """
    return (
        field("Sec-Fetch-Mode") == "navigate"
        and field("Sec-Fetch-Dest") == "document"
        and field("Sec-Purpose") is None
        and field("Purpose") is None
    )


def names_no_mode(field: Callable[[str], str | None]) -> bool:
    """Whether the client does not say what it fetches: programs, and browsers over plain http to other machines."""
    return field("Sec-Fetch-Mode") is None and field("Sec-Fetch-Dest") is None
