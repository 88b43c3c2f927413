"""What the batch script runs: it makes sure that the job is started once, starts the keeper, then serves the job."""

from __future__ import annotations

import os
import secrets

from prouter.runners.slurm.node import job_files
from prouter.runners.slurm.node.keeper_start import begin
from prouter.runners.slurm.node.notes import note
from prouter.runners.slurm.node.state_directory import remove_left, state_directory
from prouter.runners.slurm.node.surroundings import node_name

__all__ = ["main"]

_NOT_STARTED = 3
"""Exit code of a batch script that must not start the job."""


def main(directory: str) -> int:
    """Run the job of this directory; return the exit code for Slurm: the job's own, or 128 and its signal's number."""
    job = job_files.read(directory, job_files.JOB)
    if job is None:
        note("the agent has taken the job back")
        return _NOT_STARTED
    mine = {job_files.NODE: node_name(), "number": os.environ.get("SLURM_JOB_ID"), "by": secrets.token_hex(8)}
    before = job_files.claim(directory, mine)
    if before is not None:
        note(f"the job is not started again: {before}")
        return _NOT_STARTED
    with state_directory(job["spec"]["job"]) as state_dir:
        keeper = begin(state_dir)
        from prouter.runners.slurm.node.serving import serve  # Late: it is imported while the keeper starts.

        remove_left(os.path.dirname(state_dir))
        return serve(directory, {**job, "claim": mine}, state_dir, keeper)
