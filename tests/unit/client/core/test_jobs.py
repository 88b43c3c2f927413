"""The flows of one job."""

from __future__ import annotations

import json

import pytest

from prouter.client.core import sharing
from tests.support.flow_player import Answer, FlowPlayer, context

PASS = "http://router/jobs/c/j/http/.prouter/enter?code=secret"


@pytest.mark.parametrize(
    ("told", "page", "url"),
    [
        ("http://router/jobs/c/j/http/", "", "http://router/jobs/c/j/http/"),
        ("http://router/jobs/c/j/http/", "/a/b.html?c=1", "http://router/jobs/c/j/http/a/b.html?c=1"),
        (PASS, "", PASS),
        (PASS, "a/b.html?c=1&d=2", f"{PASS}&next=/a/b.html%3Fc%3D1%26d%3D2"),
    ],
)
def test_a_browser_begins_at_any_page_of_a_job(told: str, page: str, url: str) -> None:
    player = FlowPlayer(lambda _request: Answer(200, {}, (json.dumps({"url": told}).encode(),)))
    assert player.run(sharing.open_url(context(), "/jobs/c/j", page)) == url
