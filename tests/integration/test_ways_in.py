"""Passes and share links over the wire: who gets in to which job, by host name and by path, and for how long."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.access import WORKERS, Guarded
from tests.support.browser_fields import hidden, sign_in
from tests.support.ports import free_port
from tests.support.processes import wait_until

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
TCP = {"Connection": "Upgrade", "Upgrade": "tcp"}
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
    guarded = Guarded(directory, **{"control.sandbox_shares": True, "control.trusted_proxies": ("127.0.0.1/32",)})
    yield guarded
    guarded.stop()


@pytest.fixture(scope="module")
def by_host(short_dir: Path) -> Iterator[Guarded]:
    """A router whose jobs have host names of their own."""
    directory = short_dir / "ways-host"
    directory.mkdir()
    port = free_port()
    sets: dict[str, Any] = {"control.port": port, "control.url": f"http://localhost:{port}"}
    sets |= {"control.job_domain": "jobs.localhost", "control.trusted_proxies": ("127.0.0.1/32",)}
    guarded = Guarded(directory, **sets)
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
    for fields in ({}, SCRIPT):
        answer = get(f"{it.router.url}{path}/tcp/http", **fields, **TCP, Cookie=cookie_of(entered))
        assert answer.status_code == 401, "a pass opens HTTP only"
    other = echo(it)
    wrong = root.replace(path.rpartition("/")[2], other.rpartition("/")[2])
    assert get(f"{wrong}/lab", **SCRIPT, Cookie=cookie_of(entered)).status_code == 401
    for one in (path, other):
        it.ask("user", "POST", f"{one}/remove")


def test_behind_tls_cookies_have_names_that_others_cannot_set(by_path: Guarded, by_host: Guarded) -> None:
    tls = {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/outer"}
    path = by_path.job("user")
    set_by_path = get(pass_url(by_path, "user", path), **tls).headers["Set-Cookie"]
    assert set_by_path.startswith("__Secure-prouter_pass=")
    assert f"; Path=/outer{path}/http; HttpOnly; SameSite=Lax; Secure" in set_by_path
    by_path.ask("user", "POST", f"{path}/remove")
    path = echo(by_host)
    url = pass_url(by_host, "user", path)
    entered = get(url, **tls)
    assert entered.headers["Set-Cookie"].startswith("__Host-Http-prouter_pass=")
    assert "; Path=/; HttpOnly; SameSite=Lax; Secure" in entered.headers["Set-Cookie"]
    root, cookie = url.partition("/.prouter/")[0], cookie_of(entered)
    assert get(f"{root}/", **tls, **SCRIPT, Cookie=cookie).status_code == 200
    plain = cookie.removeprefix("__Host-Http-")
    assert get(f"{root}/", **tls, **SCRIPT, Cookie=plain).status_code == 401
    by_host.ask("user", "POST", f"{path}/remove")


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


# -- share links ------------------------------------------------------------------------------------------------


def share(it: Guarded, who: str, path: str, **body: Any) -> dict[str, Any]:
    answer = it.ask(who, "POST", f"{path}/share", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def visit(url: str) -> tuple[str, str]:
    """Follow a link as a program does; the URL of the job's root, and the cookie."""
    entered = get(url)
    assert entered.status_code == 303, entered.text
    return url.partition("/.prouter/")[0], cookie_of(entered)


def test_a_share_link_opens_the_jobs_http_and_nothing_else(it: Guarded) -> None:
    path = echo(it)
    made = share(it, "user", path, name="for Ann", expires=3600)
    assert (made["name"], made["methods"], made["created_by"], made["valid"]) == ("for Ann", "all", "user", True)
    root, cookie = visit(made["url"])
    seen = get(f"{root}/x", Cookie=f"own=1; {cookie}").json()
    assert (seen["path"], seen["Cookie"]) == ("/x", "own=1")
    assert get(f"{root}/x", "POST", Cookie=cookie).status_code == 200
    assert get(f"{root}/x").status_code == 401
    assert get(f"{it.router.url}{path}/tcp/http", **TCP, Cookie=cookie).status_code == 401
    other = echo(it)
    wrong = root.replace(path.rpartition("/")[2], other.rpartition("/")[2])
    assert get(f"{wrong}/x", Cookie=cookie).status_code == 401
    assert get(made["url"].replace(root, wrong)).status_code == 403
    for target in ("/", "/whoami", "/jobs", f"{path}/info", f"{path}/share", f"{path}/file", "/tokens", "/events"):
        for fields in ({}, PAGE, SCRIPT):
            assert get(it.router.url + target, **{"Cookie": cookie, **fields}).status_code == 401
    assert it.ask("user", "GET", f"{path}/share").json()["shares"] == [
        {name: value for name, value in made.items() if name != "url"}
    ]
    for one in (path, other):
        it.ask("user", "POST", f"{one}/remove")


