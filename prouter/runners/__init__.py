"""Runners: the parts of an agent that start its jobs, on its own machine or in a cluster.

This is the public module for packages that add a runner (docs/runners.md); its names stay compatible. An entry point
names a `RunnerType`, `Runner` is the interface, and the other names are its arguments, results and errors.
`prouter.runners.local.SameMachine` helps runners whose jobs are processes of the agent's machine.
"""

from prouter.config.errors import ConfigError
from prouter.errors import (
    AgentUnavailable,
    Conflict,
    InvalidRequest,
    JobUnreachable,
    NoSpace,
    NotFound,
    PRouterError,
    StartFailed,
)
from prouter.jobs import Reason
from prouter.processes.users import User
from prouter.runners.capabilities import Capabilities
from prouter.runners.interface import (
    Exit,
    Kept,
    Limits,
    Queued,
    Reports,
    Runner,
    Spawned,
    SpawnSpec,
    Usage,
)
from prouter.runners.kinds import INTERFACE, Options, RunnerType, Setup, checked
from prouter.runners.sockets import Address, Listener, Sockets

__all__ = [
    "INTERFACE",
    "Address",
    "AgentUnavailable",
    "Capabilities",
    "ConfigError",
    "Conflict",
    "Exit",
    "InvalidRequest",
    "JobUnreachable",
    "Kept",
    "Limits",
    "Listener",
    "NoSpace",
    "NotFound",
    "Options",
    "PRouterError",
    "Queued",
    "Reason",
    "Reports",
    "Runner",
    "RunnerType",
    "Setup",
    "Sockets",
    "SpawnSpec",
    "Spawned",
    "StartFailed",
    "Usage",
    "User",
    "checked",
]
