"""What a wrong configuration raises."""

from __future__ import annotations

__all__ = ["ConfigError"]


class ConfigError(ValueError):
    """The configuration is wrong; the text says which key, where it came from, and what would be right."""
