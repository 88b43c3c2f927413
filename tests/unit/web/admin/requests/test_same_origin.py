"""Programs and the router's own pages may change things, pages of other sites may not."""

from __future__ import annotations

import falcon
import falcon.testing
import pytest

from prouter.errors import Forbidden
from prouter.web.admin.requests.same_origin import is_foreign, refuse_foreign

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


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"Referer": f"http://{HOST}/jobs/x"}, False),
        ({"Referer": "https://evil.example/"}, True),
        ({"Referer": "about:blank"}, True),
        ({"Referer": "https://evil.example/", "Sec-Fetch-Site": "same-origin"}, False),
    ],
)
def test_a_get_that_changes_something_looks_at_the_page_it_comes_from(headers: dict[str, str], refused: bool) -> None:
    host, _, port = HOST.partition(":")
    req = falcon.Request(falcon.testing.create_environ(host=host, port=int(port), headers=headers))
    if refused:
        with pytest.raises(Forbidden):
            refuse_foreign(req)
    else:
        refuse_foreign(req)
