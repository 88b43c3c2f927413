"""Three routers behind nginx: kills and upgrades under load, with every response checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from prouter.agent.links.fanout import Fanout
from tests.faults.load import Load
from tests.faults.site import JOBS, Site, Traffic
from tests.support.processes import start_agent, start_router
from tests.support.programs import needed

pytestmark = [needed("nginx"), pytest.mark.xdist_group("several routers")]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="prs-"))
    try:
        with Site(directory, agents=3) as found:
            yield found
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def test_no_kill_and_no_upgrade_fails_an_idempotent_request_or_doubles_a_job(site: Site, load: Load) -> None:
    traffic = Traffic(site)
    traffic.begin(load)
    breaks = traffic.breaks
    site.kill(0)
    load.started()
    site.restart(0)
    load.started()
    assert traffic.breaks > breaks, "no WebSocket went through the router that was killed"
    site.upgrade_router(1)
    site.upgrade_agent(0)
    load.started()
    load.finish(60)
    traffic.check_creations()


def test_every_router_has_the_same_jobs_under_the_same_paths(site: Site) -> None:
    infos = [[router.get(f"{path}/info").json() for path in site.served] for router in site.routers]
    kept = [[(info["uid"], info["state"], info["pid"], info["path"]) for info in seen] for seen in infos]
    assert kept[0] == kept[1] == kept[2]
    for router in site.routers:
        assert router.get(f"{site.served[0]}/http/").text == "x" * 100


def test_agents_may_link_to_some_routers_and_the_others_say_so(launch: Callable[..., Any]) -> None:
    routers = [launch(start_router, workers=1) for _ in range(2)]
    addresses = tuple(router.agents for router in routers)
    uids = [next(u for u in map(str, range(100)) if Fanout(u, addresses, 1).chosen == [at]) for at in addresses]
    settings = {"client__fanout": 1, "client__address": addresses}
    agents = [launch(start_agent, addresses[0], identity__uid=uid, **settings) for uid in uids]
    here, there = routers
    job = here.serve(agents[0].uid, JOBS / "fast_server.py")
    assert here.get(f"{job}/http/").status_code == 200
    for path in (f"{job}/http/", f"{job}/info"):
        answer = there.get(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "agent_elsewhere")
    creation = {"name": "x", "agent": {"type": "uid", "uid": agents[0].uid}}
    answer = there.post("/jobs/create", creation)
    assert (answer.status_code, answer.json()["code"]) == (503, "agent_elsewhere")
    for router, agent in zip(routers, agents, strict=True):
        links = router.get("/connections").json()["connections"]
        assert [link["peer"]["auth"]["uid"] for link in links] == [agent.uid]
        told = links[0]["routers"]
        assert [(one["address"], one["up"]) for one in told] == [(router.agents, True)]


def test_a_queued_job_is_found_through_nginx_before_and_after_it_has_an_agent(
    site: Site, launch: Callable[..., Any]
) -> None:
    body = {"name": "queued", "args": ["true"], "port_expected_count": 0, "queue": {"timeout": 60}}
    wanted = {"agent": {"type": "any", "resources": {"licence": 1}}}
    created = [requests.post(f"{site.url}/jobs/run", json=body | wanted, timeout=30) for _ in range(6)]
    assert [answer.status_code for answer in created] == [202] * 6
    paths = [answer.json()["path"] for answer in created]
    assert len({path.split("/")[2] for path in paths}) == 3, "each router has queued some"
    for path in paths * 3:
        told = requests.get(f"{site.url}{path}/info", timeout=30)
        assert (told.status_code, told.json()["phase"]) == (200, "queued")
    addresses = tuple(router.agents for router in site.routers)
    launch(start_agent, addresses[0], client__address=addresses, jobs__resources={"licence": 1})
    for path in paths * 3:
        ended = requests.post(f"{site.url}{path}/wait?timeout=30", timeout=60)
        assert (ended.status_code, ended.json()["state"], ended.json()["exit_code"]) == (200, "FINISHED", 0)
