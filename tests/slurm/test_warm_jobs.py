"""Jobs of a pool on a Slurm cluster: an agent that starts while Slurm is away waits for none of the last one."""

from __future__ import annotations

import json
import os
import signal

from tests.slurm.cluster import NEEDS_SLURM
from tests.slurm.site import ancestors, lives, running_site
from tests.support.processes import wait_until

pytestmark = NEEDS_SLURM

SLEEP = {"args": ["sleep", "1000"], "port_expected_count": 0, "size": 1}


def test_an_agent_starts_while_slurm_is_away_and_removes_warm_jobs_later() -> None:
    with running_site(1, jobs__pool={"sleep": SLEEP}) as site:

        def ready() -> bool:
            (agent,) = site.router.get("/connections").json()["connections"]
            return bool(agent["pool"] and agent["pool"]["sleep"]["ready"])

        wait_until(ready, 40)
        (warm,) = (site.cluster.shared / "jobs.slurm" / "jobs").iterdir()
        pid = json.loads((warm / "spawned.json").read_text())["pid"]
        node_program = ancestors(pid, 2)[1]
        os.kill(node_program, signal.SIGSTOP)  # As if the network between node and agent was cut.
        site.cluster.controller.end()
        site.agent.popen.send_signal(signal.SIGKILL)
        site.agent.popen.wait(30)
        site.start_agent()
        assert lives(pid)
        assert site.router.get("/jobs").json()["jobs"] == []
        site.cluster.restart(site.cluster.controller)
        wait_until(lambda: not warm.exists(), 120)
        assert not lives(pid)
