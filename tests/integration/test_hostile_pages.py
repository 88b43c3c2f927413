"""Hostile pages of jobs in a real browser: what they can do with their visitor, by path and by host name.

The page tries all that a page can (`tests/jobs/hostile.js`). What counts is what the router executed and sent: the
audit log has no change that the visitor did not ask for, and no attempt has read anything of the API or another job.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.access import Guarded
from tests.support.browser_fields import sign_in
from tests.support.chromium import Browser, Profile, Tab, browser
from tests.support.programs import needed

pytestmark = needed("chromium")

HOSTILE = str(Path(__file__).parents[1] / "jobs" / "hostile_server.py")
SECRET = "what-only-the-other-job-shows"
READABLE = re.compile(
    rf'"role"|"jobs":|"connections":|"tokens":|prouter-proof|name="proof" value="e|id="live"|{SECRET}'
)
"""What no hostile page may read: answers of the API, pages with a proof, the other job."""
RUN = json.dumps({"name": "stolen", "agent": {"type": "any"}, "args": ["true"], "port_expected_count": 0})
CHANGING = ("/jobs/run", "/tokens", "/sign-out", "/enter")
READING = ("/", "/jobs", "/enter", "/events")


@pytest.fixture(scope="module")
def chromium(short_dir: Path) -> Iterator[Browser]:
    with browser(short_dir / "chromium") as found:
        yield found


class Place:
    """A router with an audit log, a hostile job and another one, both of `user`.

    Args:
        host: name of the router's machine in URLs.
    """

    def __init__(self, directory: Path, host: str, **sets: Any) -> None:
        directory.mkdir()
        self.host = host
        self._audit = directory / "audit.log"
        self.it = Guarded(directory, **{"audit.file": str(self._audit), **sets})
        self.url = self.named(self.it.router.url)
        self.hostile, self.other = self._job("own"), self._job(SECRET)

    def named(self, url: str) -> str:
        return url.replace("127.0.0.1", self.host)

    def _job(self, secret: str) -> str:
        return self.it.job("user", sys.executable, HOSTILE, secret, expose={"port": "assign"})

    def way_in(self, kind: str, path: str) -> str:
        """The URL of a pass or a share link."""
        answer = self.it.ask("user", "POST", f"{path}/{kind}", json={}, headers={"Host": self.url.partition("//")[2]})
        url: str = answer.json()["url"]
        return url

    def untouched(self) -> bool:
        """Whether the other job was sent no POST, and has opened no WebSocket."""
        names = ("changes", "sockets")
        found = [self.it.ask("user", "GET", f"{self.other}/file/{name}") for name in names]
        return all(one.status_code == 404 for one in found)

    def changes(self) -> list[str]:
        """Operations that changed something, except those of this test's own tokens."""
        lines = [json.loads(line) for line in self._audit.read_text().splitlines()]
        passing = ("enter", "http", "signIn", "upgrade")
        return [
            line["operation"]
            for line in lines
            if line["via"] != "token" and line["operation"] not in passing and (line["status"] or 0) < 400
        ]

    def sign_in(self, profile: Profile) -> Tab:
        """The dashboard of `user`."""
        tab = profile.open(f"{self.url}/sign-in")
        tab.run(f"document.getElementById('token').value = {self.it.tokens['user']!r}")
        tab.run("document.forms[0].requestSubmit()")
        tab.wait("location.pathname === '/' && document.getElementById('live').textContent === 'live'")
        return tab

    def attack(self, tab: Tab, others: list[str]) -> None:
        """Have the page try everything; nothing of it may have an effect."""
        before = self.changes()
        for url in [*(self.url + path for path in READING), *others]:
            for way, found in tab.run(f"readings({url!r})").items():
                assert not READABLE.search(found), f"{way} of {url}: {found[:1000]}"
        for url in [*(self.url + path for path in CHANGING), *others]:
            for way, found in tab.run(f"changes({url!r}, {RUN!r})").items():
                assert not found.startswith("200"), f"{way} of {url}: {found[:1000]}"
        assert self.changes() == before
        assert self.untouched()
        written = self._audit.read_text() + self.it.router.log.read_text()
        assert not re.search(r"eyJ|shr_|prt_", written), "a pass, a link or a token is in a log"


@pytest.fixture(scope="module")
def by_path(short_dir: Path) -> Iterator[Place]:
    login = {"control.user_header": "X-Forwarded-User", "control.trusted_proxies": ("127.0.0.1/32",)}
    place = Place(short_dir / "hostile-path", "localhost", **{"control.sandbox_shares": True, **login})
    yield place
    place.it.stop()


@pytest.fixture(scope="module")
def by_host(short_dir: Path) -> Iterator[Place]:
    # app.localhost and the names below it are one site, as prouter.example.org and jobs.example.org are.
    sets = {"control.job_domain": "jobs.app.localhost", "control.job_domain_only": True}
    place = Place(short_dir / "hostile-host", "app.localhost", **sets)
    yield place
    place.it.stop()


