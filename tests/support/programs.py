"""Programs that tests call. tools/programs names them all, and they are installed from there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ["in_ci", "missing", "needed", "packages", "program"]

LIST = Path(__file__).parents[2] / "tools" / "programs"
_SBIN = "/usr/sbin:/sbin"
"""Directories that not everybody's PATH has."""


def packages(group: str) -> dict[str, str]:
    """Return the commands of a group in tools/programs, each with its Debian package."""
    lines = (line.split() for line in LIST.read_text().splitlines() if line and not line.startswith("#"))
    return {command: package for command, package, of in lines if of == group}


def program(command: str) -> str | None:
    """Where a listed command is; None if it is not installed.

    Raises:
        AssertionError: tools/programs does not list it for tests.
    """
    assert command in packages("test"), f"'{command}' is not listed in tools/programs: add it there"
    return shutil.which(command, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def missing(*commands: str) -> str:
    """Return which of these are not installed, as a reason; empty if none."""
    known = packages("test")
    return ", ".join(f"{name} (Debian package {known[name]})" for name in commands if program(name) is None)


def in_ci() -> bool:
    """Whether continuous integration runs the tests, where everything must be installed."""
    return os.environ.get("CI", "") not in ("", "0", "false")


def needed(*commands: str) -> pytest.MarkDecorator:
    """Mark a test that calls these programs: without them it is skipped on a developer's machine, and fails in CI."""
    reason = missing(*commands)
    return pytest.mark.skipif(bool(reason) and not in_ci(), reason=f"not installed: {reason}")