def test_a_link_for_reading_only_reads(it: Guarded) -> None:
    path = echo(it)
    root, cookie = visit(share(it, "user", path, methods="read")["url"])
    for method, fields, status in (
        ("GET", {}, 200),
        ("HEAD", {}, 501),
        ("OPTIONS", {}, 501),
        ("POST", {}, 403),
        ("PROPFIND", {}, 403),
        ("GET", {"X-HTTP-Method-Override": "DELETE"}, 403),
        ("GET", {"Connection": "Upgrade", "Upgrade": "websocket"}, 403),
    ):
        answer = get(f"{root}/x", method, Cookie=cookie, **fields)
        assert answer.status_code == status, (method, fields)
        if status == 403:
            assert answer.headers["X-PRouter-Error"] == "share_read_only"
    it.ask("user", "POST", f"{path}/remove")


def test_links_are_the_owners_and_the_operators(it: Guarded) -> None:
    path = it.job("user")
    for who, status in (("user", 201), ("operator", 201), ("other", 403), ("viewer", 403), (None, 401)):
        assert it.ask(who, "POST", f"{path}/share", json={}).status_code == status, who
    assert len(it.ask("user", "GET", f"{path}/share").json()["shares"]) == 2
    for who, status in (("other", 403), ("viewer", 403), (None, 401)):
        assert it.ask(who, "GET", f"{path}/share").status_code == status
    key = {"Idempotency-Key": "once"}
    made = it.ask("user", "POST", f"{path}/share", json={}, headers=key).json()
    again = it.ask("user", "POST", f"{path}/share", json={}, headers=key)
    assert (again.status_code, again.json()["code"]) == (409, "share_exists")
    assert again.json()["made"] == made["id"]
    other = it.job("user")
    assert it.ask("user", "DELETE", f"{other}/share/{made['id']}").status_code == 404, "it is another job's"
    assert it.ask("user", "DELETE", f"{path}/share/{made['id']}").status_code == 204
    assert it.ask("user", "DELETE", f"{path}/share/{made['id']}").status_code == 404
    for body in ({"expires": 0}, {"methods": "write"}, {"name": 1}, {"name": "x" * 300}, {"other": 1}):
        assert it.ask("user", "POST", f"{path}/share", json=body).status_code == 400
    for one in (path, other):
        it.ask("user", "POST", f"{one}/remove")


def test_a_link_that_ends_ends_what_it_opened(by_host: Guarded, jobs: Path) -> None:
    it = by_host
    path = it.job("user", sys.executable, str(jobs / "websocket_server.py"), expose={"port": "assign"})
    links = [share(it, "user", path) for _ in range(2)]
    root = links[0]["url"].partition("/.prouter/")[0]
    host = urlsplit(root).netloc
    with ExitStack() as stack:
        sockets = []
        for link in links:
            fields = {"Cookie": visit(link["url"])[1]}
            to = socket.create_connection(("127.0.0.1", urlsplit(root).port or 0))
            connection = stack.enter_context(connect(f"ws://{host}/echo", sock=to, additional_headers=fields))
            connection.send("hello")
            assert connection.recv(timeout=10) == "hello"
            sockets.append((connection, fields["Cookie"]))
        (ended, cookie), (kept, _) = sockets
        assert it.ask("user", "DELETE", f"{path}/share/{links[0]['id']}").status_code == 204
        assert {get(f"{root}/", Cookie=cookie).status_code for _ in range(8 * WORKERS)} == {401}
        assert get(links[0]["url"]).status_code == 403
        with pytest.raises(ConnectionClosed):
            ended.recv(timeout=15)
        kept.send("still")
        assert kept.recv(timeout=10) == "still"
    it.ask("user", "POST", f"{path}/remove")


def test_a_link_expires(by_host: Guarded) -> None:
    path = echo(by_host)
    root, cookie = visit(share(by_host, "user", path, expires=2)["url"])
    assert get(f"{root}/", Cookie=cookie).status_code == 200
    wait_until(lambda: get(f"{root}/", Cookie=cookie).status_code == 401, what="the link has expired")
    by_host.ask("user", "POST", f"{path}/remove")


