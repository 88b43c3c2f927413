"""What `prouter doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check", "Level", "error", "ok", "warning"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing, a word.
        level: ``ok``, ``warning`` or ``error``.
        text: what was found.
        todo: what to do about it, or None.
    """

    name: str
    level: Level
    text: str
    todo: str | None = None


def ok(name: str, text: str) -> Check:
    """Return that a thing is as it should be."""
    return Check(name, "ok", text)


def warning(name: str, text: str, todo: str) -> Check:
    """Return what may do harm."""
    return Check(name, "warning", text, todo)


def error(name: str, text: str, todo: str) -> Check:
    """Return what does not work."""
    return Check(name, "error", text, todo)
