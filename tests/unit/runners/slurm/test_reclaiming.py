"""Jobs that outlived an earlier agent, some with files that make no sense."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prouter.runners import Exit
from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.reclaiming import reclaim
from tests.support.slurm_parts import Cluster

STARTED = {"secret": "s", "name": "prouter-x"}


def put(directory: Path, uid: str, **files: Any) -> None:
    (directory / uid).mkdir()
    job_files.write(str(directory / uid), job_files.RECORD, {"record": {"uid": uid}, "sandbox": None})
    for name, content in files.items():
        job_files.write(str(directory / uid), getattr(job_files, name), content)


@pytest.mark.parametrize(
    "files",
    [
        {"JOB": {"secret": "s"}},
        {"JOB": []},
        {"JOB": STARTED, "SUBMITTED": {"number": 7}},
        {"JOB": STARTED, "SPAWNED": {"pid": 7, "colour": "red", "started_at": 1.0}},
        {"JOB": STARTED, "SPAWNED": {"pid": 7, "start_time": 8, "started_at": "noon", "node": "n"}},
        {"JOB": STARTED, "END": {"exit_code": 0}},
    ],
)
def test_a_job_whose_files_make_no_sense_costs_only_itself(tmp_path: Path, files: dict[str, Any]) -> None:
    broken, ended, held, unread = (digit * 32 for digit in "1234")
    put(tmp_path, broken, **files)
    put(tmp_path, ended, JOB=STARTED, END=asdict(Exit(ended, 3, None, None, 0.0, 0, 1.0)))
    put(tmp_path, held)
    put(tmp_path, unread)
    job_files.write(str(tmp_path / unread), job_files.RECORD, ["no record"])
    with closing(Cluster(tmp_path)) as cluster:
        exits = {one.job: one.exit for one in reclaim(cluster.table, cluster.ends, tmp_path)}
    assert set(exits) == {broken, ended, held}
    lost, left = exits[broken], exits[ended]
    assert lost is not None
    assert left is not None
    assert (lost.reason, left.exit_code, exits[held]) == ("agent_lost", 3, None)
    assert (tmp_path / unread / job_files.RECORD).exists(), "what cannot be read is not deleted"
