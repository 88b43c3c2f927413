"""Who may change things: programs and our own pages, not the pages of others."""

from __future__ import annotations

import pytest

from prouter.api.same_origin import is_foreign

HOST = "127.0.0.1:8888"


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({}, False),
        ({"SEC_FETCH_SITE": "same-origin", "ORIGIN": f"http://{HOST}"}, False),
        ({"SEC_FETCH_SITE": "none"}, False),
        ({"SEC_FETCH_SITE": "cross-site"}, True),
        ({"SEC_FETCH_SITE": "same-site", "ORIGIN": "https://job.example.org"}, True),
        ({"ORIGIN": f"http://{HOST}"}, False),
        ({"ORIGIN": "http://127.0.0.1:9999"}, True),
        ({"ORIGIN": "null"}, True),
        ({"ORIGIN": "http://[broken"}, True),
        ({"ORIGIN": "https://Jobs.example.org", "X_FORWARDED_HOST": "jobs.example.org"}, False),
    ],
)
def test_a_browser_tells_for_whom_it_asks(headers: dict[str, str], foreign: bool) -> None:
    environ = {"HTTP_HOST": HOST, **{f"HTTP_{name}": value for name, value in headers.items()}}
    assert is_foreign(environ) is foreign
