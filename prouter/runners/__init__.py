"""Runners: the places where an agent's jobs run, on its own machine or in a cluster.

This is the public module for packages that add a runner (docs/runners.md); its names stay compatible. `RunnerType` is
what the entry point names, `Runner` the interface, and the rest what goes through it.
"""

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
from prouter.runners.kinds import Options, RunnerType, Setup
from prouter.runners.sockets import Address, Listener, Sockets

__all__ = [
    "Address",
    "Capabilities",
    "Exit",
    "Kept",
    "Limits",
    "Listener",
    "Options",
    "Queued",
    "Reports",
    "Runner",
    "RunnerType",
    "Setup",
    "Sockets",
    "SpawnSpec",
    "Spawned",
    "Usage",
]
