"""Conditions and ranges in every combination, against a second implementation of RFC 9110 section 13.2.2."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import falcon.testing
import gevent
import pytest

from prouter.web.admin.app import create_app
from tests.support.api_stand import PATH, StandInAgent, StandInRouter

CONTENT = b"0123456789" * 10
MODIFIED = "Fri, 14 Jul 2017 02:40:00 GMT"
"""Modification time of the stand-in's file."""
DATES = {
    MODIFIED: 0,
    "Friday, 14-Jul-17 02:40:00 GMT": 0,
    "Fri Jul 14 02:40:00 2017": 0,
    "Fri, 14 Jul 2017 02:39:59 GMT": -1,
    "Fri, 14 Jul 2017 02:40:01 GMT": 1,
    "Sun, 06 Nov 1994 08:49:37 GMT": -1,
    "Sun, 06 Nov 2022 08:49:37 GMT": 1,
    "2017-07-14T02:40:00Z": None,
    "soon": None,
    "": None,
}
"""Dates, each with whether it is before (-1), at (0) or after (1) that time; None for what is not a date."""
RANGES: dict[str, list[tuple[int, int]] | None] = {
    "bytes=0-0": [(0, 1)],
    "bytes=10-19": [(10, 20)],
    "bytes=90-": [(90, 100)],
    "bytes=-7": [(93, 100)],
    "bytes=-1000": [(0, 100)],
    "bytes=95-5000": [(95, 100)],
    "bytes=0-1,50-51": [(0, 2), (50, 52)],
    "bytes=0-1,500-": [(0, 2)],
    "bytes=100-": [],
    "bytes=-0": [],
    "bytes=7-3": None,
    "bytes=x": None,
    "lines=0-1": None,
    "": None,
}
"""Range fields, each with what it selects; None for what is not a range and is ignored."""


def tag_lists(etag: str) -> dict[str, tuple[bool, bool]]:
    """Yield lists of entity tags, each with whether it matches strongly and weakly."""
    return {
        "*": (True, True),
        etag: (True, True),
        f"W/{etag}": (False, True),
        f'"other", {etag}': (True, True),
        f'"other" ,W/{etag} , "more"': (False, True),
        '"other"': (False, False),
        'W/"other", ""': (False, False),
        f'"a, {etag[1:-1]}"': (False, False),
    }


def expected(headers: Mapping[str, str], method: str, etag: str) -> tuple[int, list[tuple[int, int]] | None]:
    """Return the expected status, and the expected parts of the file; None for all of it."""
    lists = tag_lists(etag)
    match, none_match = headers.get("If-Match"), headers.get("If-None-Match")
    unmodified, modified = DATES.get(headers.get("If-Unmodified-Since", "")), headers.get("If-Modified-Since")
    if match is not None:
        if not lists[match][0]:
            return 412, None
    elif unmodified is not None and unmodified < 0:
        return 412, None
    if none_match is not None:
        if lists[none_match][1]:
            return 304, None
    elif modified is not None:
        since = DATES[modified]
        if since is not None and since >= 0:
            return 304, None
    parts = RANGES.get(headers.get("Range", ""))
    if method != "GET" or parts is None or headers.get("If-Range", etag) not in (etag, MODIFIED):
        return 200, None
    return (206, parts) if parts else (416, None)


@pytest.mark.parametrize("seed", range(4))
def test_every_combination_is_decided_in_order(seed: int) -> None:
    random = Random(seed)
    agent = StandInAgent()
    agent.files[b"a"] = CONTENT
    router = StandInRouter(agent)
    client = falcon.testing.TestClient(create_app(router, router.config, router.gate))  # type: ignore[arg-type]
    with gevent.Timeout(60):
        etag = client.simulate_get(f"{PATH}/file/a").headers["etag"]
        choices = {
            "If-Match": list(tag_lists(etag)),
            "If-None-Match": list(tag_lists(etag)),
            "If-Modified-Since": list(DATES),
            "If-Unmodified-Since": list(DATES),
            "If-Range": [etag, f"W/{etag}", '"other"', MODIFIED, "Fri, 14 Jul 2017 02:40:01 GMT", "soon"],
            "Range": list(RANGES),
        }
        for _ in range(250):
            names = random.sample(sorted(choices), random.randrange(1, len(choices) + 1))
            headers = {name: random.choice(choices[name]) for name in names}
            method = random.choice(["GET", "GET", "HEAD"])
            answer = client.simulate_request(method, f"{PATH}/file/a", headers=headers)
            status, parts = expected(headers, method, etag)
            assert answer.status_code == status, (method, headers)
            if method == "GET" and status == 200:
                assert answer.content == CONTENT
            elif parts is not None and len(parts) == 1:
                start, stop = parts[0]
                assert answer.content == CONTENT[start:stop], headers
                assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/100"
            elif parts is not None:
                for start, stop in parts:
                    told = f"Content-Range: bytes {start}-{stop - 1}/100\r\n\r\n".encode() + CONTENT[start:stop]
                    assert told in answer.content
            elif status == 304:
                assert answer.content == b""
                assert answer.headers["etag"] == etag