def test_a_link_depends_on_its_makers_right(by_host: Guarded) -> None:
    it = by_host
    first = it.make("maker", "user")
    path = echo(it, first["token"])
    link = share(it, first["token"], path)
    root, cookie = visit(link["url"])
    second = it.make("maker", "user")
    assert it.ask("admin", "DELETE", f"/tokens/{first['id']}").status_code == 204
    assert get(f"{root}/", Cookie=cookie).status_code == 200, "they have another token of this name"
    assert it.ask("admin", "DELETE", f"/tokens/{second['id']}").status_code == 204
    assert get(f"{root}/", Cookie=cookie).status_code == 401
    assert get(link["url"]).status_code == 403
    (listed,) = it.ask("operator", "GET", f"{path}/share").json()["shares"]
    assert listed["valid"] is False
    it.make("maker", "viewer")
    assert get(f"{root}/", Cookie=cookie).status_code == 401, "a viewer may not open the job"
    it.make("maker", "user")
    wait_until(lambda: get(f"{root}/", Cookie=cookie).status_code == 200, what="the maker is back")
    it.ask("operator", "POST", f"{path}/remove")
    wait_until(lambda: link["id"] not in (it.directory / "state" / "shares.json").read_text(), what="it is forgotten")


def test_by_path_a_job_is_shared_in_a_sandbox_or_not_at_all(by_path: Guarded) -> None:
    path = echo(by_path)
    link = share(by_path, "user", path)["url"]
    entered = get(link, **PAGE)
    place = by_path.router.url + entered.headers["Location"]
    assert "/shared/" in place
    page = get(place, **PAGE)
    assert page.headers["Content-Security-Policy"].startswith("sandbox allow-scripts ")
    assert "allow-same-origin" not in page.headers["Content-Security-Policy"]
    assert page.json()["X-Forwarded-Prefix"] == urlsplit(place).path.rstrip("/")
    opaque = {**SCRIPT, "Sec-Fetch-Site": "cross-site", "Origin": "null"}
    assert get(f"{place}x", **opaque).headers["Access-Control-Allow-Origin"] == "null"
    assert get(f"{place}x", "POST", **opaque).headers["X-PRouter-Error"] == "cross_site"
    assert get(f"{place}x", "POST").headers["X-PRouter-Error"] == "share_read_only"
    root, cookie = link.partition("/.prouter/")[0], cookie_of(entered)
    for fields in (SCRIPT, opaque, {**PAGE, "Sec-Fetch-Dest": "iframe"}):
        assert get(f"{root}/x", Cookie=cookie, **fields).status_code == 401, "browsers get it in the sandbox only"
    led = get(f"{root}/x?y", Cookie=cookie, **PAGE)
    assert (led.status_code, led.headers["Location"].endswith("/x?y")) == (303, True)
    other = echo(by_path)
    assert get(place.replace(path, other), **PAGE).status_code == 401
    old = get(place.replace("/shared/", "/shared/x"), **PAGE)
    assert (old.status_code, "open the link again" in old.text) == (401, True)
    kept = by_path.job("user", sys.executable, "-c", ECHO, expose={"port": "assign", "path": "keep"})
    root, cookie = visit(pass_url(by_path, "user", kept))
    worker = {**SCRIPT, "Service-Worker": "script", "Cookie": cookie}
    assert get(root, **worker).headers["X-PRouter-Error"] == "service_worker_scope"
    assert get(f"{root}/sw.js", **worker).status_code == 200
    refused = by_path.ask("user", "POST", f"{kept}/share", json={})
    assert (refused.status_code, refused.json()["code"]) == (403, "share_needs_own_origin")
    for one in (path, other, kept):
        by_path.ask("user", "POST", f"{one}/remove")


def test_jobs_cannot_join_the_windows_of_the_router(it: Guarded) -> None:
    path = echo(it)
    url = pass_url(it, "user", path)
    root, cookie = visit(url)
    kept = "Cross-Origin-Opener-Policy" in get(f"{root}/", Cookie=cookie, **PAGE).headers
    assert kept is ("jobs.localhost" in root)
    it.ask("user", "POST", f"{path}/remove")


SIBLING = {**SCRIPT, "Sec-Fetch-Site": "same-site", "Origin": "http://sibling.jobs.localhost"}
"""Fields of a browser that shows another job's page."""


