"""Pages of lists of jobs, and the cursors from one to the next."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from prouter.broker.jobs.entry import Entry
from prouter.broker.jobs.stored_history import Key
from prouter.broker.jobs.table import JobTable
from prouter.errors import InvalidRequest, Overloaded
from prouter.jobs import State

__all__ = ["cursor_after", "list_page"]

_STORED = frozenset({State.FINISHED.value, State.CLOSED.value})
"""States of jobs that are read from the database."""


def list_page(
    table: JobTable,
    *,
    states: Collection[str] = (),
    agent: str | None = None,
    name: str | None = None,
    owner: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> tuple[list[Entry], str | None]:
    """A page of jobs, the newest first, and the cursor of the next page, None at the end.

    Removed jobs (state CLOSED) are listed only if `states` has that one.

    Raises:
        InvalidRequest: the cursor is not one that this function or `cursor_after` gave.
        Overloaded: the database cannot be read.
    """
    before = None if cursor is None else _read_cursor(cursor)
    found: list[Entry] = []
    with closing(table.newest(states, owner, agent, name, before)) as jobs:
        for entry in jobs:
            if len(found) == limit:
                return found, cursor_after(found[-1]) if found else None
            found.append(entry)
    if not (table.history.readable or _STORED.isdisjoint(states or _STORED)):
        raise Overloaded("the router cannot read its history of jobs", retry_after=1)
    return found, None


def cursor_after(entry: Entry) -> str:
    """The cursor of a page that begins after this job."""
    return "{}-{}".format(*entry.place)


def _read_cursor(cursor: str) -> Key:
    created, dash, uid = cursor.partition("-")
    if not dash or not created.isascii() or not created.isdigit() or len(created) > 20:
        raise InvalidRequest("Invalid request: the cursor is not one that this router gave")
    return int(created), uid
