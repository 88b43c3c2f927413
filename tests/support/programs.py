"""Programs that tests call: all are named in tools/programs, by which they are installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

__all__ = ["in_ci", "missing", "needed", "packages", "program"]

LIST = Path(__file__).parents[2] / "tools" / "programs"
_SBIN = "/usr/sbin:/sbin"
"""Not everybody's PATH has it."""


def packages(group: str) -> dict[str, str]:
    """Debian packages by the command they bring, of a group in tools/programs."""
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
    """Which of these are not installed, as a reason; empty if none."""
    known = packages("test")
    return ", ".join(f"{name} (Debian package {known[name]})" for name in commands if program(name) is None)


def in_ci() -> bool:
    """Whether continuous integration runs the tests: what tests need has to be there."""
    return os.environ.get("CI", "") not in ("", "0", "false")


def needed(*commands: str) -> pytest.MarkDecorator:
    """A mark for tests that call these: without them, they are skipped on a developer's machine and fail in CI."""
    reason = missing(*commands)
    return pytest.mark.skipif(bool(reason) and not in_ci(), reason=f"not installed: {reason}")
