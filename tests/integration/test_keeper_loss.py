"""Jobs whose agent, keeper or both are killed, with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.errors import Conflict
from prouter.processes import process_tree
from prouter.runners.local.keeper_client import KeeperClient, KeeperRefusal
from tests.support.keeper import Bench, BenchRunner, alive, number, until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A state directory and what runs on it."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_killed_agent_takes_its_trees_and_sandboxes_along(bench: Bench) -> None:
    ended, escaping, held = bench.spec("true"), bench.escape(), bench.spec("true")
    agent, line = bench.agent(ended, escaping, keep_for=0, held={held.job: str(bench.sandbox(held.job))})
    escaped = number(bench.sandbox(escaping.job) / "escaped")
    _kill(agent)
    until(lambda: not alive(line["keeper"]))
    assert not alive(line["pids"][escaping.job])
    assert not alive(escaped)
    assert not any(bench.sandbox(spec.job).exists() for spec in (ended, escaping, held))
    assert sorted(os.listdir(bench.state_dir)) == ["jobs", "keeper.lock"]


def test_sandbox_that_forbids_its_removal_is_removed(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "mkdir -p a/b && touch a/b/c && ln -s / a/b/root && chmod 0 a/b a && sleep 1000")
    agent, line = bench.agent(spec, keep_for=0)
    until(
        lambda: (bench.sandbox(spec.job) / "a").exists() and not (bench.sandbox(spec.job) / "a").stat().st_mode & 0o777
    )
    _kill(agent)
    until(lambda: not alive(line["keeper"]))
    assert not bench.sandbox(spec.job).exists()


def test_keeper_outlives_signals_meant_for_its_agent(bench: Bench) -> None:
    runner = bench.runner()
    runner.open()
    spawned = runner.spawn(bench.spec("sleep", "1000"))
    assert runner.keeper_pid is not None
    assert os.getsid(runner.keeper_pid) != os.getsid(0)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(runner.keeper_pid, signum)
    assert runner.processes(spawned.job) == [spawned.pid]


def test_next_agent_finds_jobs_running_ended_and_not_started(bench: Bench) -> None:
    running = bench.spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done; exit 5", record={"name": "r", "n": [1]})
    ending = bench.spec("sh", "-c", "until [ -e go ]; do sleep 0.01; done; kill -TERM $$", record={"name": "e"})
    held = bench.spec("true")
    agent, line = bench.agent(running, ending, keep_for=60, held={held.job: str(bench.sandbox(held.job))})
    _kill(agent)
    (bench.sandbox(ending.job) / "go").touch()
    until(lambda: not alive(line["pids"][ending.job]))

    runner = bench.runner(keep_for=60)
    kept = {job.job: job for job in runner.open()}
    assert runner.keeper_pid == line["keeper"]
    assert kept.keys() == {running.job, ending.job, held.job}
    assert kept[running.job].record == {"name": "r", "n": [1]}
    assert kept[running.job].exit is None
    spawned, end = kept[running.job].spawned, kept[ending.job].exit
    assert spawned is not None
    assert spawned.pid == line["pids"][running.job]
    process = process_tree.read_process(spawned.pid)
    assert process is not None
    assert process.start == spawned.start_time
    assert end is not None
    assert (end.exit_code, end.signal) == (None, "SIGTERM")
    assert (kept[held.job].spawned, kept[held.job].exit) == (None, None)

    (bench.sandbox(running.job) / "go").touch()
    assert bench.exit(spawned).exit_code == 5
    assert bench.exits.keys() == {running.job}, "what had ended before is not told again"
    assert bench.exit(runner.spawn(held)).exit_code == 0
    runner.forget(ending.job)


def test_updated_record_is_the_one_kept(bench: Bench) -> None:
    runner = bench.runner(keep_for=60)
    runner.open()
    spawned = runner.spawn(bench.spec("sleep", "1000", record={"port": None}))
    runner.update_record(spawned.job, {"port": 8080})
    runner.close(end_jobs=False)
    (kept,) = bench.runner(keep_for=60).open()
    assert kept.record == {"port": 8080}


def test_jobs_end_when_no_agent_comes_back_in_time(bench: Bench) -> None:
    spec = bench.escape()
    agent, line = bench.agent(spec, keep_for=0.4)
    escaped = number(bench.sandbox(spec.job) / "escaped")
    _kill(agent)
    assert alive(escaped)
    until(lambda: not alive(line["keeper"]))
    assert not alive(escaped)
    assert not bench.sandbox(spec.job).exists()


def test_keeper_without_agent_ends_at_sigterm(bench: Bench) -> None:
    spec = bench.spec("sleep", "1000")
    agent, line = bench.agent(spec, keep_for=60)
    _kill(agent)
    # It has noticed once it takes another agent's connection; that is left again at once.
    runner = bench.runner(keep_for=60)
    runner.open()
    runner.close(end_jobs=False)

    def gone() -> bool:
        # Again and again, as a SIGTERM before it saw the agent go is ignored.
        with contextlib.suppress(ProcessLookupError):
            os.kill(line["keeper"], signal.SIGTERM)
        return not alive(line["keeper"])

    until(gone)
    assert not alive(line["pids"][spec.job])


def test_new_agent_waits_until_the_old_ones_jobs_are_gone(bench: Bench) -> None:
    specs = [bench.escape() for _ in range(10)]
    agent, line = bench.agent(*specs, keep_for=0)
    escaped = [number(bench.sandbox(spec.job) / "escaped") for spec in specs]
    _kill(agent)
    runner = bench.runner()
    assert runner.open() == []
    assert runner.keeper_pid != line["keeper"]
    assert not any(map(alive, escaped))
    assert not any(bench.sandbox(spec.job).exists() for spec in specs)


def test_second_agent_is_refused_while_the_first_lives(bench: Bench) -> None:
    bench.runner(keep_for=60).open()
    with pytest.raises(Conflict, match="another agent is using this state directory"):
        bench.runner(keep_for=60).open()


def test_killed_keeper_is_replaced_and_its_jobs_reported(bench: Bench) -> None:
    runner = bench.runner()
    runner.open()
    before = runner.spawn(bench.spec("true"))
    assert bench.exit(before).exit_code == 0
    spawned = runner.spawn(bench.escape())
    escaped = number(bench.sandbox(spawned.job) / "escaped")
    killed = runner.keeper_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    end = bench.exit(spawned)
    assert (end.exit_code, end.signal, end.reason) == (None, None, "agent_lost")
    assert not alive(spawned.pid)
    assert not alive(escaped)
    assert bench.sandbox(spawned.job).exists(), "the agent lives, so the job's files stay"
    assert runner.keeper_pid != killed
    assert bench.exit(runner.spawn(bench.spec("true"))).exit_code == 0
    for job in (before.job, spawned.job):
        runner.forget(job)


def test_kill_that_meets_a_dead_keeper_still_ends_the_tree(bench: Bench) -> None:
    runner = bench.runner()
    runner.open()
    spawned = runner.spawn(bench.spec("sleep", "1000"))
    assert runner.keeper_pid is not None
    os.kill(runner.keeper_pid, signal.SIGSTOP)
    killing = gevent.spawn(runner.kill, spawned.job)
    gevent.sleep(0)
    os.kill(runner.keeper_pid, signal.SIGKILL)
    killing.get(timeout=8)
    assert not alive(spawned.pid)


def test_exits_seen_before_a_keeper_died_are_kept_by_the_next(bench: Bench) -> None:
    runner = bench.runner(keep_for=60)
    runner.open()
    spawned = runner.spawn(bench.spec("sh", "-c", "exit 4", record={"a": 1}))
    bench.exit(spawned)
    lost, runner.keeper_pid = runner.keeper_pid, None
    assert lost is not None
    os.kill(lost, signal.SIGKILL)
    until(lambda: runner.keeper_pid)
    assert [job["job"] for job in runner._request("hello", keep_for=60.0)["jobs"]] == [spawned.job]
    runner.close(end_jobs=False)
    (kept,) = bench.runner(keep_for=60).open()
    assert kept.record == {"a": 1}
    assert kept.exit is not None
    assert kept.exit.exit_code == 4


def test_agent_and_keeper_both_killed_leave_nothing_to_the_next(bench: Bench) -> None:
    spec = bench.escape()
    agent, line = bench.agent(spec, keep_for=60)
    escaped = number(bench.sandbox(spec.job) / "escaped")
    os.kill(agent.pid, signal.SIGSTOP)
    os.kill(line["keeper"], signal.SIGKILL)
    _kill(agent)
    assert alive(escaped)
    assert bench.runner().open() == []
    assert not alive(line["pids"][spec.job])
    assert not alive(escaped)
    assert not bench.sandbox(spec.job).exists()


def test_a_keeper_that_dies_while_it_takes_over_is_replaced_by_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, jobs = two_held(bench)
    request, killed = KeeperClient.request, [runner.keeper_pid]

    def kill_once(client: KeeperClient, op: str, **arguments: Any) -> Any:
        if op == "hold" and len(killed) == 1:
            killed.append(runner.keeper_pid)
            os.kill(runner.keeper_pid or 0, signal.SIGKILL)
        return request(client, op, **arguments)

    monkeypatch.setattr(KeeperClient, "request", kill_once)
    os.kill(runner.keeper_pid or 0, signal.SIGKILL)
    until(lambda: "event=keeper_not_replaced error='the keeper, which runs the jobs, was lost" in caplog.text)
    until(lambda: runner.keeper_pid not in killed)
    assert held(runner) == jobs


def test_a_job_that_the_next_keeper_refuses_costs_no_other_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner, jobs = two_held(bench)
    request, refused = KeeperClient.request, list[str]()

    def refuse_once(client: KeeperClient, op: str, **arguments: Any) -> Any:
        if op == "hold" and not refused:
            refused.append(arguments["job"])
            raise KeeperRefusal("no_space", "the disk is full")
        return request(client, op, **arguments)

    monkeypatch.setattr(KeeperClient, "request", refuse_once)
    os.kill(runner.keeper_pid or 0, signal.SIGKILL)
    until(lambda: "event=job_not_handed_over" in caplog.text)
    assert held(runner) == jobs - set(refused)
    assert bench.exit(runner.spawn(bench.spec("true"))).exit_code == 0


def two_held(bench: Bench) -> tuple[BenchRunner, set[str]]:
    """A runner, and the uids of two jobs that it holds."""
    runner = bench.runner(keep_for=60)
    runner.open()
    jobs = {bench.spec("true").job for _ in range(2)}
    for job in jobs:
        runner.hold(job, {}, str(bench.sandbox(job)))
    return runner, jobs


def held(runner: BenchRunner) -> set[str]:
    """The uids of the jobs that the keeper knows."""
    return {job["job"] for job in runner._request("hello", keep_for=60.0)["jobs"]}
