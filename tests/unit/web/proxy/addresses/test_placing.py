"""Targets as a job sees them, below its prefix and under its own host name, and requests beside the prefix."""

from __future__ import annotations

import pytest

from prouter.jobs import JobRecord, State
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.addresses.placing import beside_its_root, redirect_for, site, target_of_job
from prouter.web.proxy.messages.heads import parse_request
from prouter.web.routes import JobRoute

PREFIX = b"/jobs/c/j/http"


def route(mode: str, host: str = "public") -> JobRoute:
    endpoint = {"port": 5000}
    record = JobRecord("j", "c", "n", state=State.RUNNING, endpoint=endpoint, path_mode=mode, host_mode=host)
    return JobRoute("c", record, up=True)


@pytest.mark.parametrize(
    ("mode", "own_host", "target", "seen"),
    [
        ("strip", False, b"/x?y", b"/x?y"),
        ("strip", False, b"", b"/"),
        ("strip", False, b"?y", b"/?y"),
        ("keep", False, b"/x?y", PREFIX + b"/x?y"),
        ("keep", False, b"", PREFIX),
        ("keep", False, b"?y", PREFIX + b"?y"),
        ("strip", True, b"/", b"/"),
        ("strip", True, b"/x", b"/x"),
        ("strip", True, b"*", b"*"),
        ("strip", True, PREFIX + b"/x?y", b"/x?y"),
        ("strip", True, PREFIX + b"?y", b"/?y"),
        ("strip", True, PREFIX, b"/"),
        ("strip", True, PREFIX + b"x", PREFIX + b"x"),
        ("strip", True, b"/jobs/c/k/http/x", b"/jobs/c/k/http/x"),
        ("keep", True, b"/", PREFIX + b"/"),
        ("keep", True, b"/?y", PREFIX + b"/?y"),
        ("keep", True, b"/x", b"/x"),
        ("keep", True, PREFIX + b"/x", PREFIX + b"/x"),
    ],
)
def test_the_target_is_where_the_job_serves(mode: str, own_host: bool, target: bytes, seen: bytes) -> None:
    assert target_of_job(route(mode), target, own_host=own_host) == seen


@pytest.mark.parametrize(
    ("mode", "own_host", "target", "beside"),
    [
        ("strip", False, b"", True),
        ("strip", False, b"?y", True),
        ("strip", False, b"/", False),
        ("keep", False, b"", False),
        ("strip", True, b"/", False),
        ("keep", True, b"/", True),
        ("keep", True, b"/?y", True),
        ("keep", True, b"//", False),
        ("keep", True, b"/x", False),
    ],
)
def test_only_pages_that_are_asked_for_beside_the_root_are_redirected(
    mode: str, own_host: bool, target: bytes, beside: bool
) -> None:
    for method in (b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"PROPFIND"):
        head = parse_request(method + b" /x HTTP/1.1\r\nHost: h\r\n\r\n")
        expected = beside and method in (b"GET", b"HEAD")
        assert beside_its_root(route(mode), head, target, own_host=own_host) is expected
    upgrade = parse_request(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert not beside_its_root(route(mode), upgrade, target, own_host=own_host)


@pytest.mark.parametrize("outer", [b"", b"/outer"])
@pytest.mark.parametrize(
    ("mode", "own_host", "prefix", "hidden"),
    [
        ("strip", False, PREFIX, PREFIX),
        ("keep", False, b"", b""),
        ("strip", True, b"", PREFIX),
        ("keep", True, b"", b""),
    ],
)
def test_a_site_has_what_only_the_client_sees(
    mode: str, own_host: bool, prefix: bytes, hidden: bytes, outer: bytes
) -> None:
    head = parse_request(b"GET /x HTTP/1.1\r\nHost: h\r\nX-Forwarded-Prefix: " + outer + b"\r\n\r\n")
    public = Forwarded(head, Origin("127.0.0.1", 1, trusted=True)).public
    found = site(route(mode, "local"), public, prefix=PREFIX, own_host=own_host)
    assert (found.prefix, found.hidden, found.own_host) == (outer + prefix, hidden, own_host)
    assert found.local == b"127.0.0.1:5000"
    outside = Forwarded(head, Origin("::1", 1, trusted=False)).public
    assert site(route(mode), outside, prefix=PREFIX, own_host=own_host).local == b""


@pytest.mark.parametrize(
    ("mode", "target", "own_host", "domain", "upgrade", "location"),
    [
        ("strip", b"", False, b"", b"", b"/outer" + PREFIX + b"/"),
        ("strip", b"?q", False, b"", b"", b"/outer" + PREFIX + b"/?q"),
        ("strip", b"/x", False, b"", b"", b""),
        ("keep", b"/", True, b"", b"", b"/outer" + PREFIX + b"/"),
        ("strip", b"/x?q", False, b".jobs.example", b"", b"https://j.jobs.example:99/x?q"),
        ("strip", b"", False, b".jobs.example", b"", b"https://j.jobs.example:99/"),
        ("keep", b"/x", False, b".jobs.example", b"", b"https://j.jobs.example:99" + PREFIX + b"/x"),
        ("strip", b"/x", True, b".jobs.example", b"", b""),
        ("strip", b"/x", False, b".jobs.example", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b""),
    ],
)
def test_a_page_is_redirected_to_where_its_links_work(
    mode: str, target: bytes, own_host: bool, domain: bytes, upgrade: bytes, location: bytes
) -> None:
    fields = b"X-Forwarded-Proto: https\r\nX-Forwarded-Host: pub:99\r\nX-Forwarded-Prefix: /outer\r\n"
    head = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + fields + upgrade + b"\r\n")
    forwarded = Forwarded(head, Origin("127.0.0.1", 1, trusted=True))
    found = redirect_for(route(mode), forwarded, target, prefix=PREFIX, own_host=own_host, only_domain=domain)
    assert found == location
