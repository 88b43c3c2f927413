"""Configuration keys whose values are secrets. A module of its own, because the bare command line needs it, too."""

from __future__ import annotations

__all__ = ["SECRET_KEYS"]

SECRET_KEYS = frozenset({"server.accept_tokens", "client.token", "control.tokens"})
"""Keys whose values are never shown or logged."""
