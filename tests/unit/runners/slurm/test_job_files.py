"""The files by which agent and nodes agree who has a job."""

from __future__ import annotations

from pathlib import Path

from prouter.runners.slurm.node import job_files

NODE = {job_files.NODE: "n1", "number": "7", "by": "abc"}
AGENT = {"agent": "12345678"}


def test_the_first_claim_holds(tmp_path: Path) -> None:
    assert job_files.claim(str(tmp_path), NODE) is None
    assert job_files.claim(str(tmp_path), AGENT) == NODE


def test_a_claim_that_is_being_written_is_a_nodes(tmp_path: Path) -> None:
    (tmp_path / job_files.CLAIM).touch()
    before = job_files.claim(str(tmp_path), AGENT)
    assert before is not None
    assert before[job_files.NODE]


def test_a_node_withdraws_its_own_claim_alone(tmp_path: Path) -> None:
    job_files.claim(str(tmp_path), NODE)
    job_files.write(str(tmp_path), job_files.STARTING, {"at": 0.0, "by": "other"})
    job_files.withdraw(str(tmp_path), {**NODE, "by": "other"})
    assert job_files.read(str(tmp_path), job_files.CLAIM) == NODE
    assert job_files.read(str(tmp_path), job_files.STARTING) is None
    job_files.withdraw(str(tmp_path), NODE)
    assert job_files.read(str(tmp_path), job_files.CLAIM) is None
