"""What Slurm tells a job on its node: the node's name, and variables."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["environment", "node_name"]

_SHELLS = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME", "ENVIRONMENT", "TMPDIR"})
"""Variables that shells and slurmd set for the batch script itself."""


def node_name() -> str:
    """The node's name in Slurm."""
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def environment(job: dict[str, Any]) -> dict[str, str]:
    """The job's variables: those of its request, and what Slurm and its plugins set for jobs on this node.

    Slurm's own win, because others of that name are those of another job, in which the agent runs.
    """
    given = _SHELLS.union(job["given"])
    own = {name: value for name, value in os.environ.items() if name not in given}
    slurm = {name: value for name, value in own.items() if name.startswith("SLURM")}
    return {**own, **job["spec"]["env"], **slurm}
