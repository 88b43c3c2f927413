"""Roots of jobs: what a request asks for by its path, and where a visitor may be led below a root."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prouter.web.proxy.addresses.forwarded import Public
from prouter.web.proxy.addresses.roots import asked_for, public_of, root_of, safe_path

ROOT = "https://router.example/jobs/c/j/http"
PIECES = st.sampled_from(
    ["/", "//", "\\", "..", ".", "%2e", "%2F", "%5c", "a", "http:", "?", "#", "@", ";", "\t", "\n", "é"]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_a_visitor_is_led_to_nothing_outside_the_root(path: str) -> None:
    found = safe_path(path)
    assert urljoin(ROOT + "/", ROOT + found).startswith(ROOT + "/")
    assert urljoin("https://j.jobs.example/", found).startswith("https://j.jobs.example/")
    assert found in (path, "/")
    assert not set(found) & set("\r\n\\ ")


@pytest.mark.parametrize("path", ["/", "/lab", "/lab?a=1&b=/../x", "/a%20b", "/a..b/.hidden", "/x#y"])
def test_usual_paths_are_kept(path: str) -> None:
    assert safe_path(path) == path


@given(st.lists(st.sampled_from([b"/", b"jobs", b"c", b"http", b"shared", b"KEY", b"?", b"x", b"%2f"])).map(b"".join))
def test_what_is_asked_for_is_the_whole_target(rest: bytes) -> None:
    target = b"/jobs/" + rest
    asked = asked_for(target)
    assert asked is None or asked.prefix + asked.target == target


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"/jobs/c/j/http", ("c", "j", b"", None)),
        (b"/jobs/c/j/http/x?y", ("c", "j", b"/x?y", None)),
        (b"/jobs/c/j/shared/KEY/x/shared/y", ("c", "j", b"/x/shared/y", b"KEY")),
        (b"/jobs/c/j/shared/KEY", ("c", "j", b"", b"KEY")),
        (b"/jobs/c/j/shared/KEY?q", ("c", "j", b"?q", b"KEY")),
        (b"/jobs/c/j/shared//x", ("c", "j", b"/x", b"")),
        (b"/jobs/c/j/shared", None),
        (b"/jobs/c/j/share", None),
        (b"/jobs/c/j/httpx", None),
        (b"/jobs//j/http", None),
    ],
)
def test_jobs_are_asked_for_by_path(target: bytes, found: tuple[str, str, bytes, bytes | None] | None) -> None:
    asked = asked_for(target)
    assert (asked and (asked.connection, asked.job, asked.target, asked.key)) == found


def test_a_pass_in_the_path_is_not_shown() -> None:
    asked = asked_for(b"/jobs/c/j/shared/KEY/x?token=1")
    assert asked is not None
    assert asked.shown == "/jobs/c/j/shared/-/x"


def test_roots_are_below_the_path_or_the_own_host_name() -> None:
    public = public_of("https://router.example:8443/outer")
    assert public == Public(b"https", b"router.example:8443", b"/outer")
    assert root_of(public, "c", "j", None) == "https://router.example:8443/outer/jobs/c/j/http"
    assert root_of(public, "c", "j", "jobs.example") == "https://j.jobs.example:8443"
