"""Three routers behind nginx: kills and upgrades under load, with every response checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.load import Load
from tests.faults.site import Site, Traffic
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
