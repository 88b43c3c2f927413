"""Which users jobs get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prouter.agent.jobs.state.job import Job
from prouter.agent.jobs.state.table import JobTable
from prouter.agent.jobs.state.user_pool import UserPool
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.config import ConfigError, load_agent
from prouter.errors import LimitReached
from prouter.jobs import JobRecord, State
from prouter.processes.users import User, missing_capabilities

AS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or bool(missing_capabilities()), reason="only root can start jobs as other users"
)
FIRST = 64900


def job(table: JobTable, user: User, uid: str, *, ended: bool = False, shut: bool = True) -> Job:
    sandbox = Sandbox(Path("/nowhere") / uid)
    sandbox.belong_to(user)
    sandbox.is_shut = ended and shut
    made = Job(JobRecord(uid, "c", "job", State.FINISHED if ended else State.NEW), sandbox, lambda _: None)
    table.add(made)
    return made


@AS_ROOT
def test_each_living_job_has_its_own_user_and_the_longest_unused_comes_first() -> None:
    pool, table = UserPool(f"{FIRST}-{FIRST + 2}", isolated=True), JobTable()
    users = []
    for uid in "abc":
        users.append(pool.choose(table))
        job(table, users[-1], uid)
    assert [user.uid for user in users] == [FIRST, FIRST + 1, FIRST + 2]
    assert users[0] == User(f"job-{FIRST}", FIRST, FIRST)
    with pytest.raises(LimitReached, match=r"each of the 3 users of jobs\.user"):
        pool.choose(table)
    for uid in "bac":
        found = table.get(uid)
        assert found is not None
        table.drop(found)
    assert pool.choose(table).uid == FIRST


@AS_ROOT
def test_users_of_ended_jobs_come_last_and_only_if_their_sandboxes_are_shut() -> None:
    pool, table = UserPool(f"{FIRST}-{FIRST + 2}", isolated=True), JobTable()
    users = [User(f"job-{FIRST + number}", FIRST + number, FIRST + number) for number in range(3)]
    job(table, users[0], "a", ended=True)
    job(table, users[1], "b", ended=True, shut=False)
    assert pool.choose(table).uid == FIRST + 2
    job(table, users[2], "c")
    assert pool.choose(table).uid == FIRST
    job(table, users[0], "d")
    with pytest.raises(LimitReached):
        pool.choose(table)


@AS_ROOT
def test_one_user_is_for_all_jobs() -> None:
    pool, table = UserPool(str(FIRST), isolated=True), JobTable()
    for uid in "ab":
        user = pool.choose(table)
        job(table, user, uid)
        assert (user.uid, user.alone) == (FIRST, False)
    assert pool.size is None


@AS_ROOT
@pytest.mark.parametrize(("given", "said"), [("root", "rights of root"), ("no-such-user-here", "there is no user")])
def test_root_and_unknown_users_are_refused(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        UserPool([given], isolated=True)


@AS_ROOT
@pytest.mark.parametrize(("capability", "said"), [("sys_admin", "no namespaces"), ("kill", "lacks CAP_KILL")])
def test_what_the_agent_may_not_do_is_said_at_its_start(capability: str, said: str) -> None:
    code = (
        "from prouter.agent.jobs.state.user_pool import make_users; from prouter.config.agent import AgentJobs\n"
        "make_users(AgentJobs(user='64900-64901', private_tmp='required'))"
    )
    command = ["setpriv", "--bounding-set", f"-{capability}", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("20000-20099", "20000-20099"),
        ("20000", "20000"),
        ("worker", "worker"),
        ("['a-b', 20000, '20001-20002']", ("a-b", "20000", "20001-20002")),
    ],
)
def test_users_are_names_uids_and_ranges(given: str, expected: object) -> None:
    assert load_agent(None, [f"jobs.user={given}"], {}).jobs.user == expected


@pytest.mark.parametrize("given", ["0", "0-5", "9-3", "1-99999999", "4294967295", "a b", "''", "[]", "1-x/y"])
def test_what_is_no_user_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.user"):
        load_agent(None, [f"jobs.user={given}"], {})
