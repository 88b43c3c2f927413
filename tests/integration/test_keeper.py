"""Jobs under a keeper, with real processes: starts, ends, limits, and trees that resist being ended."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from prouter.errors import Conflict, InvalidRequest, NotFound, StartFailed
from prouter.processes import process_tree
from prouter.runners.interface import Exit, Limits
from prouter.runners.local.listening_sockets import listening
from tests.support.keeper import Bench, BenchRunner, alive, number, until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A state directory and what runs on it."""
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def runner(bench: Bench) -> BenchRunner:
    """A runner with a keeper of its own."""
    runner = bench.runner()
    assert runner.open() == []
    return runner


def test_exit_code_is_reported_with_times(bench: Bench, runner: BenchRunner) -> None:
    before = time.time()
    spawned = runner.spawn(bench.spec("sh", "-c", "exit 3"))
    end = bench.exit(spawned)
    assert (end.exit_code, end.signal, end.reason) == (3, None, None)
    assert before - 0.1 <= spawned.started_at <= end.at <= time.time()
    assert end.max_rss > 0


def test_signal_that_ended_the_job_is_reported_by_name(bench: Bench, runner: BenchRunner) -> None:
    spawned = runner.spawn(bench.spec("sh", "-c", "kill -USR1 $$"))
    assert (bench.exit(spawned).exit_code, bench.exit(spawned).signal) == (None, "SIGUSR1")


def test_cpu_time_of_awaited_children_counts(bench: Bench, runner: BenchRunner) -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    end = bench.exit(runner.spawn(bench.spec("sh", "-c", '"$0" -I -S -c "$1"; true', sys.executable, burn)))
    assert 0.2 <= end.cpu_seconds < 2


def test_two_hundred_quick_jobs_each_end_once(bench: Bench, runner: BenchRunner) -> None:
    order: list[str] = []
    told = runner.reports.exited

    def note(end: Exit) -> None:
        order.append(end.job)
        told(end)

    runner.reports.exited = note  # type: ignore[method-assign]

    def one() -> None:
        spawned = runner.spawn(bench.spec("true"))
        assert spawned.job not in order, "the end was told before the start"
        assert bench.exit(spawned).exit_code == 0
        runner.forget(spawned.job)

    greenlets = [gevent.spawn(one) for _ in range(200)]
    gevent.joinall(greenlets, raise_error=True)
    assert len(order) == 200
    assert runner._request("hello", keep_for=0.0)["jobs"] == []
    assert not process_tree.children(runner.keeper_pid or 0)


def test_job_starts_in_a_clean_process(bench: Bench, runner: BenchRunner) -> None:
    code = (
        "import os; print(os.getsid(0) == os.getpid(), os.getcwd(), sorted(os.listdir('/proc/self/fd'))[:-1]); input()"
    )
    spec = bench.spec(sys.executable, "-I", "-S", "-c", code)
    assert bench.exit(runner.spawn(spec)).exit_code == 1, "its stdin is at its end"
    sandbox = bench.sandbox(spec.job)
    assert (sandbox / "stdout").read_text() == f"True {sandbox} ['0', '1', '2']\n"
    assert "EOFError" in (sandbox / "stderr").read_text()


