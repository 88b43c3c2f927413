"""Logs on a network file system that is slow: the agent's other work goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from prouter.agent.logs.job_log import JobLog, LogChunk
from prouter.agent.relays.logs import LogNews, LogStreams
from prouter.agent.relays.transfers import Transfers
from prouter.transport.stream_io import StreamIO
from tests.support.loopback import Loopback, wait_for
from tests.unit.agent.relays.test_transfers import OneJob

SLOW = 0.8
"""Seconds that each use of a log takes."""


class SlowLog:
    """A log whose file system is slow."""

    def __init__(self, log: JobLog) -> None:
        self._log = log

    def fileno(self) -> int:
        time.sleep(SLOW)
        return self._log.fileno()

    def end(self) -> int:
        time.sleep(SLOW)
        return self._log.end()

    def read(self, offset: int) -> LogChunk:
        time.sleep(SLOW)
        return self._log.read(offset)

    def tail_offset(self, lines: int) -> int:
        time.sleep(SLOW)
        return self._log.tail_offset(lines)


class SlowJob(OneJob):
    """A job whose logs are slow."""

    def log(self, uid: str, name: str) -> Any:
        return SlowLog(super().log(uid, name))


class Ticks:
    """Measures for how long the event loop ran no other greenlet; `longest` is that in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        last = time.monotonic()
        while True:
            gevent.sleep(0.01)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now

    def close(self) -> None:
        self._greenlet.kill()


@pytest.fixture
def ticks() -> Iterator[Ticks]:
    ticks = Ticks()
    gevent.sleep(0.02)
    yield ticks
    ticks.close()


@pytest.mark.parametrize("target", [{"follow": True}, {"tail": 1}, {}])
def test_reading_blocks_nothing_else(tmp_path: Path, ticks: Ticks, target: dict[str, Any]) -> None:
    job, news = SlowJob(tmp_path / "sandbox"), LogNews(remote=True)
    transfers = Transfers(job, {"log": LogStreams(news).send}, 2)
    loopback = Loopback(transfers.open)
    (job.root / ".pagent.stdout").write_bytes(b"line\n")
    try:
        with gevent.Timeout(20):
            stream = StreamIO(loopback.open({"kind": "log", "job": "j1", "name": "stdout", **target}))
            stream.close()
            stream.read_preface()
            job.end()
            assert b"".join(iter(stream.read, b"")) == b"line\n"
            wait_for(lambda: len(transfers) == 0)
    finally:
        news.close()
        transfers.close()
    assert ticks.longest < SLOW * 0.7
