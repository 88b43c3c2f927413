"""Jobs that are kept ready: whom they are given to, what they give way to, and what becomes of them at the end."""

from __future__ import annotations

import time
from typing import Any

import gevent
import pytest

from prouter.agent.jobs.origin import Origin
from prouter.agent.jobs.state.user_pool import UserPool
from prouter.errors import Conflict, InvalidRequest, LimitReached, NotFound, StartFailed
from prouter.jobs import JobRecord, Reason, State
from prouter.requests import Limits, validated
from prouter.template_requests import Template
from tests.support.job_manager import CONNECTION, SERVER, Managers, Observed, get, new_uid, python
from tests.support.job_users import python_for_all, users, why_not
from tests.support.keeper import alive, until

WEB = {"args": python(SERVER, "{socket}"), "expose": {"port": "unix"}}


def pooled(managers: Managers, size: int, ready: int | None = None, **settings: Any) -> Observed:
    """A manager that has jobs of the template ``web`` ready; `ready` of them if not all."""
    own = {"web": validated(Template, {**WEB, "size": size, **settings.pop("template", {})})}
    jobs = managers.open(templates={**own, **settings.pop("others", {})}, **settings)
    jobs.manager.pool.serve(CONNECTION)
    until(lambda: ready_in(jobs) == (size if ready is None else ready))
    return jobs


def ready_in(observed: Observed) -> int:
    return observed.manager.pool.figures(CONNECTION)["web"]["ready"]


def ask(observed: Observed, uid: str | None = None, name: str = "mine", **more: Any) -> JobRecord:
    """Create a job by the template."""
    with gevent.Timeout(20):
        return observed.manager.create(uid or new_uid(), CONNECTION, name, Origin(template="web", **more))


def start(observed: Observed, uid: str, request_id: str = "r", **body: Any) -> JobRecord:
    with gevent.Timeout(20):
        return observed.manager.start(uid, {"template": "web", **body}, request_id)


def sandboxes(observed: Observed) -> list[str]:
    return sorted(path.name for path in observed.root.iterdir() if len(path.name) == 32)


def test_a_job_that_is_ready_becomes_that_of_whoever_asks(managers: Managers) -> None:
    jobs = pooled(managers, 1)
    (warm,) = sandboxes(jobs)
    assert jobs.manager.records() == jobs.records == []
    for call in (jobs.manager.record, jobs.manager.remove, jobs.manager.sandbox, jobs.manager.usage):
        with pytest.raises(NotFound):
            call(warm)

    asked = new_uid()
    job = ask(jobs, asked, owner="ada")
    assert (job.uid, job.instead_of, job.state, job.name, job.owner) == (warm, asked, State.RUNNING, "mine", "ada")
    assert job.created_at == job.started_at
    assert get(job.endpoint, "/x")[0] == 200
    assert jobs.states(warm) == [State.RUNNING]
    assert start(jobs, warm) == start(jobs, warm) == job
    assert ask(jobs, asked, "again") == job, "a repeated creation gives the same job"

    until(lambda: ready_in(jobs) == 1)
    assert ask(jobs).uid != warm, "a job is given once"
    jobs.manager.remove(warm)
    with pytest.raises(NotFound):
        ask(jobs, asked)


def test_without_a_ready_job_the_template_starts_one(managers: Managers) -> None:
    jobs = managers.open(templates={"web": validated(Template, {**WEB, "size": 0})})
    job = ask(jobs)
    assert (job.state, job.instead_of, job.template) == (State.NEW, None, "web")
    with pytest.raises(Conflict, match="start it with"):
        jobs.start(job.uid, "true")
    assert start(jobs, job.uid, limits={"timeout": 60}).state is State.RUNNING
    other = jobs.create()
    assert start(jobs, other).state is State.RUNNING, "any new job may be started by a template"
    with pytest.raises(NotFound, match="its templates: web"):
        jobs.manager.create(new_uid(), CONNECTION, "n", Origin(template="nope"))


def test_the_time_limit_of_a_job_counts_from_when_it_was_given(managers: Managers) -> None:
    jobs = pooled(managers, 2, template={"limits": {"timeout": 0.5}})
    first, second = ask(jobs), ask(jobs)
    assert start(jobs, second.uid, limits={"timeout": 600}).state is State.RUNNING
    assert jobs.ended(first.uid).reason is Reason.TIMEOUT
    assert jobs.manager.record(second.uid).state is State.RUNNING
    with pytest.raises(Conflict):
        start(jobs, second.uid, "another request")


