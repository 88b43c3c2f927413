"""Typed configuration of router and agent: defaults < file < environment < ``--set``.

Every key is a field of a model, with its description; a wrong key or value is refused with its name, where it came
from and the nearest valid key. Keys are dotted: ``control.port`` is ``control: {port: …}`` or ``control.port: …`` in
YAML and ``PROUTER_CONTROL__PORT`` in the environment.
"""

from __future__ import annotations

from prouter.config.errors import ConfigError
from prouter.config.exposure import check_exposure, is_loopback, uses_curve
from prouter.config.loading import load_agent, load_router
from prouter.config.models import SECRET_KEYS, AgentConfig, Log, RouterConfig, Section, keys, sections

__all__ = [
    "SECRET_KEYS",
    "AgentConfig",
    "ConfigError",
    "Log",
    "RouterConfig",
    "Section",
    "check_exposure",
    "is_loopback",
    "keys",
    "load_agent",
    "load_router",
    "sections",
    "uses_curve",
]
