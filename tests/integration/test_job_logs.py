"""Output of jobs reaches their logs, complete and in order, whatever they do to their outputs and files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prouter.agent.archives import Unpacker, pack
from prouter.agent.sandbox import files
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.uploads import Upload
from prouter.errors import Conflict, NotFound
from prouter.jobs import Reason, State
from prouter.keeper.log_gaps import COPIED, COPY_END
from prouter.processes import process_tree
from tests.support.job_manager import Managers, Observed
from tests.support.keeper import alive, until


def shell(observed: Observed, script: str) -> tuple[str, bytes, bytes]:
    """Run a shell script as a job to its end: its uid and both logs, read at the moment the end is known."""
    uid = observed.run("sh", "-c", script)
    observed.ended(uid, 20)
    return uid, observed.log(uid), observed.log(uid, "stderr")


PYTHON = sys.executable


@pytest.mark.parametrize(
    ("script", "out", "err"),
    [
        ("echo one; echo two >/dev/stdout; echo three", b"one\ntwo\nthree\n", b""),
        ("echo one; echo two >>/dev/stdout; echo three", b"one\ntwo\nthree\n", b""),
        ("echo one >&2; echo two >/dev/stderr; echo three >&2", b"", b"one\ntwo\nthree\n"),
        ("echo one; echo two >/proc/self/fd/1; echo three >/dev/fd/1", b"one\ntwo\nthree\n", b""),
        ("echo one >/dev/stderr; echo two; echo three >&2", b"two\n", b"one\nthree\n"),
        ("exec 2>&1; echo one; echo two >/dev/stderr; echo three >/dev/stdout", b"one\ntwo\nthree\n", b""),
        ("exec 3>/dev/stdout; echo one >&3; echo two; exec 3>&-; echo three", b"one\ntwo\nthree\n", b""),
        ("echo one | tee /dev/stderr; echo two | tee -a /dev/stdout", b"one\ntwo\ntwo\n", b"one\n"),
        ("echo one; sh -c 'echo two >/proc/'$$'/fd/1'; echo three", b"one\ntwo\nthree\n", b""),
        ("nohup sh -c 'echo one; echo two >/dev/stdout'; echo three", b"one\ntwo\nthree\n", None),
        ("echo one; setsid -w sh -c 'echo two >/dev/stdout'; echo three", b"one\ntwo\nthree\n", b""),
        ("echo one; dd if=/dev/null of=/dev/stdout 2>/dev/null; echo two", b"one\ntwo\n", b""),
        ("echo one; truncate -s 0 /dev/stdout 2>/dev/null; echo two", b"one\ntwo\n", b""),
        ("echo one; exec >&-; echo two >&2", b"one\n", b"two\n"),
    ],
)
def test_an_output_that_is_opened_anew_loses_nothing(
    observed: Observed, script: str, out: bytes, err: bytes | None
) -> None:
    _, got_out, got_err = shell(observed, script)
    assert got_out == out
    assert err is None or got_err == err


@pytest.mark.parametrize(
    "line",
    [
        "open('/dev/stdout', 'w').write('two\\n')",
        "open('/dev/stdout', 'ab').write(b'two\\n')",
        "os.write(os.open('/proc/self/fd/1', os.O_WRONLY | os.O_TRUNC), b'two\\n')",
        "os.ftruncate(1, 0) if stat.S_ISREG(os.fstat(1).st_mode) else None; os.write(1, b'two\\n')",
        "os.lseek(1, 0, 0) if not stat.S_ISFIFO(os.fstat(1).st_mode) else None; os.write(1, b'two\\n')",
        "subprocess.run(['sh', '-c', 'echo two >/dev/stdout'])",
        "os.set_blocking(1, False); os.write(1, b'two\\n')",
    ],
)
def test_a_program_that_opens_truncates_or_seeks_its_output_loses_nothing(observed: Observed, line: str) -> None:
    code = f"import os, stat, subprocess\nprint('one', flush=True)\n{line}\nprint('three', flush=True)"
    uid = observed.run(PYTHON, "-I", "-S", "-c", code)
    observed.ended(uid)
    assert observed.log(uid) == b"one\ntwo\nthree\n", observed.log(uid, "stderr").decode()


@pytest.mark.parametrize(
    "act",
    [
        "rm .pagent.stdout",
        ": >.pagent.stdout",
        "echo mine >>.pagent.stdout",
        "truncate -s 0 .pagent.stdout",
        "mv .pagent.stdout elsewhere; echo mine >.pagent.stdout",
        "ln .pagent.stdout second; echo mine >second",
        "ln -sf /etc/passwd .pagent.stdout",
        "rm .pagent.stdout; ln ../secret .pagent.stdout",
        "rm .pagent.stdout; mkfifo .pagent.stdout",
        "rm .pagent.stdout; mkdir .pagent.stdout",
        "rm ../.job-logs/*; : >../.job-logs/$PROUTER_JOB_ID.stdout",
        "rm ../.job-logs/*; ln ../secret ../.job-logs/$PROUTER_JOB_ID.stdout",
        "mv ../.job-logs ../other",
    ],
)
def test_whatever_a_job_does_to_the_files_it_finds_its_log_is_whole(observed: Observed, act: str) -> None:
    secret = observed.root / "secret"
    secret.write_text("secret")
    uid, out, err = shell(observed, f"echo one; {act}; echo two; echo three >/dev/stdout")
    assert out == b"one\ntwo\nthree\n", err.decode()
    assert secret.read_text() == "secret"
    if ".job-logs" not in act:
        sandbox = observed.manager.sandbox(uid)
        with files.open_read(sandbox, b".pagent.stdout") as handle:
            assert b"".join(handle.chunks()) == out
        entries = {entry.name: entry for entry in files.list_directory(sandbox)}
        assert (entries[".pagent.stdout"].type, entries[".pagent.stdout"].size) == ("file", len(out))
        assert files.stat(sandbox, b".pagent.stdout").size == len(out)
    observed.manager.remove(uid)
    assert secret.read_text() == "secret"


def test_a_log_whose_name_a_job_gave_to_another_file_is_cut_and_that_file_is_not(managers: Managers) -> None:
    jobs = managers.open(log_limit=200_000)
    secret = jobs.root / "secret"
    secret.write_bytes(b"s" * 1_000_000)
    before = secret.stat().st_blocks
    places = ".pagent.stdout ../.job-logs/$PROUTER_JOB_ID.stdout"
    script = f"head -c 1000000 /dev/zero; for f in {places}; do rm $f; ln ../secret $f; done; echo linked; sleep 1000"
    uid = jobs.run("sh", "-c", script)
    until(lambda: jobs.manager.log(uid, "stdout").first() > 0)
    assert jobs.log(uid).endswith(b"linked\n")
    assert (secret.stat().st_blocks, secret.read_bytes()) == (before, b"s" * 1_000_000)


def test_a_job_can_read_the_beginning_of_its_own_log(observed: Observed) -> None:
    script = "echo one; until grep -q one .pagent.stdout; do :; done; cat .pagent.stdout >copy"
    uid, _, _ = shell(observed, script)
    assert observed.file(uid, "copy") == "one\n"


def test_many_processes_that_write_at_once_lose_no_line(observed: Observed) -> None:
    writer = "i=0; while [ $i -lt 200 ]; do echo $0 $i >/dev/stdout; i=$((i+1)); done"
    _, out, _ = shell(observed, f"for p in 1 2 3 4 5 6 7 8; do sh -c '{writer}' $p & done; wait")
    lines = out.decode().splitlines()
    for process in range(1, 9):
        assert [line for line in lines if line.startswith(f"{process} ")] == [f"{process} {i}" for i in range(200)]
    assert len(lines) == 1600


def test_everything_a_job_wrote_is_there_once_its_end_is_known(observed: Observed) -> None:
    for size in (1, 4096, 65_536, 3_000_001):
        uid = observed.run("sh", "-c", f"head -c {size} /dev/zero; echo end")
        observed.ended(uid, 20)
        assert observed.manager.log(uid, "stdout").end() == size + 4


def test_a_process_that_keeps_the_output_open_does_not_delay_the_end(observed: Observed) -> None:
    uid, out, _ = shell(observed, "echo one; (sleep 1000 &) ; echo two; exit 3")
    assert (out, observed.manager.record(uid).exit_code) == (b"one\ntwo\n", 3)


def test_outputs_cannot_be_read_by_an_ordinary_user(observed: Observed) -> None:
    uid = observed.run(PYTHON, "-I", "-S", "-c", "import os; print(oct(os.fstat(1).st_mode), oct(os.fstat(2).st_mode))")
    observed.ended(uid)
    assert observed.log(uid) == b"0o10200 0o10200\n"


def test_archives_and_removal_treat_the_log_as_a_file_of_the_sandbox(observed: Observed, tmp_path: Path) -> None:
    uid, _, _ = shell(observed, "echo one; rm .pagent.stdout; echo other >.pagent.stderr; echo x >a")
    sandbox = observed.manager.sandbox(uid)
    for form in ("tar", "zip", "tar.gz"):
        copy = Sandbox(tmp_path / f"copy.{form}")
        copy.create()
        with Unpacker(copy) as unpacker:
            for chunk in pack(sandbox, archive_format=form):
                unpacker.feed(chunk)
            unpacker.finish()
        assert sorted(os.listdir(copy.root)) == [".pagent.stderr", ".pagent.stdout", "a"]
        assert (copy.root / ".pagent.stdout").read_bytes() == b"one\n"
        assert (copy.root / ".pagent.stderr").read_bytes() == b""
    with pytest.raises(Conflict, match="is the job's log"):
        Upload(sandbox, b".pagent.stdout")
    with files.open_read(sandbox, b".pagent.stdout") as handle:
        assert handle.remove()
    files.delete(sandbox, b".pagent.stderr")
    assert [entry.name for entry in files.list_directory(sandbox)] == ["a"]
    with pytest.raises(NotFound):
        files.open_read(sandbox, b".pagent.stdout")
    assert observed.log(uid) == b"one\n", "the log itself is the job's for as long as that is there"


def test_logs_of_jobs_that_outlive_the_agent_are_found_again(managers: Managers) -> None:
    first = managers.open(keep_for=30)
    uid = first.run("sh", "-c", "echo one; until [ -e go ]; do sleep 0.01; done; echo two >/dev/stdout; sleep 1000")
    until(lambda: first.log(uid) == b"one\n")
    first.manager.close(end_jobs=False)
    second = managers.open(keep_for=30)
    (second.manager.sandbox(uid).root / "go").touch()
    until(lambda: second.log(uid) == b"one\ntwo\n")


def writer_of(observed: Observed) -> int:
    """Pid of the keeper's log writer, once there is one."""
    keeper = observed.runner.keeper_pid
    assert keeper is not None

    def find() -> int | None:
        jobs_of_it = {record.pid for record in observed.manager.records()}
        return next((pid for pid in process_tree.children(keeper) if pid not in jobs_of_it), None)

    found = until(find)
    assert found is not None
    return found


