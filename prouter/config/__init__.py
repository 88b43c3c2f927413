"""Typed configuration of router and agent.

Values come from the defaults, a YAML file, the environment and ``--set``; a later source overrides an earlier one.
Every key is a field of a model, with its description. A wrong key or value is refused; the error names the key, the
place where it was set, and what would be right. Keys are dotted: ``control.port`` is ``control: {port: …}`` or
``control.port: …`` in YAML, and ``PROUTER_CONTROL__PORT`` in the environment.
"""

from __future__ import annotations

from prouter.config.agent import AgentConfig
from prouter.config.errors import ConfigError
from prouter.config.exposure import check_exposure, is_loopback, uses_curve
from prouter.config.loading import load_agent, load_router
from prouter.config.router import RouterConfig
from prouter.config.section import Log, Section, keys, sections
from prouter.secret_keys import SECRET_KEYS

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
