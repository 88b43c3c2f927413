"""Passes and share links over the wire: who gets in to which job, by host name and by path, and for how long."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests

from tests.support.access import Guarded

ECHO = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, **dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
"""A job that answers with the fields of the request."""
PAGE = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none", "Accept": "text/html"}
"""Fields of a browser that opens a page."""
SCRIPT = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Site": "same-origin"}
"""Fields of a browser whose page's script asks."""


ELSEWHERE = ("//evil.example/", "/\\evil.example", "https://evil.example/", "/a/../../x", "/%2e%2E/x", "/é", "x", "",
             "/a\r\nSet-Cookie: x=1", "/" + "a" * 5000)  # fmt: skip


@pytest.fixture(scope="module")
def by_path(short_dir: Path) -> Iterator[Guarded]:
    """A router whose jobs share its origin."""
    directory = short_dir / "ways-path"
    directory.mkdir()
    guarded = Guarded(directory, **{"control.sandbox_shares": True})
    yield guarded
    guarded.stop()


@pytest.fixture(scope="module")
def by_host(short_dir: Path) -> Iterator[Guarded]:
    """A router whose jobs have host names of their own."""
    directory = short_dir / "ways-host"
    directory.mkdir()
    guarded = Guarded(directory, **{"control.job_domain": "jobs.localhost"})
    yield guarded
    guarded.stop()


@pytest.fixture(params=["path", "host"])
def it(request: pytest.FixtureRequest) -> Guarded:
    found: Guarded = request.getfixturevalue(f"by_{request.param}")
    return found


def echo(it: Guarded, who: str = "user") -> str:
    """A job of somebody that answers with the fields of each request; its path."""
    return it.job(who, sys.executable, "-c", ECHO, expose={"port": "assign"})


def get(url: str, method: str = "GET", **fields: str) -> requests.Response:
    """Send a request; host names below ``localhost`` are this machine, whatever its resolver says."""
    parts = urlsplit(url)
    at = parts._replace(netloc=f"127.0.0.1:{parts.port}").geturl()
    return requests.request(method, at, headers={"Host": parts.netloc, **fields}, allow_redirects=False, timeout=30)


def cookie_of(answer: requests.Response) -> str:
    """The pass that a response sets, as ``Cookie`` has it."""
    return answer.headers["Set-Cookie"].partition(";")[0]


def pass_url(it: Guarded, who: str, path: str) -> str:
    answer = it.ask(who, "POST", f"{path}/pass")
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["url"]
    return url


def test_a_pass_opens_one_job_in_a_browser(it: Guarded) -> None:
    path = echo(it)
    url = pass_url(it, "user", path)
    entered = get(url + "&next=/lab%3Fa=1", **PAGE)
    assert entered.status_code == 303
    assert "HttpOnly; SameSite=Lax" in entered.headers["Set-Cookie"]
    assert (entered.headers["Referrer-Policy"], entered.headers["Cache-Control"][:8]) == ("no-referrer", "no-store")
    assert entered.headers["Location"].endswith("/lab?a=1")
    root = url.partition("/.prouter/")[0]
    seen = get(f"{root}/lab", **PAGE, Cookie=cookie_of(entered))
    assert seen.status_code == 200
    assert "Cookie" not in seen.json(), "the job does not see the pass"
    assert get(f"{root}/lab", **SCRIPT, Cookie=cookie_of(entered)).status_code == 200
    assert get(f"{root}/lab", **SCRIPT).status_code == 401
    other = echo(it)
    wrong = root.replace(path.rpartition("/")[2], other.rpartition("/")[2])
    assert get(f"{wrong}/lab", **SCRIPT, Cookie=cookie_of(entered)).status_code == 401
    for one in (path, other):
        it.ask("user", "POST", f"{one}/remove")


def test_a_pass_ends_with_its_token(it: Guarded) -> None:
    made = it.make("user", "user")
    path = echo(it)
    url = pass_url(it, made["token"], path)
    cookie = cookie_of(get(url, **PAGE))
    root = url.partition("/.prouter/")[0]
    assert get(f"{root}/", **SCRIPT, Cookie=cookie).status_code == 200
    assert it.ask("admin", "DELETE", f"/tokens/{made['id']}").status_code == 204
    assert get(f"{root}/", **SCRIPT, Cookie=cookie).status_code == 401
    it.ask("user", "POST", f"{path}/remove")


def test_only_owners_get_passes_and_by_path_nobody_else(by_path: Guarded, by_host: Guarded) -> None:
    for it, operators in ((by_path, 403), (by_host, 200)):
        path = echo(it)
        for who, status in (("user", 200), ("operator", operators), ("other", 403), ("viewer", 403), (None, 401)):
            answer = it.ask(who, "POST", f"{path}/pass")
            assert answer.status_code == status, (who, answer.text)
        it.ask("user", "POST", f"{path}/remove")
    refused = by_path.ask("operator", "POST", f"{(kept := echo(by_path))}/pass").json()
    assert refused["code"] == "needs_own_origin"
    assert "control.job_domain" in refused["detail"]
    by_path.ask("user", "POST", f"{kept}/remove")


def test_next_leads_nowhere_else(by_host: Guarded) -> None:
    path = echo(by_host)
    url = pass_url(by_host, "user", path)
    for where in ELSEWHERE:
        entered = get(f"{url}&next={quote(where, safe='')}")
        assert (entered.status_code, entered.headers["Location"]) == (303, "/"), where
    by_host.ask("user", "POST", f"{path}/remove")


def test_a_wrong_code_says_what_to_do(it: Guarded) -> None:
    path = it.job("user")
    root = pass_url(it, "user", path).partition("/.prouter/")[0]
    for method, code in itertools.product(("GET", "HEAD"), ("", "x", "shr_x", "prt_x", "a.b.c")):
        answer = get(f"{root}/.prouter/enter?code={code}", method, Accept="application/json")
        assert answer.status_code == 403
        assert answer.headers["X-PRouter-Error"] == "link_refused"
        assert "Set-Cookie" not in answer.headers
    assert get(f"{root}/.prouter/enter?code={code}", "POST").status_code == 405
    assert "ask for a new link" in get(f"{root}/.prouter/enter?code={code}", **PAGE).text
    it.ask("user", "POST", f"{path}/remove")


def test_codes_of_one_job_or_kind_do_not_count_for_another(it: Guarded) -> None:
    path, other = it.job("user"), it.job("user")
    url = pass_url(it, "user", path)
    wrong = url.replace(path, other).replace(path.rpartition("/")[2], other.rpartition("/")[2])
    assert get(wrong).status_code == 403
    cookie = cookie_of(get(url))
    root, code = url.partition("/.prouter/")[0], url.partition("code=")[2]
    assert get(f"{root}/.prouter/enter?code={cookie.partition('=')[2]}").status_code == 403
    assert get(f"{root}/", **SCRIPT, Cookie=f"prouter_pass={code}").status_code == 401
    assert get(f"{root}/", **SCRIPT, Cookie=f"prouter_session={cookie.partition('=')[2]}").status_code == 401
    for one in (path, other):
        it.ask("user", "POST", f"{one}/remove")