def test_a_log_knows_when_its_bytes_came(observed: Observed) -> None:
    script = "import time\nend = time.time() + 2.5\nwhile time.time() < end:\n print(time.time()); time.sleep(0.05)"
    uid = observed.run(sys.executable, "-c", script)
    assert observed.ended(uid).exit_code == 0
    log = observed.manager.log(uid, "stdout")
    written = observed.log(uid)
    lines = written.splitlines(keepends=True)
    for line in lines[:: len(lines) // 4 or 1]:
        at = log.since_offset(float(line))
        assert b"".join(lines[lines.index(line) :]) in written[at:], "nothing that came since is left out"
        assert written[:at].endswith(b"\n") or at == 0
    assert log.since_offset(float(lines[-1]) + 3600) == len(written)
    observed.manager.remove(uid)
    assert not list(observed.root.glob(".job-logs/*"))


def test_a_killed_log_writer_is_replaced_and_nothing_is_lost(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "echo one; for i in 1 2 3; do until [ -e go$i ]; do sleep 0.01; done; echo $i; done")
    until(lambda: observed.log(uid) == b"one\n")
    for turn in (b"1", b"2", b"3"):
        writer = writer_of(observed)
        os.kill(writer, signal.SIGKILL)
        (observed.manager.sandbox(uid).root / f"go{turn.decode()}").touch()
        until(lambda writer=writer: not alive(writer))  # type: ignore[misc]
    assert observed.ended(uid).reason is Reason.EXITED
    assert observed.log(uid) == b"one\n1\n2\n3\n"


def test_a_stopped_log_writer_delays_the_end_of_a_job_for_some_seconds_only(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "echo one; until [ -e go ]; do sleep 0.01; done; echo two")
    until(lambda: observed.log(uid) == b"one\n")
    writer = writer_of(observed)
    os.kill(writer, signal.SIGSTOP)
    (observed.manager.sandbox(uid).root / "go").touch()
    assert observed.ended(uid, 20).exit_code == 0
    os.kill(writer, signal.SIGCONT)
    until(lambda: observed.log(uid) == b"one\ntwo\n")


def test_a_killed_keeper_costs_no_output_and_leaves_no_log_writer(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); done")
    until(lambda: observed.log(uid).count(b"\n") > 1000)
    writer, keeper = writer_of(observed), observed.runner.keeper_pid
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    assert observed.ended(uid).reason is Reason.AGENT_LOST
    until(lambda: not alive(writer))
    lines = observed.log(uid).split(b"\n")
    assert lines[:-1] == [b"%d" % number for number in range(len(lines) - 1)]


@pytest.mark.parametrize("how", ["removed", "removed by the next agent", "closed", "removed while it runs"])
@pytest.mark.parametrize("target", ["../$PROUTER_JOB_ID.moved", "../other/deep/er"])
def test_a_sandbox_its_job_moved_goes_with_the_job(managers: Managers, how: str, target: str) -> None:
    jobs = managers.open(keep_for=30)
    deep = jobs.root / "other" / "deep"
    deep.mkdir(parents=True)
    script = (
        f'd="$PWD"; echo x >file; until [ -e go ]; do sleep 0.01; done; mv "$d" {target}; mkdir "$d"; echo y >"$d/new"'
    )
    uid = jobs.run("sh", "-c", script if how != "removed while it runs" else f"{script}; sleep 1000")
    place = jobs.manager.sandbox(uid).root
    if how == "removed by the next agent":
        jobs.manager.close(end_jobs=False)
        jobs = managers.open(keep_for=30)
    (place / "go").touch()
    if how == "removed while it runs":
        until(lambda: (place / "new").exists())
    else:
        jobs.ended(uid)
    if how == "closed":
        jobs.manager.close(end_jobs=True)
    else:
        jobs.manager.remove(uid)
    assert sorted(entry.name for entry in (*jobs.root.iterdir(), *deep.parent.iterdir(), *deep.iterdir())) == [
        ".agent.lock",
        "deep",
        "other",
    ]


def test_a_deleted_sandbox_takes_no_other_jobs_files_with_it(observed: Observed) -> None:
    """The next directory may get the deleted one's inode number."""
    first = observed.run("sh", "-c", 'rm -rf "$PWD"')
    observed.ended(first)
    others = [observed.create() for _ in range(20)]
    for other in others:
        (observed.manager.sandbox(other).root / "directory").mkdir()
    observed.manager.remove(first)
    for other in others:
        assert os.listdir(observed.manager.sandbox(other).root) == ["directory"]


def test_no_descriptor_is_left_of_jobs_that_have_ended(observed: Observed) -> None:
    def descriptors() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{observed.runner.keeper_pid}/fd"))

    observed.ended(observed.run("echo", "first"))
    before = descriptors()
    uids = [observed.run("sh", "-c", "echo out; echo err >&2; rm .pagent.stdout") for _ in range(10)]
    for uid in uids:
        observed.ended(uid)
    assert descriptors() == before
    for uid in uids:
        observed.manager.remove(uid)
    assert descriptors() == before


def bound_files(pid: int, size: int) -> None:
    """Let a process write no file longer than `size`: its writes fail, as on a full disk."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def test_a_job_waits_while_its_log_cannot_be_written_and_loses_nothing(
    observed: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    assert observed.runner.keeper_pid is not None
    bound_files(observed.runner.keeper_pid, 100_000)
    uid = observed.run("sh", "-c", "seq 100000; echo done >finished; echo end")
    until(lambda: observed.manager.log(uid, "stdout").end() == 100_000)
    until(lambda: "event=log_not_written" in caplog.text)
    other = observed.run("echo", "other")
    assert observed.ended(other).exit_code == 0
    assert observed.log(other) == b"other\n", "other jobs' logs go on"
    assert not (observed.manager.sandbox(uid).root / "finished").exists()
    assert observed.manager.record(uid).state is State.RUNNING
    bound_files(writer_of(observed), resource.RLIM_INFINITY)
    assert observed.ended(uid).exit_code == 0
    assert observed.log(uid) == b"".join(b"%d\n" % number for number in range(1, 100_001)) + b"end\n"
    assert caplog.text.count("event=log_not_written") == 1


def test_a_log_that_cannot_be_written_does_not_keep_its_job_from_ending(
    observed: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    assert observed.runner.keeper_pid is not None
    bound_files(observed.runner.keeper_pid, 10_000)
    uid = observed.run("sh", "-c", "head -c 30000 /dev/zero; exit 3")
    assert observed.ended(uid, 20).exit_code == 3
    assert observed.manager.log(uid, "stdout").end() == 10_000
    assert f"event=log_bytes_lost job={uid} bytes=20000" in caplog.text


FORWARDING = """
import json, os, sys
from pathlib import Path
from tests.support.job_manager import Managers
managers = Managers(Path(sys.argv[1]))
jobs = managers.open()
uid = jobs.run("sh", "-c", sys.argv[2], forward_stdout=True)
jobs.ended(uid)
managers.close()
"""


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_forwarded_output_does_not_truncate_the_file_that_the_agent_writes_to(tmp_path: Path, mode: str) -> None:
    output = tmp_path / "agent.log"
    output.write_bytes(b"before\n")
    script = "echo one; echo two >&2; echo three >/dev/stdout; echo four >/dev/stderr; echo five"
    with output.open(mode) as file:
        subprocess.run(
            [PYTHON, "-c", FORWARDING, str(tmp_path / "agent"), script],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
            check=True,
            timeout=60,
        )
    whole = output.read_bytes()
    assert b"one\ntwo\nthree\nfour\nfive\n" in whole
    assert whole.startswith(b"before\n") == (mode == "ab")


def test_logs_count_for_the_size_of_the_sandbox_and_their_copies_do_not(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "head -c 3000000 /dev/zero; sleep 1000", limits={"sandbox_size": 2_000_000})
    assert observed.ended(uid, 20).reason is Reason.SANDBOX
    uid = observed.run("head", "-c", "300000", "/dev/zero")
    observed.ended(uid)
    assert 300_000 <= observed.manager.sandbox(uid).size_bytes() <= 300_000 + 4 * 4096


@pytest.mark.parametrize("order", ["upload first", "start first"])
def test_a_file_with_the_name_of_a_log_gives_way_to_the_log(observed: Observed, order: str) -> None:
    uid = observed.create()
    sandbox = observed.manager.sandbox(uid)
    if order == "upload first":
        with Upload(sandbox, b".pagent.stdout") as upload:
            upload.write(b"uploaded")
            upload.commit()
    observed.start(uid, "sh", "-c", "echo one; until grep -q one .pagent.stdout; do :; done; echo two")
    observed.ended(uid)
    assert observed.log(uid) == b"one\ntwo\n"
    with files.open_read(sandbox, b".pagent.stdout") as handle:
        assert b"".join(handle.chunks()) == b"one\ntwo\n"


def test_a_link_to_the_log_leads_to_all_of_it_and_the_jobs_own_copy_says_where_it_ends(observed: Observed) -> None:
    uid, out, _ = shell(observed, "ln -s .pagent.stdout link; ln .pagent.stdout second; seq 100000; cp link copied")
    assert len(out) > COPIED
    sandbox = observed.manager.sandbox(uid)
    for name in (b"link", b"second", b".pagent.stdout"):
        with files.open_read(sandbox, name) as handle:
            assert b"".join(handle.chunks()) == out
    with files.open_read(sandbox, b"copied") as handle:
        copied = b"".join(handle.chunks())
    assert out.startswith(copied) or copied == out[:COPIED] + COPY_END
    assert sandbox.size_bytes() < len(out) + len(copied) + 4 * 4096


def test_the_keeper_takes_more_descriptors_than_its_jobs_may_have(managers: Managers) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 64 + max(map(int, os.listdir("/proc/self/fd")))  # enough for this process, which may have many open
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        jobs = managers.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    uids = [jobs.run("sh", "-c", "ulimit -Sn; exec sleep 1000") for _ in range(few // 5)]
    for uid in uids:
        until(lambda uid=uid: jobs.log(uid) == b"%d\n" % few)  # type: ignore[misc]
