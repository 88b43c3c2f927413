"""Jobs in control groups of their own; needs a part of a real cgroup v2 hierarchy (as root)."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from prouter.keeper.cgroups import AUTO, Hierarchy, find
from prouter.runners.interface import Limits
from tests.support.keeper import Bench, alive, number, until

WIPE = "import resource; resource.setrlimit(resource.RLIMIT_RTTIME, (-1, -1))\n"


def _mounted() -> Path | None:
    """Return where the cgroup v2 file system is mounted."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(mount.split(" ")[4])
    return None


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group that the test may divide, with whatever controllers the machine can give it."""
    mounted = _mounted()
    if mounted is None or os.geteuid() != 0:
        pytest.skip("needs root and a mounted cgroup v2 file system")
    group = mounted / f"prouter-test-{token_hex(8)}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    yield group
    until(lambda: _removed(group))


def _removed(group: Path) -> bool:
    """Remove it with all that is below; False while a process is left in it."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:
            return False
    return True


@pytest.fixture
def bench(delegated: Path, tmp_path: Path) -> Iterator[Bench]:
    """What runs below `delegated`, ended before that is removed."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def jobs_in(group: Path) -> list[str]:
    """Return the names of jobs' groups; groups may go meanwhile, which os.walk does not mind."""
    return [name for _, names, _ in os.walk(group) for name in names if name.startswith("prouter-job-")]


def quiet(_level: str, _text: str) -> None:
    """No log."""


def test_a_job_runs_in_its_group_from_the_start_and_the_group_goes_with_it(bench: Bench, delegated: Path) -> None:
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    spec = bench.spec("sh", "-c", "cat /proc/self/cgroup > group; until test -e go; do sleep 0.02; done; exit 7")
    spawned = runner.spawn(spec)
    assert jobs_in(delegated) == [f"prouter-job-{spec.job}"]
    told = bench.sandbox(spec.job) / "group"
    until(lambda: told.exists() and told.read_text())
    assert f"/{delegated.name}/prouter-job-{spec.job}\n" in told.read_text()
    (bench.sandbox(spec.job) / "go").touch()
    assert bench.exit(spawned).exit_code == 7
    assert jobs_in(delegated) == []


def test_a_process_that_wiped_every_trace_ends_with_its_job(bench: Bench, delegated: Path) -> None:
    """Without a group it would live until the last job ends."""
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    other = runner.spawn(bench.spec("sleep", "1000"))
    spec = bench.escape()
    spec.argv[4] = WIPE + spec.argv[4]
    runner.spawn(spec)
    escaped = number(bench.sandbox(spec.job) / "escaped")
    assert escaped in runner.processes(spec.job)
    runner.kill(spec.job)
    assert not alive(escaped)
    assert alive(other.pid)


def test_cpu_time_of_processes_nobody_awaited_counts(bench: Bench, delegated: Path) -> None:
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    code = "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    code += "child = os.fork()\nif child == 0:\n    while time.process_time() < 0.3: pass\n    os._exit(0)\n"
    code += "try: os.waitpid(child, 0)\nexcept ChildProcessError: pass"
    end = bench.exit(runner.spawn(bench.spec(sys.executable, "-I", "-S", "-c", code)))
    assert end.exit_code == 0
    assert end.cpu_seconds >= 0.3


def test_a_killed_keepers_groups_are_cleared(bench: Bench, delegated: Path) -> None:
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    spec = bench.escape()
    spec.argv[4] = WIPE + spec.argv[4]
    spawned = runner.spawn(spec)
    escaped = number(bench.sandbox(spec.job) / "escaped")
    assert runner.keeper_pid is not None
    os.kill(runner.keeper_pid, signal.SIGKILL)
    assert bench.exit(spawned).reason == "agent_lost"
    assert not alive(escaped)
    assert jobs_in(delegated) == []


