"""Signing in at the dashboard: sessions over two workers, and what a browser's cookie opens and what it does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any, cast

import pytest
import requests

from tests.integration.test_access import ends
from tests.support.access import WORKERS, new_token, token_command
from tests.support.browser_fields import FETCH, NAVIGATION, hidden, proof_in, sign_in
from tests.support.processes import Router, start_router, wait_until


class Place:
    """A router that asks for tokens.

    Attributes:
        token: of alice, who is a user.
    """

    def __init__(self, directory: Path, workers: int = WORKERS, **sets: Any) -> None:
        self.directory = directory / "router"
        self.directory.mkdir(parents=True)
        self.token = self.make("alice", "user")["token"]
        self.audit = directory / "audit.log"
        self.router: Router = start_router(self.directory, workers=workers, **{"audit.file": str(self.audit), **sets})
        self.url = self.router.url

    def make(self, name: str, role: str) -> dict[str, Any]:
        return new_token(self.directory, name, role)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=30, allow_redirects=False, **options)

    def everywhere(self, browser: requests.Session, headers: dict[str, str]) -> set[int]:
        """What workers answer; each connection may go to another one."""
        return {self.get("/whoami", headers=headers, cookies=browser.cookies).status_code for _ in range(6 * WORKERS)}


@pytest.fixture(scope="module")
def it(short_dir: Path) -> Iterator[Place]:
    sets: dict[str, Any] = {"control.trusted_proxies": ("127.0.0.2/32",), "limits.failures_per_address": 0}
    place = Place(short_dir / "sign-in", **sets)
    yield place
    place.router.stop()


def only_cookie(browser: requests.Session) -> Cookie:
    (cookie,) = cast(Iterable[Cookie], browser.cookies)
    return cookie


def opened(it: Place, browser: requests.Session) -> dict[str, str]:
    """The fields of a script of the dashboard, once somebody who has signed in has opened it."""
    page = it.get("/", headers=NAVIGATION, cookies=browser.cookies)
    assert page.status_code == 200, page.text
    return {**FETCH, "X-PRouter-Proof": proof_in(page.text)}


def test_a_browser_signs_in_and_its_dashboard_uses_the_api(it: Place) -> None:
    asked = it.get("/", headers=NAVIGATION)
    assert (asked.status_code, asked.headers["WWW-Authenticate"]) == (401, 'Bearer realm="pRouter"')
    assert 'action="/sign-in"' in asked.text
    browser = sign_in(it.url, it.token)
    cookie = only_cookie(browser)
    assert (cookie.name, cookie.path, cookie.secure) == ("prouter_session", "/", False)
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "Strict"
    script = opened(it, browser)
    assert it.everywhere(browser, script) == {200}
    who = it.get("/whoami", headers=script, cookies=browser.cookies)
    assert who.json() == {"name": "alice", "role": "user", "via": "session"}


@pytest.mark.parametrize("path", ["/", "/sign-in"])
def test_a_page_with_a_proof_cannot_be_read_by_others(it: Place, path: str) -> None:
    browser = sign_in(it.url, it.token)
    page = it.get(path, headers=NAVIGATION, cookies=browser.cookies)
    fields = page.headers
    assert fields["Cross-Origin-Opener-Policy"] == "same-origin"
    assert fields["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in fields["Content-Security-Policy"]
    assert "unsafe-inline" not in fields["Content-Security-Policy"]
    assert fields["Cache-Control"] == "no-store, must-revalidate"
    assert fields["Referrer-Policy"] in ("no-referrer", "strict-origin")
    for other in (
        FETCH,
        {**NAVIGATION, "Sec-Fetch-Dest": "iframe"},
        {**NAVIGATION, "Sec-Fetch-Dest": "empty"},
        {**NAVIGATION, "Sec-Purpose": "prefetch;prerender"},
        {**NAVIGATION, "Purpose": "prefetch"},
        {"User-Agent": "Mozilla/5.0", "Accept": "text/html"},
    ):
        seen = it.get(path, headers={"Accept": "text/html", **other}, cookies=browser.cookies)
        assert 'name="prouter-proof" content="e' not in seen.text
        assert 'name="proof" value="e' not in seen.text


def test_a_cookie_alone_opens_nothing_to_a_browser(it: Place) -> None:
    browser, other = sign_in(it.url, it.token), sign_in(it.url, it.token)
    proof = opened(it, other)["X-PRouter-Proof"]
    for fields in (
        FETCH,
        NAVIGATION,
        {**FETCH, "X-PRouter-Proof": ""},
        {**FETCH, "X-PRouter-Proof": proof},
        {**FETCH, "X-PRouter-Proof": browser.cookies["prouter_session"]},
        {"User-Agent": "Mozilla/5.0 (X11)"},
        {"Origin": it.url},
        {**FETCH, "Referer": f"{it.url}/"},
    ):
        for path in ("/whoami", "/jobs", "/events"):
            refused = it.get(path, headers=fields, cookies=browser.cookies)
            assert refused.status_code == 401, fields
    assert (refused.json()["code"], "X-PRouter-Proof" in refused.json()["detail"]) == ("proof_needed", True)
    page = it.get("/jobs", headers=NAVIGATION, cookies=browser.cookies)
    assert "You are signed in as &#x27;alice&#x27;" in page.text
    program = it.get("/whoami", cookies=browser.cookies)
    assert program.json()["via"] == "session", "a program runs no foreign pages"


def test_signing_out_ends_the_session_everywhere_and_what_it_had_open(it: Place) -> None:
    browser, other = sign_in(it.url, it.token), sign_in(it.url, it.token)
    script = opened(it, browser)
    sse = {**script, "Accept": "text/event-stream"}
    events = requests.get(f"{it.url}/events", headers=sse, cookies=browser.cookies, stream=True, timeout=30)
    assert events.status_code == 200
    with events:
        reader = ends(partial(next, events.iter_content(1), b""))
        without = requests.post(f"{it.url}/sign-out", headers=FETCH, cookies=browser.cookies, timeout=30)
        assert without.status_code == 401
        done = requests.post(f"{it.url}/sign-out", headers=script, cookies=browser.cookies, timeout=30)
        assert (done.status_code, "Max-Age=0" in done.headers["Set-Cookie"]) == (204, True)
        assert it.everywhere(browser, script) == {401}
        assert it.everywhere(browser, {}) == {401}
        assert it.everywhere(other, opened(it, other)) == {200}
        reader.join(15)
        assert not reader.is_alive()


def test_a_session_ends_with_its_token(it: Place) -> None:
    made = it.make("bob", "operator")
    browser = sign_in(it.url, made["token"])
    script = opened(it, browser)
    assert it.everywhere(browser, script) == {200}
    assert token_command(it.directory, "revoke", made["id"]).returncode == 0
    assert it.everywhere(browser, script) == {401}
    assert 'name="token"' in it.get("/", headers=NAVIGATION, cookies=browser.cookies).text


def test_a_session_is_not_longer_than_its_token(it: Place) -> None:
    admin = {"Authorization": f"Bearer {it.make('root', 'admin')['token']}"}
    body = {"name": "brief", "role": "viewer", "expires": 3}
    token = requests.post(f"{it.url}/tokens", json=body, headers=admin, timeout=30).json()["token"]
    browser = sign_in(it.url, token)
    cookie = only_cookie(browser)
    assert cookie.expires is not None
    wait_until(lambda: it.everywhere(browser, {}) == {401}, what="the session has ended")


def test_cookies_that_were_changed_or_contradict_each_other_count_for_nothing(it: Place) -> None:
    browser, mallory = sign_in(it.url, it.token), sign_in(it.url, it.make("mallory", "user")["token"])
    good, planted = browser.cookies["prouter_session"], mallory.cookies["prouter_session"]
    head, claims, signature = good.split(".")
    wrong = [
        f"{head}.{claims}.{signature[:-2]}AA",
        f"{head}.{planted.split('.')[1]}.{signature}",
        f"eyJhbGciOiJub25lIn0.{claims}.",
        good + "x",
        "",
    ]
    for value in wrong:
        assert it.get("/whoami", headers={"Cookie": f"prouter_session={value}"}).status_code == 401
    for both in (f"{planted}; prouter_session={good}", f"{good}; prouter_session={planted}"):
        assert it.get("/whoami", headers={"Cookie": f"prouter_session={both}"}).status_code == 401
    script = opened(it, browser)
    for other in (planted, "planted", f"{head}.{claims}.{signature[:-2]}AA"):  # for a path, a page can plant one
        beside = {**script, "Cookie": f"prouter_session={other}; prouter_session={good}"}
        assert it.get("/whoami", headers=beside).json()["name"] == "alice"
    same = it.get("/whoami", headers={"Cookie": f"prouter_session={good}; prouter_session={good}"})
    assert same.status_code == 200


def test_no_page_signs_its_visitor_in(it: Place) -> None:
    """As somebody else, whose jobs and files the visitor would then take for their own."""
    url = f"{it.url}/sign-in"
    navigation = {**NAVIGATION, "Sec-Fetch-Site": "same-origin"}
    form = it.get("/sign-in", headers=NAVIGATION).text
    proxied = {"X-Forwarded-For": "203.0.113.9"}
    with requests.Session() as elsewhere:  # the attacker's own browser
        elsewhere.get_adapter("http://").init_poolmanager(1, 1, source_address=("127.0.0.2", 0))  # type: ignore[attr-defined]
        theirs = elsewhere.get(url, headers={**NAVIGATION, **proxied}, timeout=30).text
    browser = sign_in(it.url, it.token)
    for fields, proof, cookies in (
        (navigation, "", None),
        (navigation, hidden(theirs, "proof"), None),
        (navigation, hidden(form, "proof"), browser.cookies),  # while somebody else is signed in
        ({**navigation, "Sec-Fetch-Site": "cross-site"}, hidden(form, "proof"), None),
        ({**FETCH, "Origin": it.url}, "", None),
        ({"Origin": "http://elsewhere.example"}, hidden(form, "proof"), None),
    ):
        data = {"token": it.token, "proof": proof, "next": "/"}
        done = requests.post(url, data=data, headers=fields, cookies=cookies, timeout=30, allow_redirects=False)
        assert done.status_code in (401, 403), (fields, done.text)
        assert "Set-Cookie" not in done.headers


@pytest.mark.parametrize(
    ("target", "then"),
    [
        ("/jobs/c/j/http/tree?a=%2F..&b=1", "/jobs/c/j/http/tree?a=%2F..&b=1"),
        ("//elsewhere.example/", "/"),
        ("/\\elsewhere.example/", "/"),
        ("\\/elsewhere.example/", "/"),
        ("https://elsewhere.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\t/elsewhere.example", "/"),
        ("/x\r\nSet-Cookie: a=b", "/"),
        ("/ü", "/"),
        ("", "/"),
        ("/" + "x" * 5000, "/"),
    ],
)
def test_one_goes_on_to_this_router_only(it: Place, target: str, then: str) -> None:
    form = it.get("/sign-in", params={"next": target}, headers=NAVIGATION).text
    assert "elsewhere.example" not in form
    data = {"token": it.token, "next": target}
    done = requests.post(f"{it.url}/sign-in", data=data, timeout=30, allow_redirects=False)
    assert (done.status_code, done.headers["Location"]) == (303, then)


def test_a_wrong_token_gets_the_form_again(it: Place) -> None:
    for token in ("prt_wrong", "", "x" * 9000, "\x00"):
        form = it.get("/sign-in", headers=NAVIGATION).text
        data = {"token": token, "proof": hidden(form, "proof"), "next": "/"}
        navigation = {**NAVIGATION, "Sec-Fetch-Site": "same-origin"}
        done = requests.post(f"{it.url}/sign-in", data=data, headers=navigation, timeout=30)
        assert done.status_code == 401
        assert "mistyped, revoked or expired" in done.text
        assert 'name="token"' in done.text
    program = requests.post(f"{it.url}/sign-in", data={"token": "prt_wrong"}, timeout=30)
    assert (program.status_code, program.json()["code"]) == (401, "sign_in_failed")
    twice = requests.post(f"{it.url}/sign-in", data=[("token", it.token), ("token", "x")], timeout=30)
    assert twice.status_code == 400
    assert requests.post(f"{it.url}/sign-in", json={"token": it.token}, timeout=30).status_code == 415


def test_behind_tls_only_the_cookie_counts_that_no_page_without_it_can_set(it: Place) -> None:
    tls = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "prouter.localhost"}
    with requests.Session() as proxy:
        proxy.get_adapter("http://").init_poolmanager(1, 1, source_address=("127.0.0.2", 0))  # type: ignore[attr-defined]

        def ask(path: str, **fields: str) -> int:
            proxy.cookies.clear()
            return proxy.get(it.url + path, headers={**tls, **fields}, timeout=30).status_code

        done = proxy.post(f"{it.url}/sign-in", data={"token": it.token}, headers=tls, timeout=30, allow_redirects=False)
        set_cookie = done.headers["Set-Cookie"]
        name, _, rest = set_cookie.partition("=")
        value = rest.partition(";")[0]
        assert name == "__Host-Http-prouter_session"
        assert {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"} <= set(set_cookie.split("; "))
        assert ask("/whoami", Cookie=f"__Host-Http-prouter_session={value}") == 200
        assert ask("/whoami", Cookie=f"prouter_session={value}") == 401
        below = {**tls, "X-Forwarded-Prefix": "/prouter"}
        done = proxy.post(
            f"{it.url}/sign-in", data={"token": it.token}, headers=below, timeout=30, allow_redirects=False
        )
        assert done.headers["Set-Cookie"].startswith("__Secure-prouter_session=")
        assert "; Path=/prouter;" in done.headers["Set-Cookie"]
        assert done.headers["Location"] == "/prouter/"


def test_a_link_on_another_site_leads_to_the_dashboard_and_not_to_the_form(it: Place) -> None:
    page = it.get("/", headers={**NAVIGATION, "Sec-Fetch-Site": "cross-site"})  # without the cookie: it is Strict
    assert 'http-equiv="refresh"' in page.text
    assert 'name="token"' not in page.text


def test_the_audit_log_names_who_signed_in_and_out(it: Place) -> None:
    browser = sign_in(it.url, it.token)
    requests.post(f"{it.url}/sign-out", headers=opened(it, browser), cookies=browser.cookies, timeout=30)
    requests.post(f"{it.url}/sign-in", data={"token": "prt_wrong"}, timeout=30)
    text = it.audit.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    shown = [(line["operation"], line["name"], line["via"], line["status"]) for line in lines[-3:]]
    assert shown == [
        ("signIn", "alice", "session", 303),
        ("signOut", "alice", "session", 204),
        ("signIn", None, None, 401),
    ]
    haystack = text + "".join(path.read_text(errors="replace") for path in it.directory.rglob("*.log"))
    for secret in (it.token, "prt_wrong", browser.cookies["prouter_session"]):
        assert secret not in haystack


@pytest.fixture(scope="module")
def own_names(short_dir: Path) -> Iterator[Place]:
    """A router where each job has an origin of its own."""
    sets: dict[str, Any] = {
        "control.job_domain": "jobs.localhost",
        "control.job_domain_only": True,
        "limits.failures_per_address": 60,
    }
    place = Place(short_dir / "own-names", 1, **sets)
    yield place
    place.router.stop()


def test_where_jobs_have_origins_of_their_own_a_session_needs_no_proof(own_names: Place) -> None:
    place = own_names
    browser = sign_in(place.url, place.token)
    assert place.get("/whoami", headers=FETCH, cookies=browser.cookies).json()["via"] == "session"
    assert place.get("/", headers=NAVIGATION, cookies=browser.cookies).status_code == 200
    foreign = {**FETCH, "Sec-Fetch-Site": "same-site", "Origin": "http://j.jobs.localhost"}
    done = requests.post(f"{place.url}/sign-out", headers=foreign, cookies=browser.cookies, timeout=30)
    assert done.status_code == 403
    # Over plain http to other machines a browser says less, but names the form's origin.
    plain = {"User-Agent": "Mozilla/5.0", "Accept": "text/html"}
    form = place.get("/sign-in", headers=plain)
    assert form.headers["Referrer-Policy"] == "strict-origin"
    data = {"token": place.token, "proof": hidden(form.text, "proof"), "next": "/"}
    for origin, status in (("http://j.jobs.localhost", 403), ("null", 403), (place.url, 303)):
        fields = {**plain, "Origin": origin}
        done = requests.post(f"{place.url}/sign-in", data=data, headers=fields, timeout=30, allow_redirects=False)
        assert done.status_code == status, origin


def test_wrong_tokens_have_a_budget_and_right_ones_do_not(own_names: Place) -> None:
    place = own_names
    answers = [requests.post(f"{place.url}/sign-in", data={"token": "prt_wrong"}, timeout=30) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
    assert answers[-1].json()["limit"]["name"] == "limits.failures_per_address"
    assert int(answers[-1].headers["Retry-After"]) > 0
    sign_in(place.url, place.token)


def test_nobody_signs_in_at_an_open_router(router: Router) -> None:
    assert requests.get(f"{router.url}/", headers=NAVIGATION, timeout=30).status_code == 200
    for done in (
        requests.get(f"{router.url}/sign-in", headers=NAVIGATION, timeout=30, allow_redirects=False),
        requests.post(f"{router.url}/sign-in", data={"token": "x"}, timeout=30, allow_redirects=False),
    ):
        assert (done.status_code, done.headers["Location"]) == (303, "/")