def loaded(tab: Tab) -> None:
    try:
        tab.wait("document.title === 'hostile' && document.readyState === 'complete' && window.seven === 7")
    except AssertionError as error:
        raise AssertionError(tab.run("document.documentElement.outerHTML")) from error


def own_works(tab: Tab, *, socket: str, post: str) -> dict[str, Any]:
    """Check that the hostile page can use its own job; what it found."""
    found: dict[str, Any] = tab.run("own()")
    points = '{"points": [1, 2, 3]}'
    assert (found["styled"], found["image"], found["module"]) == ("rgb(1, 2, 3)", 7, 7)
    assert (found["data"], found["plain"]) == (f"200 {points}", points)
    assert found["socket"].startswith(socket), found
    assert found["post"].startswith(post), found
    assert "prouter_" not in found["echo"], "the job sees none of the router's cookies"
    return found


def test_a_job_by_path_cannot_use_the_owner_who_opened_it(chromium: Browser, by_path: Place) -> None:
    profile = chromium.profile()
    dashboard = by_path.sign_in(profile)
    tab = profile.open(f"{by_path.url}{by_path.hostile}/http/")
    assert "Open the job" in tab.run("document.body.innerText")
    tab.run("document.forms[0].requestSubmit()")
    loaded(tab)
    found = own_works(tab, socket="101 ws own", post="200 changed")
    assert "own=1" in found["echo"]
    paths = ("http/secret", "http/ws", "info")
    by_path.attack(tab, [f"{by_path.url}{by_path.other}/{path}" for path in paths])
    assert "refused" in tab.run("take('/')"), "no service worker for the router's origin"
    assert tab.run("take()").endswith(f"{by_path.hostile}/http/")
    # Scripts may set cookies for the whole origin. What they set counts for nothing, and may sign its visitor out.
    stranger = sign_in(by_path.it.router.url, by_path.it.tokens["other"]).cookies["prouter_session"]
    tab.run(f"plant({stranger!r})")
    assert not any(cookie["name"].startswith("__Host-Http-") for cookie in profile.cookies())
    (kept,) = [one for one in profile.cookies() if one["name"] == "prouter_session" and one["httpOnly"]]
    assert kept["value"] != stranger
    proof = dashboard.run("document.querySelector('meta[name=prouter-proof]').content")
    options = f"{{headers: {{'X-PRouter-Proof': {proof!r}}}}}"
    assert dashboard.run(f"fetch('/whoami', {options}).then((one) => one.text())").find('"name":"other"') < 0
    dashboard.go(by_path.url)
    assert "other" not in dashboard.run("document.body.innerText")
    assert by_path.untouched()


def test_a_job_by_path_cannot_use_the_user_of_a_proxy(chromium: Browser, by_path: Place) -> None:
    profile = chromium.profile()
    tab = profile.open()
    tab.fields(X_Forwarded_User="user")
    tab.go(f"{by_path.url}/")
    tab.wait("document.getElementById('live').textContent === 'live'")
    tab.go(f"{by_path.url}{by_path.hostile}/http/")
    tab.run("document.forms[0].requestSubmit()")
    loaded(tab)
    own_works(tab, socket="101 ws own", post="200 changed")
    by_path.attack(tab, [f"{by_path.url}{by_path.other}/http/secret"])


def test_a_job_that_is_shared_by_path_is_shut_in_its_sandbox(chromium: Browser, by_path: Place) -> None:
    profile = chromium.profile()
    by_path.sign_in(profile)
    other = profile.open(by_path.way_in("share", by_path.other))
    loaded(other)
    tab = profile.open(by_path.way_in("share", by_path.hostile))
    loaded(tab)
    found = own_works(tab, socket="refused", post="refused")
    assert found["origin"] == "null"
    assert "own=1" not in found["echo"]
    root = other.run("location.href")
    assert "/shared/" in root
    paths = ("http/secret.js", "http/ws", "pass")
    by_path.attack(tab, [f"{by_path.url}{by_path.other}/{path}" for path in paths])
    assert "refused" in tab.run("take()")
    before = profile.cookies()
    assert "refused" in tab.run("plant('x')")
    assert profile.cookies() == before


def test_a_job_with_a_host_name_is_kept_apart_from_api_and_jobs(chromium: Browser, by_host: Place) -> None:
    profile = chromium.profile()
    dashboard = by_host.sign_in(profile)
    other = profile.open(by_host.way_in("pass", by_host.other))
    loaded(other)
    tab = profile.open(by_host.way_in("share", by_host.hostile))
    loaded(tab)
    own_works(tab, socket="101 ws own", post="200 changed")
    root = other.run("location.origin")
    assert root != tab.run("location.origin")
    paths = (f"{root}/secret.js", f"{root}/ws", f"{by_host.url}{by_host.other}/http/secret")
    by_host.attack(tab, list(paths))
    assert other.run("fetch('secret').then((one) => one.status)") == 200
    assert dashboard.run("fetch('/whoami').then((one) => one.status)") == 200
    tab.run("plant('x')")
    assert dashboard.run("fetch('/whoami').then((one) => one.status)") == 200, "what is planted counts for nothing"
    assert other.run("fetch('secret').then((one) => one.status)") == 200
