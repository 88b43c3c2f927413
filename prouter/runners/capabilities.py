"""What a runner can do."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Capabilities"]


@dataclass(frozen=True)
class Capabilities:
    """What a runner can do. The agent refuses requests and settings that need more, and says so.

    Attributes:
        same_machine: jobs are processes of the agent's machine, in its namespaces of processes and of the network.
            If not, the sandboxes have to be in a directory that the machines share (``jobs.root`` is required), the
            runner tells a job where to report its ports, and ports and unix sockets are those of the job's machine.
        users: jobs can run as other users than the agent (`SpawnSpec.user`).
        limits: names of the fields of `Limits` that it enforces; the agent itself enforces time and sandbox size.
        reserves: names of the resources that it reserves for a job by itself, elsewhere than on the agent's machine.
            Then processors and memory of the agent's machine bound nothing, and what a job asked for at its creation
            counts for its start, unless that says something else.
        queues: a start may wait in a queue (`Queued`).
        outlives_agent: jobs run on when the agent stops or dies, whatever ``jobs.keep_for`` says.
        forwards_output: output can go to the agent's own stdout and stderr.
    """

    same_machine: bool = False
    users: bool = False
    limits: frozenset[str] = frozenset()
    reserves: frozenset[str] = frozenset()
    queues: bool = False
    outlives_agent: bool = False
    forwards_output: bool = False
