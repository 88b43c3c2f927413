"""Usage of running jobs is reported in small rounds, new jobs first, and only if it changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import gevent
import pytest

from prouter.agent.jobs import usage_reports
from prouter.agent.jobs.manager import JobManager
from prouter.agent.jobs.usage_reports import Usage, UsageReports
from prouter.errors import AgentUnavailable, NotFound
from prouter.jobs import JobRecord


class Jobs:
    """What the reports need of a job manager."""

    def __init__(self) -> None:
        self.running: dict[str, JobRecord] = {}
        self.asked: list[str] = []
        self.used = 1.0
        self.away: set[str] = set()

    def run(self, uid: str, connection: str = "c") -> None:
        self.running[uid] = JobRecord(uid, connection, "job", pid=1)

    def records(self) -> list[JobRecord]:
        return [*self.running.values(), JobRecord("new", "c", "not started")]

    def usage(self, uid: str) -> JobRecord:
        self.asked.append(uid)
        if uid == "gone":
            raise NotFound("removed meanwhile")
        if uid in self.away:
            gevent.sleep(0.1)
            raise AgentUnavailable("its node is away")
        return replace(self.running[uid], cpu_seconds=self.used, rss_bytes=10)


def reports(jobs: Jobs) -> tuple[UsageReports, list[tuple[str, list[Usage]]]]:
    told: list[tuple[str, list[Usage]]] = []
    return UsageReports(cast("JobManager", jobs), lambda *news: told.append(cast("Any", news))), told


def test_only_news_are_told_each_to_the_connection_of_its_job() -> None:
    jobs = Jobs()
    jobs.run("a")
    jobs.run("gone")
    jobs.run("b", "other")
    report, told = reports(jobs)
    report.round()
    assert told == [("c", [("a", 1.0, 10)]), ("other", [("b", 1.0, 10)])]
    report.round()
    assert len(told) == 2
    jobs.used = 2.0
    del jobs.running["b"]
    report.round()
    assert told[2:] == [("c", [("a", 2.0, 10)])]
    report.forget()
    report.round()
    assert told[3:] == told[2:3], "a router that is back knows nothing"


def test_a_round_costs_the_same_however_many_jobs_there_are_and_passes_nobody_over() -> None:
    jobs = Jobs()
    for number in range(100):
        jobs.run(f"job-{number}")
    report, _ = reports(jobs)
    report.round()
    assert len(jobs.asked) == 32
    for _ in range(3):
        report.round()
    assert set(jobs.asked) == set(jobs.running)
    jobs.run("newest")
    report.round()
    assert jobs.asked[128] == "newest"


def test_jobs_that_cannot_be_reached_neither_hide_nor_delay_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_reports, "_TURN", 0.001)
    jobs = Jobs()
    for number in range(40):
        jobs.run(f"away-{number}")
    jobs.away = set(jobs.running)
    jobs.run("here")
    report, told = reports(jobs)
    with gevent.Timeout(3.0):  # One after another they take twice as long.
        report.round()
        report.round()
    assert told == [("c", [("here", 1.0, 10)])]
    jobs.away.clear()
    for _ in range(2):
        report.round()
    assert {usage[0] for _, news in told for usage in news} == set(jobs.running)
