"""The recipes in the table of docs/apps.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "Recipe", "recipes"]

PAGE = Path(__file__).parents[2] / "docs" / "apps.md"
_COLUMNS = 6


@dataclass(frozen=True)
class Recipe:
    """One line of the table.

    Attributes:
        name: the application, as in the table's first column.
        packages: what to install, by kind: ``pip``, ``npm`` or ``apt``.
        start: the body of the start, without ``name`` and ``agent``.
        modes: where it works: ``path`` (below the job's path), ``host`` (under a host name of its own).
    """

    name: str
    packages: dict[str, list[str]]
    start: dict[str, Any]
    modes: tuple[str, ...]

    @property
    def slug(self) -> str:
        """Name of the application's folder of samples and of its check: lower case, ``_`` for all but letters."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


def recipes() -> Iterator[Recipe]:
    """All lines of the table, in its order.

    Raises:
        ValueError: a line cannot be read; the text quotes it.
    """
    for line in PAGE.read_text().splitlines():
        if not re.match(r'\| .*`\{"args"', line):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != _COLUMNS:
            raise ValueError(f"{PAGE.name}: {len(cells)} cells instead of {_COLUMNS} in {line!r}")
        name, install, start, path, host, _ = cells
        modes = tuple(mode for mode, works in (("path", path), ("host", host)) if works == "yes")
        yield Recipe(name, _packages(install), json.loads(start.strip("`").replace("\\|", "|")), modes)


def _packages(cell: str) -> dict[str, list[str]]:
    """`pip a b`, `apt c` -> {"pip": ["a", "b"], "apt": ["c"]}."""
    found: dict[str, list[str]] = {}
    for command in re.findall(r"`([^`]+)`", cell):
        kind, *names = command.split()
        found.setdefault(kind, []).extend(names)
    return found
