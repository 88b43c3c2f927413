"""The router's own responses under ``/http``: pages for browsers, problem documents for programs."""

from __future__ import annotations

import pytest

from prouter.errors import JobStarting
from prouter.web.proxy.own_responses.pages import error_response


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/json", False),
        (b"application/json, text/plain, */*", False),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        (b"TEXT/HTML", True),
        (b"text/html, application/json;q=0.9", True),
        (b"text/html, application/json", True),
        (b"application/json, text/html", False),
        (b"application/json, text/html;q=0.1", False),
        (b"application/problem+json;q=0.2, text/html; q=0.5", True),
        (b"text/html;q=0", False),
        (b"text/html;q=much", True),
    ],
)
def test_pages_are_for_those_who_prefer_them(accept: bytes, page: bool) -> None:
    error = JobStarting("job 'j' is starting", job="j")
    answer = error_response(error, accept=accept, head_only=False, request_id="r", close=False)
    assert (b"Content-Type: text/html" in answer) is page
    assert (b"Content-Type: application/problem+json" in answer) is not page
