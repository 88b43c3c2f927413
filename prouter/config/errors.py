"""The error that a wrong configuration raises."""

from __future__ import annotations

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """The configuration is wrong; the text names the key, the place where it was set, and what would be right."""
