"""No spelling of a path, host or method leads somebody to the job of somebody else, nor anybody without a token in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.access import Guarded
from tests.support.raw_http import Raw

SECRET = b"what-only-its-owner-reads"
SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"what-only-its-owner-reads " + self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_PUT = do_DELETE = do_OPTIONS = do_TRACE = do_PROPFIND = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
METHODS = ("GET", "HEAD", "get", "OPTIONS", "TRACE", "POST", "DELETE", "PROPFIND")
TAILS = ("/file/secret", "/http/", "/archive", "/logs/stdout")
"""What is read of the job."""
SPELLINGS = [
    "{job}{tail}", "/{job}{tail}", "{job}/{tail}", "{job}{tail}/", "{job}{tail}//", "{job}{tail};x=1", "{job};x{tail}",
    "/./{job}{tail}", "/jobs/./{c}/{u}{tail}", "{job}/.{tail}", "{own}/../{u}{tail}", "{own}/file/../../{u}{tail}",
    "{own}/%2e%2e/{u}{tail}", "{own}%2f..%2f{u}{tail}", "{own}/..%2f{u}{tail}", "{own}/http/../../{u}{tail}",
    "{own}/http/%2e%2e/%2e%2e/{u}{tail}", "{own}/shared/x/../../../{u}{tail}", "{own}/file/..%2f{u}%2fsecret",
    "{own}/file/%2e%2e/{u}/secret", "{own}/file/..%5c{u}%5csecret", "{own}/archive/..%2f{u}", "{own}?{u}{tail}",
    "{own}/info?job={u}&connection={c}", "/JOBS/{c}/{u}{tail}", "/%6aobs/{c}/{u}{tail}", "/jobs//{u}{tail}",
    "/jobs/x/{u}{tail}", "/jobs/{c}/{u}%20{tail}", "/jobs/{c}/{u}%00{tail}", "/jobs/{c}/{u}#{tail}",
    "{job}{tail}?owner=other", "\\jobs\\{c}\\{u}{tail}", "http://127.0.0.1{job}{tail}", "http://x{job}{tail}",
    "//127.0.0.1{job}{tail}",
]  # fmt: skip
HOSTS = ["{u}.jobs.localhost", "{U}.JOBS.localhost.", "{u}.jobs.localhost:80", "x.{u}.jobs.localhost",
         "{u}.jobs.localhost, 127.0.0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def it(short_dir: Path) -> Iterator[Guarded]:
    directory = short_dir / "confusion"
    directory.mkdir()
    guarded = Guarded(directory, **{"control.job_domain": "jobs.localhost", "control.hold": 0})
    yield guarded
    guarded.stop()


@pytest.fixture(scope="module")
def job(it: Guarded) -> str:
    """A job of `user` with a file and a server that both say what only `user` may read."""
    path = it.job("user", sys.executable, "-c", SERVER, expose={"port": "assign"})
    assert it.ask("user", "PUT", f"{path}/file/secret", data=SECRET).status_code in (200, 201)
    return path


def answer(it: Guarded, who: str | None, method: str, target: str, host: str = "127.0.0.1") -> bytes:
    """Send a request whose target nobody tidies up; what comes back."""
    token = f"Authorization: Bearer {it.tokens[who]}\r\n" if who is not None else ""
    with Raw(it.router.url) as raw:
        raw.request(method, target, f"Connection: close\r\nContent-Length: 0\r\n{token}", host=host)
        return raw.read_to_end()


@pytest.mark.parametrize("who", ["other", "viewer", None])
def test_no_spelling_leads_to_the_job_of_another(it: Guarded, job: str, who: str | None) -> None:
    _, _, connection, uid = job.split("/")
    places = {"job": job, "own": it.job("other"), "c": connection, "u": uid}
    for spelling in SPELLINGS:
        for tail in TAILS if "{tail}" in spelling else ("",):
            target = spelling.format(**places, tail=tail)
            for method in METHODS:
                got = answer(it, who, method, target)
                assert SECRET not in got, (method, target)
                if who is None:
                    assert got[9:12] in (b"400", b"401", b"421", b"429"), (method, target, got)
    assert it.ask("user", "GET", f"{job}/file/secret").content == SECRET


@pytest.mark.parametrize("who", ["other", "viewer", None])
def test_no_host_leads_to_the_job_of_another(it: Guarded, job: str, who: str | None) -> None:
    uid = job.rpartition("/")[2]
    for spelling in HOSTS:
        host = spelling.format(u=uid, U=uid.upper())
        for method in METHODS:
            assert SECRET not in answer(it, who, method, "/", host), (method, host)
    assert SECRET in answer(it, "user", "GET", "/", f"{uid}.jobs.localhost")