@pytest.mark.parametrize("keeper_too", [False, True])
def test_a_killed_agents_groups_are_cleared(bench: Bench, delegated: Path, keeper_too: bool) -> None:
    """By its keeper, or by the next one, which itself need not use any."""
    spec = bench.escape()
    spec.argv[4] = WIPE + spec.argv[4]
    agent, told = bench.agent(spec, keep_for=0, cgroup=str(delegated))
    escaped = number(bench.sandbox(spec.job) / "escaped")
    if keeper_too:
        os.kill(told["keeper"], signal.SIGSTOP)  # Or it would have noticed before it is killed.
    agent.kill()
    agent.wait()
    if keeper_too:
        os.kill(told["keeper"], signal.SIGKILL)
        assert bench.runner().open() == []
    until(lambda: not jobs_in(delegated))
    until(lambda: not alive(escaped))
    until(lambda: not bench.sandbox(spec.job).exists())


def test_groups_a_job_makes_below_its_own_go_too(bench: Bench, delegated: Path) -> None:
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    make = f"cd {delegated}/prouter-job-*; mkdir sub; sleep 1000 & echo $! > sub/cgroup.procs; wait"
    spec = bench.spec("sh", "-c", make)
    runner.spawn(spec)
    sub = delegated / f"prouter-job-{spec.job}" / "sub"
    until(lambda: sub.is_dir() and (sub / "cgroup.procs").read_text().strip())
    runner.kill(spec.job)
    assert jobs_in(delegated) == []


def test_memory_is_held_by_the_kernel_where_it_can(bench: Bench, delegated: Path) -> None:
    if "memory" not in (delegated / "cgroup.controllers").read_text().split():
        pytest.skip("the machine's cgroup v2 hierarchy has no memory controller")
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    hog = "x = b'x' * (150 << 20); input()"
    spec = bench.spec("sh", "-c", f'sleep 1000 | {sys.executable} -I -S -c "{hog}"', limits=Limits(memory=100 << 20))
    spawned = runner.spawn(spec)
    assert (delegated / f"prouter-job-{spec.job}" / "memory.max").read_text().strip() == str(100 << 20)
    end = bench.exit(spawned)
    assert (end.signal, end.reason) == ("SIGKILL", "memory")


def test_a_fork_bomb_meets_the_kernels_limit_and_is_ended(bench: Bench, delegated: Path) -> None:
    if "pids" not in (delegated / "cgroup.controllers").read_text().split():
        pytest.skip("the machine's cgroup v2 hierarchy has no pids controller")
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    spec = bench.spec(sys.executable, "-I", "-S", "-c", "import os\nwhile True: os.fork()", limits=Limits(processes=20))
    end = bench.exit(runner.spawn(spec))
    assert (end.signal, end.reason) == ("SIGKILL", "processes")


@pytest.mark.parametrize("marked", [True, False])
def test_a_group_is_divided_by_itself_only_when_it_was_handed_over(delegated: Path, marked: bool) -> None:
    """As a service manager does it: the mark, then a process that starts in the group."""
    inside = delegated / "service"
    inside.mkdir()
    if marked:
        os.setxattr(inside, "user.delegate", b"1")
    # Where no service manager keeps books, groups are made, but nothing is divided.
    used = marked or not os.path.isdir("/run/systemd/system")
    there = {"memory", "pids"} & set((inside / "cgroup.controllers").read_text().split())
    (found,) = in_a_child(inside, lambda: [find(AUTO, move=True, log=quiet)])
    assert found == (str(inside) if used else None)
    given = set((inside / "cgroup.subtree_control").read_text().split())
    assert given == (there if marked else set())
    assert (inside / "prouter-agent").is_dir() == bool(given)
    assert not list(inside.glob("prouter-trial-*"))


def test_what_was_given_is_taken_back_when_the_keeper_ends(delegated: Path) -> None:
    """Or the service manager could not start another agent in the group."""
    if "memory" not in (delegated / "cgroup.controllers").read_text().split():
        pytest.skip("the machine's cgroup v2 hierarchy has no memory controller")
    os.setxattr(delegated, "user.delegate", b"1")

    def end() -> list[Hierarchy | None]:
        found = find(AUTO, move=True, log=quiet)
        assert found is not None
        assert "memory" in (delegated / "cgroup.subtree_control").read_text()
        found.give_back()
        return [found]

    assert in_a_child(delegated, end) == [str(delegated)]
    assert not (delegated / "cgroup.subtree_control").read_text().strip()


