"""Bounds of replies that hold a page of a list, and what they cost."""

from __future__ import annotations

from typing import Any

from prouter.errors import InvalidRequest

__all__ = ["PAGE_COST", "page_limit"]

PAGE_COST = 20
"""Frames that a page counts for in the budget of an event loop iteration (`Bounds.iteration`)."""
_PAGE = 250
"""Most jobs or events in one reply; more would delay all other work."""


def page_limit(args: dict[str, Any]) -> int:
    """Return how many entries a caller gets at most.

    Raises:
        InvalidRequest: its ``limit`` is not a number from 1 on.
    """
    limit = args.get("limit")
    if limit is None:
        return 100
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise InvalidRequest("Invalid request: limit must be a number from 1 on")
    return min(limit, _PAGE)
