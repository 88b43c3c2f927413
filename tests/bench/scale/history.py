"""A database with a long history, as a broker leaves it behind, written faster than a broker would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.ledger import SAVE_JOB
from prouter.broker.links.hello import SERVER, connection_uid
from prouter.broker.store.database import connect
from prouter.jobs import JobRecord, Reason, State
from tests.bench.scale.light_agents import digest

__all__ = ["write_history"]

_DAY = 86_400.0
_NAMES = 500


def write_history(path: Path, jobs: int, agents: int) -> None:
    """Write ended jobs of light agents into a new database.

    Args:
        jobs: how many.
        agents: among how many agents they are shared out.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    with closing(connect(path)) as database, database:
        database.execute("PRAGMA cache_size = -500000")
        database.executemany(SAVE_JOB, _rows(jobs, agents))


def _rows(jobs: int, agents: int) -> Iterator[tuple[object, ...]]:
    connections = [connection_uid(digest(f"agent {number}"), SERVER) for number in range(agents)]
    model = _model()
    packed = Entry.heard(model, "").packed
    for number in range(jobs):
        agent = number % agents
        uid, connection, name = digest(f"ended {number}"), connections[agent], f"batch-{number % _NAMES:04d}"
        record = packed
        for before, after in ((model.uid, uid), (model.connection, connection), (model.name, name)):
            record = record.replace(before.encode(), after.encode())
        began = 1.6e9 + 30 * _DAY * number / jobs
        yield (
            uid,
            connection,
            f"light-{agent:06d}",
            name,
            began,
            State.FINISHED.value,
            6,
            0,
            "",
            began + 60.0,
            record,
            0,
            int(began * 1_000_000),
            len(record),
            None,
            None,
        )


def _model() -> JobRecord:
    """The record of a typical ended job."""
    return JobRecord(
        uid="0" * 32,
        connection="1" * 32,
        name="batch-0000",
        state=State.FINISHED,
        revision=6,
        args=["python3", "train.py", "--epochs", "20", "--seed", "1", "--out", "results"],
        pid=None,
        exit_code=0,
        reason=Reason.EXITED,
        created_at=1.6e9,
        started_at=1.6e9 + 0.1,
        finished_at=1.6e9 + 60.0,
        cpu_seconds=58.2,
        rss_bytes=210_000_000,
    )