def test_a_limit_above_the_ceiling_is_refused(managers: Managers) -> None:
    jobs = pooled(managers, 1, ceilings=Limits(timeout=100.0))
    job = ask(jobs)
    with pytest.raises(InvalidRequest, match="over this agent's ceiling"):
        start(jobs, job.uid, limits={"timeout": 200})
    assert start(jobs, job.uid, limits={"timeout": 50}).state is State.RUNNING


def test_many_creations_at_once_share_what_is_ready(managers: Managers) -> None:
    jobs = pooled(managers, 3)
    warm = set(sandboxes(jobs))
    asked = [gevent.spawn(ask, jobs) for _ in range(8)]
    given = [one.get(timeout=20) for one in asked]
    assert len({job.uid for job in given}) == 8
    assert {job.uid for job in given if job.state is State.RUNNING} == warm
    started = [gevent.spawn(start, jobs, job.uid) for job in given]
    assert {one.get(timeout=20).state for one in started} == {State.RUNNING}


def test_a_job_that_needs_the_slot_ends_one_of_the_pool(managers: Managers) -> None:
    jobs = pooled(managers, 3, ready=2, max_jobs=2)
    first = jobs.create()
    until(lambda: len(sandboxes(jobs)) == 2)
    assert ready_in(jobs) == 1
    assert ask(jobs).state is State.RUNNING, "it takes the slot of the warm job itself"
    with pytest.raises(LimitReached):
        ask(jobs)
    jobs.manager.remove(first)
    until(lambda: ready_in(jobs) == 1)


def test_a_job_that_needs_resources_ends_those_of_the_pool_that_take_them(managers: Managers) -> None:
    licence = validated(Template, {**WEB, "size": 1, "resources": {"matlab": 1}})
    there = {"cpus": 4, "matlab": 1}
    jobs = pooled(managers, 3, others={"licence": licence}, resources=there, template={"resources": {"cpus": 1}})
    until(lambda: jobs.manager.pool.figures(CONNECTION)["licence"]["ready"] == 1)

    def create(**wanted: float) -> JobRecord:
        return jobs.manager.create(new_uid(), CONNECTION, "n", Origin(resources=wanted))

    create(cpus=2)
    assert ready_in(jobs) == 2, "three CPUs of warm jobs and two are more than four"
    assert len(sandboxes(jobs)) == 4, "the job is made once the warm one has ended"
    with_licence = create(matlab=1)
    assert jobs.manager.pool.figures(CONNECTION)["licence"]["ready"] == 0
    assert ready_in(jobs) == 2, "it takes no CPU"
    with pytest.raises(LimitReached, match="matlab"):
        create(matlab=1)
    given = ask(jobs)
    assert (given.state, given.resources) == (State.RUNNING, {"cpus": 1})
    with pytest.raises(LimitReached, match="cpus"):
        create(cpus=2)
    assert ready_in(jobs) == 1, "a job that is refused ends no warm one"
    larger = ask(jobs, resources={"cpus": 1, "matlab": 0})
    assert larger.resources == {"cpus": 1, "matlab": 0}
    cold = None
    with pytest.raises(LimitReached, match="cpus"):
        cold = ask(jobs)
    assert cold is None
    jobs.manager.remove(with_licence.uid)
    until(lambda: jobs.manager.pool.figures(CONNECTION)["licence"]["ready"] == 1)


def test_many_jobs_at_once_get_the_slots_of_the_pool_and_no_more(managers: Managers) -> None:
    jobs = pooled(managers, 4, max_jobs=4)

    def create() -> bool:
        try:
            jobs.create()
        except LimitReached:
            return False
        return True

    creating = [gevent.spawn(create) for _ in range(8)]
    gevent.joinall(creating, timeout=30)
    assert sorted(bool(one.value) for one in creating) == [False] * 4 + [True] * 4
    assert len(sandboxes(jobs)) == 4
    assert ready_in(jobs) == 0