def in_a_child(group: Path, act: Callable[[], list[Hierarchy | None]]) -> list[str | None]:
    """What a process finds that starts in the group: the paths of hierarchies."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        (group / "cgroup.procs").write_text("0")
        os.write(writing, json.dumps([found.path if found else None for found in act()]).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    said: list[str | None] = json.loads(os.read(reading, 4096))
    os.close(reading)
    return said


def test_groups_that_nobody_can_enter_are_done_without(bench: Bench, delegated: Path) -> None:
    sibling = delegated / "threads"
    sibling.mkdir()
    (sibling / "cgroup.type").write_text("threaded")  # From now on, groups beside it take no processes.
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    assert bench.exit(runner.spawn(bench.spec("true"))).exit_code == 0


def test_a_job_that_makes_its_group_one_of_threads_is_ended_as_any_other(bench: Bench, delegated: Path) -> None:
    """Such a group cannot be killed in one step, and has no list of processes."""
    if "memory" in (delegated / "cgroup.controllers").read_text().split():
        pytest.skip("groups with the memory controller cannot be made ones of threads")
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    leave_and_return = "echo 0 > ../cgroup.procs; echo threaded > cgroup.type; echo 0 > cgroup.procs"
    spec = bench.spec("sh", "-c", f"cd {delegated}/prouter-job-*; {leave_and_return}; sleep 1000 & wait")
    spawned = runner.spawn(spec)
    group = delegated / f"prouter-job-{spec.job}"
    until(lambda: (group / "cgroup.type").read_text() == "threaded\n" and runner.usage(spec.job).processes == 2)
    runner.kill(spec.job)
    assert bench.exit(spawned).signal == "SIGKILL"
    assert jobs_in(delegated) == []


def test_a_process_killed_for_want_of_the_machines_memory_says_so(bench: Bench, delegated: Path) -> None:
    if "memory" not in (delegated / "cgroup.controllers").read_text().split():
        pytest.skip("the machine's cgroup v2 hierarchy has no memory controller")
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    (delegated / "memory.max").write_text(str(60 << 20))
    hog = runner.spawn(bench.spec(sys.executable, "-I", "-S", "-c", "x = b'x' * (150 << 20); input()"))
    assert (bench.exit(hog).signal, bench.exit(hog).reason) == ("SIGKILL", "memory")
    eats = f"{sys.executable} -I -S -c \"x = b'x' * (150 << 20)\"; exit 3"
    survivor = runner.spawn(bench.spec("sh", "-c", eats))
    assert (bench.exit(survivor).exit_code, bench.exit(survivor).reason) == (3, None)


def test_a_group_that_is_not_there_is_done_without(bench: Bench, tmp_path: Path) -> None:
    runner = bench.runner(cgroup=str(tmp_path / "none"))
    runner.open()
    spec = bench.spec("true")
    assert bench.exit(runner.spawn(spec)).exit_code == 0


def test_a_frozen_job_hears_that_it_is_to_end(bench: Bench, delegated: Path) -> None:
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    spec = bench.spec("sh", "-c", "trap 'exit 7' TERM; echo > ready; while :; do sleep 0.05; done")
    spawned = runner.spawn(spec)
    until((bench.sandbox(spec.job) / "ready").exists)
    group = delegated / f"prouter-job-{spec.job}"
    if not (group / "cgroup.freeze").exists():
        pytest.skip("a kernel without cgroup.freeze (before 5.2)")
    (group / "cgroup.freeze").write_text("1")
    until(lambda: "frozen 1" in (group / "cgroup.events").read_text())
    runner.signal(spec.job, signal.SIGTERM, tree=True)
    assert bench.exit(spawned).exit_code == 7
