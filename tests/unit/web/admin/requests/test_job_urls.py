"""The URL of a job, in one info and in lists of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prouter.web.admin.requests.job_urls import JobUrls
from prouter.web.proxy.addresses.forwarded import Public

BASE = "/jobs/c/j/http/"


def job(base: str | None = BASE, **more: Any) -> dict[str, Any]:
    return {"uid": "j", "name": "n", "path": "/jobs/c/j", "base_url": base, **more}


@pytest.mark.parametrize(
    ("environ", "domain", "url"),
    [
        ({"HTTP_HOST": "h:8888", "wsgi.url_scheme": "http"}, None, "http://h:8888" + BASE),
        ({}, None, "http://localhost" + BASE),
        ({"prouter.public": Public(b"https", b"pub", b"/outer")}, None, "https://pub/outer" + BASE),
        ({"prouter.public": Public(b"http", b"[::1]:8888")}, None, "http://[::1]:8888" + BASE),
        ({"prouter.public": Public(b"http", b"127.0.0.1:8888")}, "jobs.example.org", "http://j.jobs.example.org:8888/"),
        ({"prouter.public": Public(b"http", b"[::1]")}, ".jobs.example.org.", "http://j.jobs.example.org/"),
        ({"prouter.public": Public(b"https", b"pub", b"/outer")}, "jobs.example.org", "https://j.jobs.example.org/"),
    ],
)
def test_a_job_is_where_the_request_and_the_configuration_say(
    environ: dict[str, Any], domain: str | None, url: str
) -> None:
    urls = JobUrls(environ, domain)
    assert urls.add_to(job()) == job(url=url)
    assert urls.add_to(job(None)) == job(None, url=None)
    listed = json.dumps([job(), job(None)], separators=(",", ":")).encode()
    assert json.loads(urls.add_to_list(listed)) == [job(url=url), job(None, url=None)]


def test_no_text_in_a_list_is_taken_for_a_place() -> None:
    text = '","path":"/jobs/c/j","base_url":"/jobs/c/j/http/'
    jobs = [job(None, error=text, args=[text, text + "\\", "\\"])]
    listed = json.dumps(jobs, separators=(",", ":")).encode()
    assert json.loads(JobUrls({}, None).add_to_list(listed)) == [{**jobs[0], "url": None}]


def test_odd_host_names_leave_a_list_valid() -> None:
    urls = JobUrls({"prouter.public": Public(b"http", b'h"\\\xe4')}, None)
    listed = json.dumps([job()], separators=(",", ":")).encode()
    assert json.loads(urls.add_to_list(listed))[0]["url"] == urls.url(job())
