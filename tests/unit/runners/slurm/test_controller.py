"""Calls of Slurm's commands that do not end in time."""

from __future__ import annotations

import pytest

from prouter.errors import AgentUnavailable
from prouter.runners.slurm.controller import Controller


def test_what_a_command_said_before_its_time_was_over_is_told() -> None:
    """sbatch says so and goes on trying when Slurm has as many jobs as it may have."""
    controller = Controller(timeout=1.0)
    waits = "echo 'sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying' >&2; exec sleep 100"
    try:
        with pytest.raises(AgentUnavailable) as caught:
            controller.change(["sh", "-c", waits])
    finally:
        controller.close()
    assert caught.value.detail == (
        "Slurm's controller does not answer sh: Slurm temporarily unable to accept job, sleeping and retrying; "
        "socket timed out: no answer within 1 s"
    )
