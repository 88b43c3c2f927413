"""Logs of jobs: positions that never change, last lines, bounded size while the job writes on, followers."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.agent.archives import Unpacker, pack
from prouter.agent.logs.job_log import JobLog
from prouter.agent.logs.log_watch import LogWatcher
from prouter.agent.sandbox import files
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import Conflict, Forbidden, InvalidRequest, NotFound
from tests.support.processes import wait_until


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A sandbox as one of a job that an older version of the agent started: its logs are in it."""
    made = Sandbox(tmp_path / "one")
    made.create()
    return made


@pytest.fixture
def started(tmp_path: Path) -> Sandbox:
    """The sandbox of a job that was started: its logs are beside it."""
    made = Sandbox(tmp_path / "jobs" / "two")
    made.create()
    for fd in made.logs.create().values():
        os.close(fd)
    return made


def append(sandbox: Sandbox, data: bytes, name: str = "stdout") -> None:
    """Write as the log writer does, or a job that an older version of the agent started."""
    beside = sandbox.logs.path(name)
    with (beside if beside.exists() else sandbox.root / f".pagent.{name}").open("ab") as log:
        log.write(data)


def read_all(log: JobLog, offset: int = 0, n: int = 65_536) -> bytes:
    pieces = []
    while (chunk := log.read(offset, n)).data:
        assert chunk.start == offset
        pieces.append(chunk.data)
        offset = chunk.end
    return b"".join(pieces)


@pytest.mark.parametrize("holes", [True, False])
def test_a_log_beside_its_sandbox_is_cut_and_found_again(started: Sandbox, holes: bool) -> None:
    data = numbered(0, 20_000)
    (started.root / ".pagent.stdout").write_bytes(b"the job's own")
    with JobLog(started, "stdout", holes=holes) as log:
        append(started, data)
        assert log.enforce_limit(100_000) > 100_000
        append(started, b"after\n")
        assert read_all(log, log.tail_offset(2)) == b"line 00019999\nafter\n"
        again = Sandbox(started.root)
        again.adopt(started.kept())
        with JobLog(again, "stdout") as found:
            assert read_all(found) == read_all(log)
    assert started.size_bytes() >= 100_000 * 3 // 4
    started.remove()
    assert os.listdir(started.root.parent) == []


def test_what_came_since_a_time_begins_with_its_line(started: Sandbox) -> None:
    with JobLog(started, "stdout") as log:
        append(started, b"one\ntwo\nthr")
        written = os.fstat(log.fileno()).st_mtime
        assert log.since_offset(written - 100) == 0
        assert log.since_offset(written + 100) == 11, "without entries, its last change counts"
        path = started.logs.path("stdout")
        path.with_name(f"{path.name}.times").write_bytes(struct.pack("<dQdQ", 1000.0, 0, 2000.0, 11))
        append(started, b"ee\n")
        assert [log.since_offset(moment) for moment in (5.0, 1000.5, 1500.0, 2001.0)] == [0, 0, 8, 14]
        assert log.tail_offset(1) == 8
    started.remove()
    assert os.listdir(started.root.parent) == []


def test_only_the_inode_made_at_the_start_is_a_log(started: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 100_000)
    append(started, b"mine\n")
    kept = started.kept()
    path = started.logs.path("stdout")
    with JobLog(started, "stdout") as log:
        assert log.end() == 5
        path.unlink()
        os.link(secret, path)
        log.rest()
        assert log.read(0).data == b"mine\n", "it is still open"
        assert log.enforce_limit(1) == 0
    again = Sandbox(started.root)
    again.adopt(kept)
    for place in (started, again):
        with JobLog(place, "stdout") as log, pytest.raises(NotFound):
            log.enforce_limit(1)
        with pytest.raises(NotFound):
            files.open_read(place, b".pagent.stdout")
    assert secret.read_bytes() == b"s" * 100_000


def test_a_log_in_the_sandbox_that_is_a_hard_link_is_neither_read_nor_cut(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 1_000_000)
    os.link(secret, sandbox.root / ".pagent.stdout")
    with JobLog(sandbox, "stdout") as log:
        with pytest.raises(Forbidden):
            log.read(0)
        with pytest.raises(Forbidden):
            log.enforce_limit(1000)
        (sandbox.root / ".pagent.stdout").unlink()
        append(sandbox, b"x" * 100_000)
        assert log.end() == 100_000
        os.link(sandbox.root / ".pagent.stdout", tmp_path / "second")
        with pytest.raises(Forbidden, match="several names"):
            log.enforce_limit(1000)
    assert secret.read_bytes() == b"s" * 1_000_000


@pytest.fixture(params=[True, False], ids=["holes", "no holes"])
def log(request: pytest.FixtureRequest, sandbox: Sandbox) -> JobLog:
    return JobLog(sandbox, "stdout", holes=request.param)


