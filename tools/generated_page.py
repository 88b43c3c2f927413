"""Pages of the documentation, or parts of them, that are written from code: what the tools that make them share."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["between", "write_or_check"]


def between(text: str, opening: str, closing: str, lines: Iterable[str]) -> str:
    """Return a page whose part between two marks is these lines.

    Raises:
        ValueError: the page lacks a mark.
    """
    start = text.index(opening)
    end = text.index(closing, start)
    return "\n".join([text[:start] + opening, "", *lines, text[end:]])


def write_or_check(page: Path, text: str) -> int:
    """Write a page; with ``--check`` on the command line say only whether it has this text already.

    Returns:
        The exit status: 1 if the page was to be checked, and is not up to date.
    """
    if "--check" not in sys.argv[1:]:
        page.write_text(text)
        return 0
    if page.exists() and page.read_text() == text:
        return 0
    print(f"{page} is not up to date: run python -m tools.{Path(sys.argv[0]).stem}", file=sys.stderr)
    return 1
