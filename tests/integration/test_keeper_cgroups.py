"""Jobs in control groups of their own, where a part of a real cgroup v2 hierarchy can be had (as root)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from prouter.agent.keeper.cgroups import AUTO, find
from prouter.agent.runner import Limits
from tests.support.keeper import Bench, alive, number, until

WIPE = "import resource; resource.setrlimit(resource.RLIMIT_RTTIME, (-1, -1))\n"


def _mounted() -> Path | None:
    """Where the cgroup v2 file system is."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(mount.split(" ")[4])
    return None


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group that is the test's to divide, with whatever controllers the machine can give it."""
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
    return [path.name for path in group.glob("**/prouter-job-*")]


def quiet(_level: str, _text: str) -> None:
    """No log."""


def test_a_job_runs_in_its_group_from_the_start_and_the_group_goes_with_it(bench: Bench, delegated: Path) -> None:
    runner = bench.runner(cgroup=str(delegated))
    runner.open()
    spec = bench.spec("sh", "-c", "cat /proc/self/cgroup > group; read line")
    spawned = runner.spawn(spec)
    assert jobs_in(delegated) == [f"prouter-job-{spec.job}"]
    told = bench.sandbox(spec.job) / "group"
    until(lambda: told.exists() and told.read_text())
    assert f"/{delegated.name}/prouter-job-{spec.job}\n" in told.read_text()
    assert bench.exit(spawned).exit_code == 1  # /dev/null is read to its end
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
def test_a_group_is_used_by_itself_only_when_it_was_handed_over(delegated: Path, marked: bool) -> None:
    """As a service manager does it: the mark, then a process that starts in the group."""
    inside = delegated / "service"
    inside.mkdir()
    if marked:
        os.setxattr(inside, "user.delegate", b"1")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        (inside / "cgroup.procs").write_text("0")
        found = find(AUTO, move=True, log=quiet)
        os.write(writing, (found.path if found else "none").encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    said = os.read(reading, 4096).decode()
    os.close(reading)
    assert said == (str(inside) if marked else "none")
    assert (inside / "prouter-agent").is_dir() == marked


def test_a_group_that_is_not_there_is_done_without(bench: Bench, tmp_path: Path) -> None:
    runner = bench.runner(cgroup=str(tmp_path / "none"))
    runner.open()
    spec = bench.spec("true")
    assert bench.exit(runner.spawn(spec)).exit_code == 0
