"""The dashboard in a real browser: somebody signs in, sees jobs, reads a log, opens and shares a job, and signs out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.integration.test_access import ECHO
from tests.support.access import new_token
from tests.support.chromium import Browser, Tab, browser
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until
from tests.support.programs import needed

pytestmark = needed("chromium")

LIVE = "document.getElementById('live')?.textContent === 'live'"


def has_text(text: str) -> str:
    """The condition that the page shows a text."""
    return f"document.body.innerText.includes({text!r})"


def click(tab: Tab, row: str, button: str) -> None:
    """Press a button of a job's row."""
    tab.run(
        f"[...[...document.querySelectorAll('#jobs tr')].find((row) => row.innerText.includes({row!r}))"
        f".querySelectorAll('button, a')].find((one) => one.textContent === {button!r}).click()"
    )


def buttons(tab: Tab, row: str) -> list[str]:
    """The buttons of a job's row."""
    found: list[str] = tab.run(
        f"[...[...document.querySelectorAll('#jobs tr')].find((row) => row.innerText.includes({row!r}))"
        ".querySelectorAll('button, a')].map((one) => one.textContent)"
    )
    return found


def share_and_revoke(chromium: Browser, tab: Tab, row: str) -> None:
    """Make a link to a job with the dashboard, follow it as a stranger, and revoke it."""
    click(tab, row, "Share")
    tab.wait(has_text("No link yet."))
    tab.run("window.confirm = () => true")
    tab.run("document.getElementById('share-name').value = 'for the review'")
    tab.run("document.getElementById('share-expires').value = '3600'")
    tab.run("document.getElementById('share-read').click()")
    tab.run("document.getElementById('share-make').click()")
    tab.wait(f"{has_text('for the review')} && document.getElementById('share-url').value !== ''")
    shown = tab.run("document.getElementById('shares').innerText")
    assert "look" in shown.split("\t")[1]
    tab.run("document.getElementById('share-copy').click()")
    tab.wait("document.getElementById('share-copy').textContent === 'Copied'")
    stranger = chromium.profile().open(tab.run("document.getElementById('share-url').value"))
    stranger.wait(f"{has_text('X-PRouter-User')} && {has_text('share:')}")
    tab.run("document.querySelector('#shares button').click()")
    tab.wait(has_text("No link yet."))
    tab.run("document.getElementById('share-close').click()")
    assert tab.run("document.getElementById('share').hidden")


def start_job(router: Router, agent: Agent, name: str, **headers: str) -> None:
    """A job that writes a line and answers with the fields of requests."""
    body = {"name": name, "agent": {"type": "uid", "uid": agent.uid}}
    path = router.post("/jobs/create", body, headers=headers).json()["path"]
    start = {"args": [sys.executable, "-u", "-c", "print('a line of the log')\n" + ECHO], "env": {}}
    done = router.post(f"{path}/start", {**start, "expose": {"port": "assign"}}, headers=headers, timeout=60)
    assert done.status_code == 200, done.text


@pytest.fixture(scope="module")
def chromium(short_dir: Path) -> Iterator[Browser]:
    with browser(short_dir / "chromium") as found:
        yield found


def test_somebody_signs_in_and_uses_the_dashboard(chromium: Browser, short_dir: Path) -> None:
    directory = short_dir / "dashboard"
    (directory / "router").mkdir(parents=True)
    tokens = {name: new_token(directory / "router", name, "user")["token"] for name in ("ann", "bob")}
    router = start_router(directory / "router", control__sandbox_shares=True)
    agent = start_agent(directory / "agent", router)
    try:
        for name, token in tokens.items():
            start_job(router, agent, f"job of {name}", Authorization=f"Bearer {token}")
        url = router.url.replace("127.0.0.1", "localhost")
        visitor = chromium.profile()
        tab = visitor.open(f"{url}/")
        tab.run(f"token.value = {tokens['ann']!r}, document.forms[0].requestSubmit()")
        tab.wait(LIVE)
        tab.wait(f"{has_text('job of ann')} && {has_text('job of bob')} && {has_text('ann · user')}")
        tab.wait("[...document.querySelectorAll('#jobs td')].filter((one) => one.innerText === 'RUNNING').length > 1")
        assert buttons(tab, "job of bob") == [], "they are for its owner"
        assert buttons(tab, "job of ann") == ["Open", "Share", "Log", "Stop", "Remove"]
        click(tab, "job of ann", "Log")
        tab.wait(has_text("a line of the log"))
        tab.run("window.open = (...asked) => { window.opened = asked; }")
        click(tab, "job of ann", "Open")
        tab.wait("window.opened !== undefined")
        assert tab.run("window.opened[2]") == "noopener,noreferrer"
        job = visitor.open(tab.run("window.opened[0]"))
        job.wait(f"{has_text('X-PRouter-User')} && {has_text('ann')}")
        assert "prouter_" not in job.run("document.body.innerText + document.cookie")

        share_and_revoke(chromium, tab, "job of ann")
        start_job(router, agent, "one more", Authorization=f"Bearer {tokens['bob']}")
        tab.wait(has_text("one more"))
        click(tab, "job of ann", "Stop")
        tab.wait("[...document.querySelectorAll('#jobs td')].some((one) => one.innerText === 'FINISHED')")
        kept = {cookie["name"]: cookie["value"] for cookie in visitor.cookies()}
        tab.run("out.click()")
        tab.wait("document.getElementById('token') !== null")
        left = {cookie["name"] for cookie in visitor.cookies()}
        assert "prouter_session" in kept.keys() - left
        cookie = {"Cookie": f"prouter_session={kept['prouter_session']}"}
        assert requests.get(f"{url}/whoami", headers=cookie, timeout=30).status_code == 401
    finally:
        agent.stop()
        router.stop()


def test_an_open_routers_dashboard_asks_nobody(chromium: Browser, router: Router, agent: Agent) -> None:
    start_job(router, agent, "of everybody")
    quiet = router.post("/jobs/create", {"name": "quiet", "agent": {"type": "uid", "uid": agent.uid}}).json()["path"]
    router.start(quiet, ["sh", "-c", "echo on stderr only >&2; sleep 600"], port_expected_count=0)
    tab = chromium.profile().open(router.url.replace("127.0.0.1", "localhost") + "/")
    tab.wait(f"{LIVE} && {has_text('of everybody')}")
    tab.wait("[...document.querySelectorAll('#jobs a')].some((one) => one.textContent === 'Open')")
    wait_until(lambda: router.get(f"{quiet}/logs/stderr").content, 30, "the job writes")
    tab.wait(has_text("quiet"))
    click(tab, "quiet", "Log")
    tab.wait(has_text("on stderr only"))
    router.post(f"{quiet}/remove")
    assert tab.run("out.hidden && trouble.hidden && document.getElementById('me').textContent === ''")