def test_job_has_default_signals(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    bench.exit(runner.spawn(spec))
    masks = [int(line.split()[1], 16) for line in (bench.sandbox(spec.job) / "stdout").read_text().splitlines()]
    of_libc = 0b11 << 31  # signals 32 and 33, which glibc's posix_spawn leaves ignored and nobody else can set
    assert [mask & ~of_libc for mask in masks] == [0, 0]


def test_environment_is_the_given_one_and_the_mark(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("/usr/bin/env", env={"NAME": "v\udcff\nä"})
    bench.exit(runner.spawn(spec))
    expected = f"NAME=v\udcff\nä\nPROUTER_JOB_ID={spec.job}\n"
    assert (bench.sandbox(spec.job) / "stdout").read_bytes() == os.fsencode(expected)


def test_logs_are_private_and_appended_to(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("echo", "new")
    log = bench.sandbox(spec.job) / "stdout"
    log.write_text("old\n")
    bench.exit(runner.spawn(spec))
    assert log.read_text() == "old\nnew\n"
    assert stat.S_IMODE((bench.sandbox(spec.job) / "stderr").stat().st_mode) == 0o600


def test_log_that_is_a_link_is_refused(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("true")
    (bench.sandbox(spec.job) / "stdout").symlink_to("/dev/null")
    with pytest.raises(StartFailed, match=r"log .* cannot be opened"):
        runner.spawn(spec)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["no-such-command"], "'no-such-command' was not found in PATH"),
        (["./missing"], "'./missing' was not found"),
        (["./plain"], "'./plain' is not executable"),
        (["./orphan"], "'./orphan' names an interpreter that does not exist"),
        (["./nothing"], "'./nothing' is neither a program nor a script"),
        (["/"], "'/' is a directory"),
        (["echo", "a\0b"], "not valid: embedded null byte"),
        (["echo", "x" * 200_000], "Argument list too long"),
        ([], "the list of arguments is empty"),
    ],
)
def test_command_that_cannot_run_is_explained(bench: Bench, runner: BenchRunner, argv: list[str], text: str) -> None:
    spec = bench.spec(*argv)
    for name, content, mode in (("plain", "", 0o600), ("orphan", "#!/no/such\n", 0o700), ("nothing", "\1\2", 0o700)):
        (bench.sandbox(spec.job) / name).write_text(content)
        (bench.sandbox(spec.job) / name).chmod(mode)
    with pytest.raises(StartFailed) as failure:
        runner.spawn(spec)
    assert text in failure.value.detail
    assert runner._request("hello", keep_for=0.0)["jobs"] == []
    assert spec.job not in bench.exits


def test_directory_that_is_missing_is_explained(bench: Bench, runner: BenchRunner) -> None:
    with pytest.raises(StartFailed, match="directory '/no/such' cannot be entered"):
        runner.spawn(bench.spec("true", cwd="/no/such"))


def test_held_job_whose_start_failed_may_be_started_again(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("./late")
    runner.hold(spec.job, {"n": 1}, spec.remove_on_loss)
    with pytest.raises(StartFailed):
        runner.spawn(spec)
    (bench.sandbox(spec.job) / "late").symlink_to("/bin/true")
    assert bench.exit(runner.spawn(spec)).exit_code == 0


def test_job_starts_only_once(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("sleep", "1000")
    runner.spawn(spec)
    with pytest.raises(Conflict):
        runner.spawn(spec)
    with pytest.raises(Conflict):
        runner.forget(spec.job)


def test_uid_that_is_none_is_refused(bench: Bench, runner: BenchRunner) -> None:
    with pytest.raises(InvalidRequest, match="32 hex digits"):
        runner.hold("../../etc/passwd", {}, None)


def test_operations_on_jobs_that_do_not_run(bench: Bench, runner: BenchRunner) -> None:
    with pytest.raises(NotFound):
        runner.kill("0" * 32)
    with pytest.raises(NotFound):
        runner.usage("0" * 32)
    spawned = runner.spawn(bench.spec("true"))
    bench.exit(spawned)
    runner.kill(spawned.job)
    for operation in (runner.usage, runner.processes, lambda job: runner.signal(job, signal.SIGTERM)):
        with pytest.raises(Conflict, match="is not running"):
            operation(spawned.job)


def test_signal_reaches_the_tree_or_the_first_process_only(bench: Bench, runner: BenchRunner) -> None:
    script = "trap 'echo first' USR1; sh -c \"trap 'echo second' USR1; touch ready; while :; do sleep 0.01; done\" & "
    spec = bench.spec("sh", "-c", script + "while :; do wait; done")
    runner.spawn(spec)
    sandbox = bench.sandbox(spec.job)
    until((sandbox / "ready").exists)
    runner.signal(spec.job, signal.SIGUSR1, tree=False)
    until(lambda: "first" in (sandbox / "stdout").read_text())
    assert "second" not in (sandbox / "stdout").read_text()
    runner.kill(spec.job)
    assert "second" not in (sandbox / "stdout").read_text()


def test_term_to_the_tree_ends_children_too(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("sh", "-c", "sleep 1000 & echo $! > child.new; mv child.new child; wait")
    spawned = runner.spawn(spec)
    child = number(bench.sandbox(spec.job) / "child")
    runner.signal(spec.job, signal.SIGTERM)
    assert bench.exit(spawned).signal == "SIGTERM"
    assert not alive(child)


def test_kill_finds_only_its_own_escapees(bench: Bench, runner: BenchRunner) -> None:
    first, second = runner.spawn(bench.escape()), runner.spawn(bench.escape())
    mine, other = (number(bench.sandbox(spawned.job) / "escaped") for spawned in (first, second))
    until(lambda: process_tree.environment_mark(mine) is None and process_tree.environment_mark(other) is None)
    until(lambda: set(runner.processes(first.job)) == {first.pid, mine})  # who forked it is gone by then
    runner.kill(first.job)
    assert not alive(first.pid)
    assert not alive(mine)
    assert alive(second.pid)
    assert alive(other)
    assert bench.exit(first).signal == "SIGKILL"
    runner.kill(second.job)
    assert not alive(other)


def test_rest_of_the_tree_ends_before_the_exit_is_told(bench: Bench, runner: BenchRunner) -> None:
    spawned = runner.spawn(bench.escape("end"))
    end = bench.exit(spawned)
    assert end.exit_code == 7
    assert not alive(number(bench.sandbox(spawned.job) / "escaped"))


def test_process_without_any_trace_ends_with_the_last_job(bench: Bench, runner: BenchRunner) -> None:
    wipe = "import resource; resource.setrlimit(resource.RLIMIT_RTTIME, (-1, -1))\n"
    spec = bench.escape()
    spec.argv[4] = wipe + spec.argv[4]
    runner.spawn(spec)
    escaped = number(bench.sandbox(spec.job) / "escaped")
    runner.kill(spec.job)
    until(lambda: not alive(escaped))


def test_stopped_processes_are_killed(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("sh", "-c", "sleep 1000 & echo $! > child.new; mv child.new child; kill -STOP $! $$")
    spawned = runner.spawn(spec)
    child = number(bench.sandbox(spec.job) / "child")
    until(lambda: (found := process_tree.read_process(spawned.pid)) and found.state == "T")
    runner.kill(spec.job)
    assert not alive(child)


FORK_BOMB = """
import os
tokens, filling = os.pipe()
os.write(filling, bytes(400))
os.close(filling)
while os.read(tokens, 1):
    if os.fork() == 0 and {leave_session}:
        os.setsid()
while True:
    pass
"""
"""Every process forks as fast as it can, but all together no more than 400 times: each fork takes a token."""


@pytest.mark.parametrize("leave_session", [False, True])
def test_fork_bomb_is_ended_by_its_limit(bench: Bench, runner: BenchRunner, leave_session: bool) -> None:
    bomb = FORK_BOMB.format(leave_session=leave_session)
    spec = bench.spec("nice", sys.executable, "-I", "-S", "-c", bomb, limits=Limits(processes=50))
    end = bench.exit(runner.spawn(spec))
    assert (end.signal, end.reason) == ("SIGKILL", "processes")
    mark = process_tree.mark_value(spec.job)
    assert not [process for process in process_tree.all_processes() if process_tree.limit_mark(process.pid) == mark]


RELENTLESS_BOMB = """
import os, time
end = time.monotonic() + 5
while time.monotonic() < end:
    if os.fork() == 0:
        os.setsid()
open("outlasted", "w").close()
"""
"""Every process of it forks as fast as it can, in a session of its own.

It gives up after 5 s, lest a failure of the test takes the machine along.
"""


def test_fork_bomb_that_leaves_every_session_is_ended_while_it_forks(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("nice", sys.executable, "-I", "-S", "-c", RELENTLESS_BOMB, limits=Limits(processes=50))
    spawned = runner.spawn(spec)
    until(lambda: spec.job in bench.exits, 30)
    assert bench.exit(spawned).reason == "processes"
    assert not (bench.sandbox(spec.job) / "outlasted").exists()


def test_memory_over_the_limit_ends_the_job(bench: Bench, runner: BenchRunner) -> None:
    hog = "x = b'x' * (150 << 20); input()"
    spec = bench.spec("sh", "-c", f'sleep 1000 | {sys.executable} -I -S -c "{hog}"', limits=Limits(memory=100 << 20))
    end = bench.exit(runner.spawn(spec))
    assert (end.signal, end.reason) == ("SIGKILL", "memory")


def test_shared_memory_counts_once(bench: Bench, runner: BenchRunner) -> None:
    code = "import os, time; x = b'x' * (60 << 20); [os.fork() or time.sleep(1000) for _ in range(3)]; time.sleep(1000)"
    spec = bench.spec(sys.executable, "-I", "-S", "-c", code, limits=Limits(memory=110 << 20))
    runner.spawn(spec)
    until(lambda: runner.usage(spec.job).rss_bytes > 220 << 20)
    assert runner.usage(spec.job).processes == 4
    job_looks = time.monotonic() + 0.3
    until(lambda: time.monotonic() > job_looks)
    assert spec.job not in bench.exits


def test_cpu_time_over_the_limit_ends_the_job_whoever_burnt_it(bench: Bench, runner: BenchRunner) -> None:
    burn = f"{sys.executable} -I -S -c 'import time\nwhile time.process_time() < 0.2: pass'"
    spec = bench.spec("sh", "-c", f"while :; do {burn}; done", limits=Limits(cpu_seconds=0.6))
    end = bench.exit(runner.spawn(spec))
    assert (end.signal, end.reason) == ("SIGKILL", "cpu")
    assert 0.6 <= end.cpu_seconds < 2


def test_cpu_time_is_limited_by_the_kernel_when_the_keeper_cannot_look(bench: Bench, runner: BenchRunner) -> None:
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nopen('up', 'w').close()\nwhile True: pass"
    spec = bench.spec(sys.executable, "-I", "-S", "-c", code, limits=Limits(cpu_seconds=1))
    spawned = runner.spawn(spec)
    assert runner.keeper_pid is not None
    os.kill(runner.keeper_pid, signal.SIGSTOP)
    try:
        until(lambda: not alive(spawned.pid), 30)
    finally:
        os.kill(runner.keeper_pid, signal.SIGCONT)
    end = bench.exit(spawned)
    assert (end.signal, end.reason) == ("SIGKILL", "cpu")


def test_open_files_are_limited(bench: Bench, runner: BenchRunner) -> None:
    spec = bench.spec("sh", "-c", "ulimit -n", limits=Limits(open_files=77))
    bench.exit(runner.spawn(spec))
    assert (bench.sandbox(spec.job) / "stdout").read_text() == "77\n"


def test_usage_counts_the_whole_tree(bench: Bench, runner: BenchRunner) -> None:
    burn = (
        f"{sys.executable} -I -S -c 'import time\nwhile time.process_time() < 0.1: pass'; touch done; sleep 1000 & wait"
    )
    spec = bench.spec("sh", "-c", burn)
    runner.spawn(spec)
    until(lambda: (bench.sandbox(spec.job) / "done").exists() and runner.usage(spec.job).processes == 2)
    usage = runner.usage(spec.job)
    assert 0.09 <= usage.cpu_seconds < 2
    assert usage.rss_bytes > 0


def test_listening_sockets_of_a_job_are_found(bench: Bench, runner: BenchRunner) -> None:
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); open('up', 'w').close(); time.sleep(1000)"
    spec = bench.spec("sh", "-c", f'{sys.executable} -I -S -c "{code}" & wait')
    runner.spawn(spec)
    until((bench.sandbox(spec.job) / "up").exists)
    (found,) = listening(runner.processes(spec.job))
    assert (found.family, found.host) == ("ipv4", "127.0.0.1")


def test_failure_in_a_report_is_logged_and_harms_no_other_job(
    bench: Bench, runner: BenchRunner, caplog: pytest.LogCaptureFixture
) -> None:
    told = runner.reports.exited

    def fail(end: Exit) -> None:
        raise RuntimeError

    runner.reports.exited = fail  # type: ignore[method-assign]
    broken = runner.spawn(bench.spec("true"))
    until(lambda: f"event=exit_not_reported job={broken.job}" in caplog.text)
    runner.reports.exited = told  # type: ignore[method-assign]
    assert bench.exit(runner.spawn(bench.spec("true"))).exit_code == 0


def _cost(pid: int) -> tuple[int, str]:
    process = process_tree.read_process(pid)
    assert process is not None
    switches = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "voluntary" in line]
    return process.ticks, switches[0]


def test_idle_keeper_sleeps(bench: Bench, runner: BenchRunner) -> None:
    for _ in range(3):
        runner.spawn(bench.spec("sleep", "1000"))
    assert runner.keeper_pid is not None
    keeper = runner.keeper_pid
    until(lambda: (process := process_tree.read_process(keeper)) and process.state == "S")
    before = _cost(keeper)
    over = time.monotonic() + 1.0
    until(lambda: time.monotonic() > over)
    assert _cost(keeper) == before


def test_keeper_is_small(runner: BenchRunner) -> None:
    assert runner.keeper_pid is not None
    assert process_tree.rss_bytes(runner.keeper_pid) < 15 << 20


def test_close_ends_jobs_and_keeper_and_removes_sandboxes(bench: Bench, runner: BenchRunner) -> None:
    spawned = runner.spawn(bench.escape())
    escaped = number(bench.sandbox(spawned.job) / "escaped")
    keeper = runner.keeper_pid
    assert keeper is not None
    runner.close(end_jobs=True)
    assert not any(map(alive, (spawned.pid, escaped, keeper)))
    assert not bench.sandbox(spawned.job).exists()
    assert sorted(os.listdir(bench.state_dir)) == ["jobs", "keeper.lock"]
    assert os.listdir(bench.state_dir / "jobs") == []


def test_job_without_log_files_writes_to_the_agents_output(bench: Bench) -> None:
    script = "until [ -e go ]; do sleep 0.01; done; echo hello from the job"
    spec = bench.spec("sh", "-c", script, stdout=None)
    agent, _ = bench.agent(spec, keep_for=0)
    (bench.sandbox(spec.job) / "go").touch()
    assert agent.stdout is not None
    assert agent.stdout.readline() == "hello from the job\n"


def test_state_directory_is_private_and_may_have_a_long_name(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    bench = Bench(deep)
    try:
        runner = bench.runner()
        runner.open()
        assert stat.S_IMODE(bench.state_dir.stat().st_mode) == 0o700
        assert bench.exit(runner.spawn(bench.spec("true"))).exit_code == 0
    finally:
        bench.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_are_refused(bench: Bench, runner: BenchRunner) -> None:
    bench.state_dir.chmod(0o711)  # As it never is: else a stranger would not even get as far as to be refused.
    (bench.state_dir / "keeper.sock").chmod(0o777)
    code = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); os.setuid(65534);"
        "s.connect('keeper.sock'); print(s.recv(1000)[4:].decode())"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    said = subprocess.run(command, cwd=bench.state_dir, capture_output=True, text=True, check=False)
    assert "not as user 65534" in said.stdout, said.stderr


def test_jobs_are_refused_by_their_own_keeper(bench: Bench, runner: BenchRunner) -> None:
    code = (
        "import os, socket, sys, time; s = socket.socket(socket.AF_UNIX)\n"
        "if os.fork() and not os.fork(): os.setsid()\n"
        "s.connect(sys.argv[1]); print(s.recv(1000)[4:].decode(), flush=True)"
    )
    sock = str(bench.state_dir / "keeper.sock")
    spawned = runner.spawn(bench.spec(sys.executable, "-I", "-S", "-c", code, sock))
    bench.exit(spawned)
    assert "takes no orders from its own jobs" in (bench.sandbox(spawned.job) / "stdout").read_text()
