"""Code blocks of the documentation, for tests that run them as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Block", "blocks", "environment", "run_shell"]

_BLOCK = re.compile(r"^(?:<!-- ([^\n]+) -->\n\n)?```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block.

    Attributes:
        mark: the comment above it, which says where it runs; empty if there is none.
        language: as the page says.
        text: its lines.
    """

    mark: str
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in these languages."""
    found = [Block(*match) for match in _BLOCK.findall(page.read_text())]
    return [block for block in found if block.language in languages]


def environment(url: str, **more: str) -> dict[str, str]:
    """Return the environment of a reader who has installed pRouter and whose router is at `url`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROUTER_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return {**kept, "PATH": path, "PROUTER_URL": url, "NO_COLOR": "1", **more}


def run_shell(text: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run lines as a careful shell does: it ends with the first one that fails."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
