"""Agents of other machines: invited, encrypted, revoked; the router's key rotates under them. Real processes."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prouter.keys.files import load_public, make_pair, store_pair
from prouter.keys.invitation_book import BOOK, InvitationBook
from prouter.keys.join_url import JoinUrl, format_join_url, parse_join_url
from prouter.keys.router_keys import load_router_keys
from tests.support.processes import Agent, Process, Router, start_agent, start_joined, start_router, wait_until

SECOND = 1.0
LATE = 5.0
"""Seconds by which a busy machine may be late."""


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


pytestmark = pytest.mark.skipif(not own_address(), reason="this machine has loopback only")


class Site:
    """A router beyond loopback, and agents that join it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[Process] = []
        self.router: Router

    def start_router(self, **sets: Any) -> Router:
        router = start_router(
            self.directory / f"router{len(self.started)}", workers=1, **{"server__interface": "0.0.0.0", **sets}
        )
        self.started.append(router)
        self.router = router
        return router

    def prouter(self, *arguments: str) -> str:
        """What a command of the router's configuration prints."""
        where = ("--set", f"state.dir={str(self.router.directory / 'state')!r}", "--set", "server.interface='0.0.0.0'")
        argv = [sys.executable, "-m", "prouter", *arguments, *where]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    @property
    def address(self) -> str:
        return f"{own_address()}:{self.router.agents.rpartition(':')[2]}"

    def invite(self, *arguments: str) -> str:
        """The URL of a new invitation."""
        (line,) = self.prouter("invite", "--host", self.address, *arguments).splitlines()
        return shlex.split(line)[-1]

    def invitations(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.prouter("invite", "list", "--json"))
        return found

    def join(self, name: str, url: str = "", **sets: Any) -> Agent:
        """The agent with this uid; with a URL it joins, without it knows its router."""
        arguments = ("--join", url) if url else ()
        agent = start_joined(self.directory / name, *arguments, **{"identity__uid": name, **sets})
        self.started.append(agent)
        return agent

    def launch(self, name: str, *arguments: str, **sets: Any) -> Process:
        """The agent with this uid, which is not waited for."""
        about = {"identity.uid": name, "state.dir": str(self.directory / name), "client.reconnect_delay": 0.1}
        values = {**about, **{key.replace("__", "."): value for key, value in sets.items()}}
        settings = [part for key, value in values.items() for part in ("--set", f"{key}={value!r}")]
        log = self.directory / f"{name}{len(self.started)}.log"
        process = Process([sys.executable, "-m", "prouter", "agent", *arguments, *settings], log)
        self.started.append(process)
        return process

    def fails_to_join(self, name: str, url: str) -> str:
        """What an agent says that cannot join."""
        with pytest.raises(AssertionError, match="ended without a line") as caught:
            self.join(name, url)
        return str(caught.value)

    def connections(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.router.get("/connections").json()["connections"]
        return found

    def linked(self) -> list[str]:
        return sorted(one["peer"]["auth"]["uid"] for one in self.connections() if one["up"])

    def works(self, agent: Agent) -> None:
        """A job runs on the agent, and its output comes back."""
        path = self.router.create(agent.uid)
        self.router.start(path, ["echo", "hello"], port_expected_count=0)
        self.router.post(path + "/wait")
        assert self.router.get(path + "/logs/stdout").text == "hello\n"
        self.router.post(path + "/remove")


@pytest.fixture
def site(work_dir: Path) -> Iterator[Site]:
    made = Site(work_dir)
    yield made
    for process in reversed(made.started):
        process.stop()


def test_an_invited_agent_stays_linked_until_its_invitation_is_revoked(site: Site) -> None:
    site.start_router()
    url = site.invite()
    agent = site.join("gpu-1", url)
    site.works(agent)
    (connection,) = site.connections()
    assert connection["encrypted"] is True
    (invitation,) = site.invitations()
    assert invitation["state"] == "used"
    assert [one["uid"] for one in invitation["agents"]] == ["gpu-1"]
    assert invitation["agents"][0]["public_key"] == load_public(agent.directory / "state" / "keys" / "agent.key")
    for path in (agent.directory / "state").rglob("*"):
        if path.is_file() and parse_join_url(url).token.encode() in path.read_bytes():
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.name == "routers.json"

    agent.stop()
    again = site.join("gpu-1")
    site.works(again)
    assert parse_join_url(url).token not in again.log.read_text() + site.router.log.read_text()

    begun = time.monotonic()
    site.prouter("invite", "revoke", invitation["id"])
    wait_until(lambda: site.linked() == [], SECOND + LATE)
    assert time.monotonic() - begun < SECOND + LATE
    wait_until(lambda: "the invitation was revoked" in again.log.read_text())
    assert site.linked() == []


def test_an_agent_joins_several_routers_and_each_serves_its_jobs(site: Site) -> None:
    first = site.start_router()
    site.join("gpu-1", site.invite()).stop()
    second = site.start_router()
    agent = site.join("gpu-1", site.invite())
    for router in (first, second):
        site.router = router
        wait_until(lambda: site.linked() == ["gpu-1"])
        site.works(agent)
    path = first.create("gpu-1")
    wait_until(lambda: second.get(path + "/info").status_code == 200)
    second.kill_broker()

    def linked_again() -> bool:
        """Asked of the agent: a worker may show its list until it hears of the broker's death."""
        log = agent.log.read_text()
        return 0 <= log.rfind("event=link_down") < log.rfind("event=link_up")

    wait_until(linked_again)
    wait_until(lambda: site.linked() == ["gpu-1"])
    agent.kill()
    for router in (first, second):
        site.router = router
        wait_until(lambda: site.connections() == [], 10, "the keeper tells of the agent's death")


def test_a_second_agent_cannot_use_an_invitation_and_leaves_nothing_behind(site: Site) -> None:
    site.start_router()
    url = site.invite()
    site.join("gpu-1", url)
    said = site.fails_to_join("gpu-2", url)
    assert "was used by agent 'gpu-1'" in said
    assert not (site.directory / "gpu-2" / "state" / "routers.json").exists()
    assert site.linked() == ["gpu-1"]
    thief = site.fails_to_join("gpu-3", url)
    assert "was used by agent" in thief


def test_an_agent_with_the_uid_of_another_but_not_its_key_is_refused(site: Site) -> None:
    site.start_router()
    url = site.invite()
    agent = site.join("gpu-1", url)
    agent.stop()
    (agent.directory / "state").rename(agent.directory / "lost")
    assert "uid 'gpu-1' belongs to the agent with invitation" in site.fails_to_join("gpu-1", url)
    assert "uid 'gpu-1' belongs to the agent with invitation" in site.fails_to_join("gpu-1", site.invite())


def test_an_expired_invitation_is_refused(site: Site) -> None:
    site.start_router()
    book = InvitationBook(site.router.directory / "state" / BOOK)
    token = book.issue(name="", uses=1, now=time.time() - 100, lifetime=50)[1]
    keys = load_router_keys(site.router.directory / "state").public
    assert "expired at" in site.fails_to_join("gpu-1", format_join_url(JoinUrl(site.address, keys, token)))


def test_a_wrong_key_is_said_to_be_perhaps_wrong(site: Site) -> None:
    site.start_router()
    right = parse_join_url(site.invite())
    wrong = format_join_url(JoinUrl(right.address, (make_pair().public,), right.token))
    lost = site.launch("lost", "--join", wrong)
    text = wait_until(lambda: found if "key" in (found := lost.log.read_text()) else "")
    assert "wrong" in text
    assert right.token not in text
    assert site.invitations()[0]["used"] == 0
    # The token is good for nothing else than for this router, and the agent has not given it away.
    site.works(site.join("gpu-1", format_join_url(right)))


def test_the_routers_key_rotates_without_dropping_a_link(site: Site) -> None:
    site.start_router()
    agent = site.join("gpu-1", site.invite())
    before = load_router_keys(site.router.directory / "state").current.public
    after = site.prouter("keygen", "--rotate", "--switch-after", "0s").strip()
    wait_until(lambda: f"event=router_key_changed key={after}" in site.router.log.read_text())
    assert site.linked() == ["gpu-1"]
    site.works(agent)
    assert "event=link_down" not in site.router.log.read_text()
    known = agent.directory / "state" / "routers.json"
    wait_until(lambda: json.loads(known.read_text())["routers"][0]["keys"] == [after])

    invited = parse_join_url(site.invite())
    assert invited.keys == (after,)
    site.works(site.join("gpu-2", format_join_url(invited)))
    stale = format_join_url(JoinUrl(invited.address, (before,), "pri_whatever"))
    lost = site.launch("lost", "--join", stale)
    wait_until(lambda: "key" in lost.log.read_text())
    agent.stop()
    site.works(site.join("gpu-1"))


def test_agents_that_were_away_during_the_switch_try_both_keys(site: Site) -> None:
    router = site.start_router()
    agent = site.join("gpu-1", site.invite())
    known = agent.directory / "state" / "routers.json"
    site.prouter("keygen", "--rotate", "--switch-after", "8s")
    wait_until(lambda: len(json.loads(known.read_text())["routers"][0]["keys"]) == 2)
    agent.stop()
    wait_until(lambda: "event=router_key_changed" in router.log.read_text(), 30)
    site.works(site.join("gpu-1"))


def test_listed_keys_let_agents_in_as_they_come_and_go(site: Site) -> None:
    listed, own = site.directory / "listed", site.directory / "own"
    listed.mkdir()
    own.mkdir()
    site.start_router(server__accept_keys=str(listed))
    key = load_router_keys(site.router.directory / "state").current.public
    pairs = {name: make_pair() for name in ("gpu-1", "gpu-2")}
    for name, pair in pairs.items():
        store_pair(own, name, pair)

    def start(name: str) -> Process:
        secret = str(own / f"{name}.key_secret")
        return site.launch(name, client__address=site.address, client__router_key=key, client__key=secret)

    first = start("gpu-1")
    wait_until(lambda: "event=key_refused" in site.router.log.read_text())
    assert site.linked() == []
    (own / "gpu-1.key").rename(listed / "gpu-1.key")
    wait_until(lambda: site.linked() == ["gpu-1"])
    (listed / "gpu-1.key").unlink()
    (own / "gpu-2.key").rename(listed / "gpu-2.key")
    start("gpu-2")
    wait_until(lambda: site.linked() == ["gpu-1", "gpu-2"])
    assert site.linked() == ["gpu-1", "gpu-2"], "a removed key keeps the link it has"
    first.stop()
    start("gpu-1")
    wait_until(lambda: site.router.log.read_text().count("event=key_refused") > 1)
    wait_until(lambda: site.linked() == ["gpu-2"])


def test_without_encryption_the_router_warns_and_connections_show_it(site: Site) -> None:
    site.start_router(server__insecure=True, server__accept_tokens=["a long token"])
    assert "event=links_not_encrypted" in site.router.log.read_text()
    refused = site.launch("careful", client__address=site.address, client__token="a long token")
    assert refused.popen.wait(60) == 2
    assert "is another machine, and the public key of its router is not known" in refused.log_end()
    agent = start_agent(site.directory / "gpu", site.address, client__insecure=True, client__token="a long token")
    site.started.append(agent)
    site.works(agent)
    assert [one["encrypted"] for one in site.connections()] == [False]


def test_an_agent_that_listens_beyond_loopback_is_dialled_by_routers_it_knows(site: Site, work_dir: Path) -> None:
    routers = work_dir / "routers"
    routers.mkdir()
    agent = start_joined(
        work_dir / "agent",
        client__enabled=False,
        server__enabled=True,
        server__interface="0.0.0.0",
        server__port=0,
        server__accept_keys=str(routers),
    )
    site.started.append(agent)
    address = f"{own_address()}:{agent.ready.rpartition(':')[2]}"
    key = agent.directory / "state" / "keys" / "agent.key"
    about = {"name": "job", "agent": {"type": "address", "address": address, "token": ""}}
    unknown = site.start_router(server__interface="127.0.0.1")
    refusal = unknown.post("/jobs/create", about)
    assert (refusal.status_code, refusal.json()["code"]) == (403, "agent_key_unknown")
    assert "client.agent_keys" in refusal.json()["detail"]

    router = site.start_router(server__interface="127.0.0.1", client__agent_keys={address: str(key)})
    assert router.post("/jobs/create", about).status_code == 503, "the agent does not know the router"
    (routers / "router.key").write_text((router.directory / "state" / "keys" / "router.key").read_text())

    def created() -> bool:
        return router.post("/jobs/create", about).status_code == 200

    wait_until(created)
    assert [(one["mode"], one["encrypted"]) for one in site.connections()] == [("CLIENT", True)]
