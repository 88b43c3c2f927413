"""The benchmark of many agents and jobs, with few of both: what it starts, counts and restarts is real."""

from __future__ import annotations

import json
from contextlib import closing

from tests.bench.scale.fleet import Fleet
from tests.bench.scale.history import write_history
from tests.bench.scale.router import ScaleRouter

AGENTS, JOBS, HISTORY = 200, 2, 300


def test_light_agents_link_with_their_jobs_and_come_back_after_a_restart_of_the_router() -> None:
    router = ScaleRouter(job=False)
    try:
        write_history(router.database, HISTORY, AGENTS)
        router.launch()
        fleet = Fleet(router.agents_endpoint, router.key, AGENTS, JOBS)
        try:
            fleet.grow(AGENTS)
            seen = fleet.await_linked(AGENTS, 60)
            assert seen[-1][1] == AGENTS
            assert router.metric("prouter_broker_links_up") == AGENTS
            router.stop()
            router.start_again()
            fleet.await_linked(AGENTS, 60)
            assert fleet.report.lost >= AGENTS
            with closing(router.connect()) as http:
                page = json.loads(http.request("GET", "/jobs?limit=1000").body)["jobs"]
                one = json.loads(http.request("GET", "/connections").body)["connections"]
            states = [job["state"] for job in page]
            assert states.count("FINISHED") == HISTORY
            assert states.count("RUNNING") == AGENTS * JOBS
            assert len(one) == AGENTS
        finally:
            fleet.close()
    finally:
        router.close()