@pytest.mark.parametrize("way", ["pass", "share"])
def test_pages_of_other_origins_cannot_use_a_cookie(by_host: Guarded, way: str) -> None:
    path = echo(by_host)
    url = pass_url(by_host, "user", path) if way == "pass" else share(by_host, "user", path)["url"]
    root, cookie = visit(url)
    no_site = {name: value for name, value in SIBLING.items() if name != "Sec-Fetch-Site"}
    for method, fields, status in (
        ("POST", SIBLING, 403),
        ("POST", no_site, 403),
        ("POST", {**no_site, "Origin": "null"}, 403),
        ("GET", {**SIBLING, "Connection": "Upgrade", "Upgrade": "websocket"}, 403),
        ("GET", {**no_site, "Connection": "Upgrade", "Upgrade": "websocket"}, 403),
        ("GET", {**SIBLING, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ("GET", SIBLING, 200),
        ("GET", {**PAGE, "Sec-Fetch-Site": "cross-site"}, 200),
        ("POST", {**SCRIPT, "Origin": root}, 200),
        ("POST", {}, 200),
    ):
        answer = get(f"{root}/", method, Cookie=cookie, **fields)
        assert answer.status_code == status, (method, fields)
        if status == 403:
            assert answer.headers["X-PRouter-Error"] == "cross_site"
    by_host.ask("user", "POST", f"{path}/remove")


# -- from the dashboard -----------------------------------------------------------------------------------------


def test_somebody_signed_in_is_asked_before_a_job_is_opened_by_path(by_path: Guarded) -> None:
    path = echo(by_path)
    session = sign_in(by_path.router.url, by_path.tokens["user"])
    cookie = "; ".join(f"{name}={value}" for name, value in session.cookies.get_dict().items())
    led = get(f"{by_path.router.url}{path}/http/lab?a=1", **PAGE, Cookie=cookie)
    assert led.status_code == 303
    asking = get(by_path.router.url + led.headers["Location"], **PAGE, Cookie=cookie)
    assert (asking.status_code, asking.headers["Cross-Origin-Opener-Policy"]) == (200, "same-origin")
    form = {name: hidden(asking.text, name) for name in ("proof", "job", "next")}
    assert form["next"] == "/lab?a=1"
    own = {**PAGE, "Sec-Fetch-Site": "same-origin", "Origin": by_path.router.url, "Cookie": cookie}
    for fields in ({**form, "proof": "x"}, {**form, "proof": ""}):
        refused = requests.post(f"{by_path.router.url}/enter", data=fields, headers=own, timeout=30)
        assert refused.status_code == 401
    opened = requests.post(f"{by_path.router.url}/enter", data=form, headers=own, timeout=30, allow_redirects=False)
    assert opened.status_code == 303
    entered = get(opened.headers["Location"], **own)
    assert entered.headers["Location"] == f"{path}/http/lab?a=1"
    place = by_path.router.url + entered.headers["Location"]
    assert get(place, **{**SCRIPT, "Cookie": cookie_of(entered)}).status_code == 200
    for fields in (SCRIPT, {**PAGE, "Sec-Fetch-Dest": "iframe"}):
        asked = get(by_path.router.url + led.headers["Location"], Cookie=cookie, **fields)
        assert asked.status_code == 401
    nobody = get(f"{by_path.router.url}{path}/http/", **PAGE)
    form_shown = get(by_path.router.url + nobody.headers["Location"], **PAGE)
    assert form_shown.status_code == 401
    assert hidden(form_shown.text, "next").startswith("/enter?job=")
    operator = sign_in(by_path.router.url, by_path.tokens["operator"]).cookies.get_dict()["prouter_session"]
    theirs = get(by_path.router.url + led.headers["Location"], **PAGE, Cookie=f"prouter_session={operator}")
    assert (theirs.status_code, theirs.headers["X-PRouter-Error"]) == (403, "needs_own_origin")
    by_path.ask("user", "POST", f"{path}/remove")


def test_with_own_names_the_way_leads_through_the_public_url(by_host: Guarded) -> None:
    it, port = by_host, urlsplit(by_host.router.url).port
    url = f"http://localhost:{port}"
    path = echo(it)
    uid = path.rpartition("/")[2]
    session = sign_in(it.router.url, it.tokens["operator"]).cookies.get_dict()["prouter_session"]
    cookie = {"Cookie": f"prouter_session={session}"}
    host = f"http://{uid}.jobs.localhost:{port}"
    led = get(f"{host}/lab?a=1", **PAGE)
    assert led.headers["Location"] == f"{url}/enter?job={uid}&next=/lab%3Fa%3D1"
    opened = get(led.headers["Location"], **PAGE, **cookie)
    assert opened.headers["Location"].startswith(f"{host}/.prouter/enter?code=")
    entered = get(opened.headers["Location"], **PAGE)
    assert entered.headers["Location"] == "/lab?a=1"
    assert get(f"{host}/lab?a=1", **SCRIPT, Cookie=cookie_of(entered)).status_code == 200
    assert get(f"{host}/x", **SCRIPT).status_code == 401
    by_path = get(f"{url}{path}/http/lab", **PAGE, **cookie)
    assert by_path.headers["Location"] == f"/enter?job={uid}&next=/lab"
    other = sign_in(it.router.url, it.tokens["other"]).cookies.get_dict()["prouter_session"]
    refused = get(led.headers["Location"], **PAGE, Cookie=f"prouter_session={other}")
    assert (refused.status_code, refused.headers["X-PRouter-Error"]) == (403, "role_needed")
    it.ask("user", "POST", f"{path}/remove")