def test_a_template_that_takes_more_than_the_agent_has_is_refused(managers: Managers) -> None:
    large = validated(Template, {**WEB, "resources": {"gpus": 2}})
    with pytest.raises(InvalidRequest, match=r"jobs\.pool: large: resources: gpus: the agent has 1 "):
        managers.open(templates={"large": large}, resources={"gpus": 1})


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_job_that_needs_the_user_ends_one_of_the_pool(managers: Managers) -> None:
    server = [python_for_all(), "-I", "-S", "-c", SERVER, "{socket}"]
    jobs = pooled(managers, 2, template={"args": server}, users=UserPool(users(2), isolated=True))
    first, second = jobs.create(), jobs.create()
    assert ready_in(jobs) == 0
    own = {jobs.manager.sandbox(uid).user for uid in (first, second)}
    assert len(own) == 2
    with pytest.raises(LimitReached, match="no free user"):
        ask(jobs)


def test_an_agent_that_takes_no_jobs_keeps_none_ready(managers: Managers) -> None:
    jobs = pooled(managers, 2)
    jobs.manager.pool.accept(False)
    assert ready_in(jobs) == 0
    until(lambda: sandboxes(jobs) == [])
    jobs.manager.pool.accept(True)
    until(lambda: ready_in(jobs) == 2)
    jobs.manager.remove_all(Reason.AGENT_LOST)
    assert sandboxes(jobs) == []
    assert jobs.records == jobs.removed == []


def test_a_template_that_cannot_start_rests_longer_each_time(managers: Managers) -> None:
    broken = validated(Template, {"args": ["false"], "expose": {"port": "assign"}})
    jobs = pooled(managers, 1, others={"broken": broken})
    times = []
    for failures in (1, 2, 3):
        until(lambda: jobs.manager.pool.figures(CONNECTION)["broken"]["failures"] == failures)  # noqa: B023
        times.append(time.monotonic())
    assert times[1] - times[0] > 0.8
    assert times[2] - times[1] > 1.8
    assert ready_in(jobs) == 1, "other templates go on"
    until(lambda: len(sandboxes(jobs)) == 1)
    job = jobs.manager.create(new_uid(), CONNECTION, "n", Origin(template="broken"))
    with pytest.raises(StartFailed, match="exit code 1"):
        jobs.manager.start(job.uid, {"template": "broken"}, "r")


def test_a_ready_job_that_ends_is_replaced_and_counts_as_a_failure(managers: Managers) -> None:
    jobs = pooled(managers, 1)
    (warm,) = sandboxes(jobs)
    jobs.runner.kill(warm)
    until(lambda: jobs.manager.pool.figures(CONNECTION)["web"] == {"size": 1, "ready": 0, "failures": 1})
    until(lambda: ready_in(jobs) == 1)
    assert warm not in sandboxes(jobs)
    assert ask(jobs).state is State.RUNNING
    assert jobs.manager.pool.figures(CONNECTION)["web"]["failures"] == 0


def test_jobs_are_ready_for_one_connection(managers: Managers) -> None:
    jobs = pooled(managers, 1)
    assert jobs.manager.pool.figures("d" * 32)["web"] == {"size": 1, "ready": 0, "failures": 0}
    other = jobs.manager.create(new_uid(), "d" * 32, "n", Origin(template="web"))
    assert (other.state, other.connection) == (State.NEW, "d" * 32)


def test_a_template_that_can_never_start_is_refused(managers: Managers) -> None:
    wrong = validated(Template, {**WEB, "expose": {"preset": "jupyterlab", "path": "strip"}})
    with pytest.raises(InvalidRequest, match=r"jobs\.pool: lab: expose: the preset 'jupyterlab' does not work"):
        managers.open(templates={"lab": wrong})


def test_a_stopping_agent_ends_what_was_ready_and_keeps_what_was_given(managers: Managers) -> None:
    before = pooled(managers, 2, keep_for=60)
    asked = new_uid()
    given = ask(before, asked)
    until(lambda: ready_in(before) == 2)
    before.manager.close(end_jobs=False)
    assert sandboxes(before) == [given.uid]

    after = managers.open(keep_for=60)
    managers.all.remove(before)
    assert [record.uid for record in after.manager.records()] == [given.uid] == sandboxes(after)
    assert alive(given.pid or 0)
    again = after.manager.created(asked)
    assert again is not None
    assert (again.uid, again.state) == (given.uid, State.RUNNING)
    assert start(after, given.uid, limits={"timeout": 60}).state is State.RUNNING
    assert get(given.endpoint, "/x")[0] == 200