def test_a_log_is_read_by_position(sandbox: Sandbox, log: JobLog) -> None:
    append(sandbox, b"one\ntwo\n")
    assert log.read(0, 4).data == b"one\n"
    assert log.read(4).data == b"two\n"
    assert log.read(8).data == b""
    assert (log.first(), log.end()) == (0, 8)
    append(sandbox, b"three\n")
    assert log.read(8).data == b"three\n"
    assert log.read(14).end == 14


def test_there_are_two_logs_and_they_may_be_missing(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidRequest, match="stderr and stdout"):
        JobLog(sandbox, "stdin")
    with pytest.raises(NotFound):
        JobLog(sandbox, "stderr").read(0)


def test_a_log_that_became_a_link_or_fifo_is_not_read(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (sandbox.root / ".pagent.stdout").symlink_to(tmp_path / "secret")
    os.mkfifo(sandbox.root / ".pagent.stderr")
    for name in ("stdout", "stderr"):
        with pytest.raises(Forbidden):
            JobLog(sandbox, name).read(0)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=80)
@given(
    lines=st.lists(st.sampled_from([b"", b"short", b"x" * 70_000]), max_size=6),
    ended=st.booleans(),
    n=st.integers(0, 8),
)
def test_the_last_lines_are_found(sandbox: Sandbox, lines: list[bytes], ended: bool, n: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    data = data if ended else data[:-1]
    (sandbox.root / ".pagent.stdout").write_bytes(data)
    with JobLog(sandbox, "stdout") as log:
        kept = data.splitlines(keepends=True)
        assert read_all(log, log.tail_offset(n)) == b"".join(kept[len(kept) - min(n, len(kept)) :])


def numbered(start: int, stop: int) -> bytes:
    return b"".join(b"line %08d\n" % number for number in range(start, stop))  # 14 bytes each


def test_a_log_over_its_limit_keeps_the_newest_part_and_its_positions(sandbox: Sandbox, log: JobLog) -> None:
    data = numbered(0, 100_000)
    append(sandbox, data)
    assert log.enforce_limit(len(data)) == 0
    dropped = log.enforce_limit(400_000)
    assert dropped == log.first() >= 1_000_000
    assert log.end() == len(data)
    assert 290_000 < log.end() - log.first() < 310_000
    marker = log.read(0)
    assert marker.data == b"[prouter: %d bytes dropped]\n" % marker.end
    assert data[marker.end - 1 : marker.end] == b"\n"
    assert read_all(log) == marker.data + data[marker.end :]
    assert read_all(log, marker.end + 7) == data[marker.end + 7 :]
    assert read_all(log, log.tail_offset(3)) == data[-42:]
    assert read_all(log, log.tail_offset(99_999)) == marker.data + data[marker.end :], "the cut is marked"
    middle = log.read(500_000)
    assert middle.data == b"[prouter: %d bytes dropped]\n" % (marker.end - 500_000)
    append(sandbox, b"more\n")
    assert read_all(log, len(data)) == b"more\n"
    assert sandbox.size_bytes() < 700_000


def test_cutting_again_and_again_keeps_positions(sandbox: Sandbox, log: JobLog) -> None:
    data = b""
    position = 0
    seen = b""
    for turn in range(30):
        new = numbered(turn * 5000, turn * 5000 + 5000)
        data += new
        append(sandbox, new)
        log.enforce_limit(100_000)
        while (chunk := log.read(position)).data:
            assert chunk.end > position
            seen += chunk.data
            position = chunk.end
    assert position == len(data) == log.end()
    assert log.end() - log.first() <= 100_000
    assert seen == data  # who keeps up misses nothing


def test_the_kept_part_is_found_again_after_a_restart(sandbox: Sandbox, log: JobLog) -> None:
    data = numbered(0, 20_000)
    append(sandbox, data)
    log.enforce_limit(100_000)
    append(sandbox, b"after\n")
    with JobLog(sandbox, "stdout") as again:
        assert (again.first(), again.end()) == (log.first(), log.end())
        assert read_all(again) == read_all(log)
        assert read_all(again, again.tail_offset(2)) == b"line 00019999\nafter\n"


def test_small_logs_and_limits_do_no_harm(sandbox: Sandbox, log: JobLog) -> None:
    append(sandbox, b"tiny\n")
    log.enforce_limit(1)
    assert log.end() == 5
    with pytest.raises(NotFound):
        JobLog(sandbox, "stderr").enforce_limit(10)


WRITER = """
import os, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(int(sys.argv[2])):
    os.write(log, b"line %08d\\n" % number)
"""


def test_a_follower_gets_every_line_of_a_busy_log_or_is_told(sandbox: Sandbox) -> None:
    """With holes nothing the job writes is lost, however often the log is cut meanwhile."""
    count = 60_000
    command = [sys.executable, "-c", WRITER, str(sandbox.root / ".pagent.stdout"), str(count)]
    append(sandbox, b"")
    with subprocess.Popen(command) as job, JobLog(sandbox, "stdout") as log:
        position, marked = 0, 0
        wait_until(lambda: log.end() > 200_000)  # a follower that is late: what is cut now it has not read
        while True:
            running = job.poll() is None
            log.enforce_limit(50_000)
            chunk = log.read(position, 14 * 100)
            if not chunk.data and not running:
                break
            if chunk.data.startswith(b"[prouter"):
                marked += 1
            else:
                lines = numbered(chunk.start // 14, chunk.end // 14 + 1)
                assert chunk.data == lines[chunk.start % 14 :][: chunk.end - chunk.start]
            position = chunk.end
        assert position == count * 14
        assert log.end() - log.first() <= 50_000 + 14
    assert marked > 0


def test_a_log_its_job_truncates_is_marked_and_read_from_the_start(sandbox: Sandbox, log: JobLog) -> None:
    append(sandbox, b"0123456789\n")
    assert log.read(0).end == 11
    (sandbox.root / ".pagent.stdout").write_bytes(b"new\n")
    chunk = log.read(11)
    assert (chunk.data, chunk.end) == (b"[prouter: the job truncated its log]\n", 0)
    assert log.read(0).data == b"new\n"


def test_a_cut_log_downloads_and_packs_as_a_reader_sees_it(sandbox: Sandbox, tmp_path: Path) -> None:
    data = numbered(0, 100_000)
    append(sandbox, data)
    log = JobLog(sandbox, "stdout")
    log.enforce_limit(200_000)
    first = log.first()
    marker = b"[prouter: %d bytes dropped]\n" % first
    with files.open_read(sandbox, b".pagent.stdout") as handle:
        assert handle.size == len(marker) + len(data) - first
        assert b"".join(handle.chunks(n=10)) == marker + data[first:]
        assert b"".join(handle.chunks(5, 50)) == (marker + data[first:])[5:50]
        append(sandbox, data)
        log.enforce_limit(200_000)
        with pytest.raises(Conflict):
            list(handle.chunks(100))
    copy = Sandbox(tmp_path / "copy")
    copy.create()
    with Unpacker(copy) as unpacker:
        for chunk in pack(sandbox):
            unpacker.feed(chunk)
        unpacker.finish()
    got = (copy.root / ".pagent.stdout").read_bytes()
    assert got == b"[prouter: %d bytes dropped]\n" % log.first() + (data + data)[log.first() :]


def test_no_descriptor_is_left(sandbox: Sandbox, log: JobLog) -> None:
    before = len(os.listdir("/proc/self/fd"))
    append(sandbox, numbered(0, 10_000))
    for _ in range(3):
        log.enforce_limit(10_000)
        append(sandbox, numbered(0, 10_000))
        log.read(0)
    log.close()
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before


def readable(watcher: LogWatcher, seconds: float = 5.0) -> bool:
    return bool(select.select([watcher.fileno()], [], [], seconds)[0])


def test_followers_are_called_when_the_log_grows(sandbox: Sandbox) -> None:
    append(sandbox, b"")
    append(sandbox, b"", "stderr")
    watcher = LogWatcher()
    out, err = JobLog(sandbox, "stdout"), JobLog(sandbox, "stderr")
    called: list[str] = []
    first = watcher.watch(out.fileno(), lambda: called.append("first"))
    watcher.watch(out.fileno(), lambda: called.append("second"))
    watcher.watch(err.fileno(), lambda: called.append("err"))
    for _ in range(10):
        append(sandbox, b"x\n")
    assert readable(watcher)
    watcher.dispatch()
    assert called == ["first", "second"]
    assert first is not None
    watcher.unwatch(first)
    watcher.unwatch(first)
    append(sandbox, b"x\n")
    append(sandbox, b"x\n", "stderr")
    assert readable(watcher)
    watcher.dispatch()
    assert sorted(called[2:]) == ["err", "second"]
    watcher.dispatch()
    watcher.close()
    watcher.close()


def test_five_hundred_followers_of_one_log_are_cheap(sandbox: Sandbox) -> None:
    append(sandbox, b"")
    watcher, log = LogWatcher(), JobLog(sandbox, "stdout")
    positions = [0] * 500
    received = [0] * 500

    def follower(number: int) -> None:
        while (chunk := log.read(positions[number])).data:
            received[number] += len(chunk.data)
            positions[number] = chunk.end

    for number in range(500):
        watcher.watch(log.fileno(), lambda number=number: follower(number))  # type: ignore[misc]
    before = len(os.listdir("/proc/self/fd"))
    busy = time.process_time()
    for _ in range(20):
        append(sandbox, b"x" * 999 + b"\n")
        assert readable(watcher)
        watcher.dispatch()
    busy = time.process_time() - busy
    assert received == [20_000] * 500
    assert len(os.listdir("/proc/self/fd")) == before
    assert busy / 20 < 0.1  # seconds of CPU for each line to reach all 500
    watcher.close()


def test_a_shared_log_is_safe_for_threads(sandbox: Sandbox) -> None:
    append(sandbox, numbered(0, 5000))
    log = JobLog(sandbox, "stdout")
    data = numbered(0, 5000)
    failures: list[bytes] = []

    def check() -> None:
        for _ in range(20):
            got = read_all(log, 14 * 100, 4096)
            if got != data[1400:]:
                failures.append(got)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
