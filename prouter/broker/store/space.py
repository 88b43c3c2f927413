"""Disk space that large rows have left unused in the database."""

from __future__ import annotations

import sqlite3

__all__ = ["give_back"]

_EMPTY_BYTES = 64 << 20
"""Unused bytes in the file from which on it is compacted, after large rows were shortened."""


def give_back(database: sqlite3.Connection) -> None:
    """Compact the file if large rows have left much of it unused."""
    free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
    if free * size > _EMPTY_BYTES:
        database.execute("VACUUM")
