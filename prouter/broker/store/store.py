"""The thread that writes the broker's state to SQLite, in batches.

The broker's memory is what counts; the store follows within milliseconds. While the database cannot be written, for
example because the disk is full, the router goes on and the thread tries again. A database that is damaged or deleted
while the router runs is replaced by a new one, to which the broker submits everything again.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from prouter.broker.store.database import connect, corrupt, identity, passing, set_aside, size

__all__ = ["Store"]

log = logging.getLogger("prouter.store")


_UNFIT = (OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
"""Errors for a value that no column can hold. The statement is dropped, because others wait behind it."""

_BATCH = 2000
_GATHER = 0.02
"""Seconds for which statements gather that nobody waits for. Else each would wake the thread, which stops the broker's
loop for a moment, and would be a transaction of its own."""
_RETRY = 1.0
_LOOK = 5.0
"""Seconds after which an idle thread checks that the database is still there."""
_RENEW = 60.0
"""Seconds between two new databases, in case the fault is not in the database."""
_BACKLOG = 200_000
"""Statements that are kept while the database cannot be written; beyond that the oldest are lost."""


class _Statement(NamedTuple):
    text: str
    parameters: tuple[Any, ...]
    done: Callable[[float], None] | None
    committed: Callable[[float], None] | None


class Store:
    """The writing thread.

    Args:
        path: of the database, which `open_store` has made and migrated.
        wake: called on the writing thread when `take_done` has callbacks.

    Attributes:
        on_renewed: among `take_done` when the database is a new one or misses statements. The broker then submits
            everything again.
        on_opened: among `take_done` when another database was opened that misses nothing.
    """

    def __init__(self, path: Path, wake: Callable[[], None]) -> None:
        self.failures = 0
        self.written = 0
        self.on_renewed: Callable[[float], None] = _nothing
        self.on_opened: Callable[[float], None] = _nothing
        self._path = path
        self._wake = wake
        self._queue: queue.SimpleQueue[_Statement | None] = queue.SimpleQueue()
        self._awaited = threading.Event()
        """Set when somebody waits for a statement."""
        self._done: deque[Callable[[float], None]] = deque()
        self._held = 0
        self._incomplete = False
        self._reopened = False
        self._renewed_at = -_RENEW
        self._opened: tuple[int, int] = (0, 0)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    @property
    def backlog(self) -> int:
        """Number of statements that are not written yet."""
        return self._queue.qsize() + self._held

    def submit(
        self,
        statement: str,
        *parameters: Any,
        done: Callable[[float], None] | None = None,
        committed: Callable[[float], None] | None = None,
    ) -> None:
        """Execute an SQL statement, in order; `done` and `committed` are among `take_done` once it is committed.

        While the database cannot be written, `done` is there all the same, because the router goes on without it.
        `committed` never is if the statement is lost or refused.
        """
        self._queue.put(_Statement(statement, parameters, done, committed))
        if done is not None:
            self.hurry()

    def hurry(self) -> None:
        """Commit what was submitted without waiting for more."""
        self._awaited.set()

    def take_done(self, most: int) -> list[Callable[[float], None]]:
        """Callbacks of committed statements, `most` at once; `wake` is called again for the others."""
        found: list[Callable[[float], None]] = []
        while self._done and len(found) < most:
            found.append(self._done.popleft())
        if self._done:
            self._wake()
        return found

    def close(self) -> None:
        """Write what is left, and end the thread."""
        self._queue.put(None)
        self.hurry()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        database: sqlite3.Connection | None = None
        waiting: deque[_Statement] = deque(maxlen=_BACKLOG)
        open_end = True
        while open_end or waiting:
            if not waiting:
                open_end = self._fetch(waiting, _LOOK)
            try:
                if database is None:
                    database = self._open()
                elif self._opened != identity(self._path):
                    raise sqlite3.DatabaseError("it was deleted or replaced while in use")
                self._write(database, waiting)
            except sqlite3.Error as error:
                self._failed(error, len(waiting))
                if database is not None:
                    database.close()
                    database = None
                if open_end and self._renew(error):
                    continue
                if not open_end:
                    log.error("event=store_incomplete path=%s lost=%d", self._path, len(waiting))
                    break
                open_end = self._hold(waiting)
        if database is not None:
            database.close()

    def _open(self) -> sqlite3.Connection:
        """Open the database; if there is none, make one, which misses everything.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        fresh = not size(self._path)
        database = connect(self._path, patience=0.5)
        self._opened = identity(self._path)
        self._incomplete |= fresh
        self._reopened = True
        return database

    def _renew(self, error: sqlite3.Error) -> bool:
        """Set the database aside if it is damaged or gone; return whether a new one is to be made."""
        if not self._damaged(error) or time.monotonic() < self._renewed_at + _RENEW:
            return False
        self._renewed_at = time.monotonic()
        try:
            set_aside(self._path, error, "a new one gets all that the router knows")
        except OSError as problem:
            log.error("event=database_not_set_aside path=%s error=%r", self._path, str(problem))
            return False
        return True

    def _damaged(self, error: sqlite3.Error) -> bool:
        if not isinstance(error, sqlite3.OperationalError):
            return True
        return not passing(error) or ("disk i/o error" in str(error).lower() and corrupt(self._path))

    def _fetch(self, waiting: deque[_Statement], patience: float | None) -> bool:
        """Wait for statements and take up to a batch of them; return False when the store is closed."""
        try:
            statement = self._queue.get(True, patience)
            if statement is not None:
                self._awaited.wait(_GATHER)
            self._awaited.clear()
            for _ in range(_BATCH):
                if statement is None:
                    return False
                waiting.append(statement)
                statement = self._queue.get(False)
        except queue.Empty:
            return True
        if statement is None:
            return False
        waiting.append(statement)
        return True

    def _write(self, database: sqlite3.Connection, waiting: deque[_Statement]) -> None:
        """Commit all statements that wait.

        Raises:
            sqlite3.Error: it failed, and nothing was changed.
        """
        if not (waiting or self._incomplete or self._reopened):
            return
        calls: list[Callable[[float], None]] = []
        with database:
            for text, parameters, done, committed in waiting:
                if done is not None:
                    calls.append(done)
                try:
                    database.execute(text, parameters)
                    if committed is not None:
                        calls.append(committed)
                except _UNFIT as error:
                    self.failures += 1
                    log.error("event=statement_refused statement=%r error=%r", text, str(error))
        self.written += len(waiting)
        waiting.clear()
        self._held = 0
        if self._incomplete:
            calls.append(self.on_renewed)
        elif self._reopened:
            calls.append(self.on_opened)
        self._incomplete = self._reopened = False
        self._call_back(calls)

    def _failed(self, error: sqlite3.Error, count: int) -> None:
        self.failures += 1
        if self.failures == 1 or self.failures % 60 == 0:
            log.error("event=store_failed path=%s error=%r waiting=%d", self._path, str(error), count)

    def _hold(self, waiting: deque[_Statement]) -> bool:
        """Call back for statements that cannot be written, until it is time to try again.

        Returns:
            False when the store is closed.
        """
        again = time.monotonic() + _RETRY
        fresh = waiting.copy()
        waiting.clear()
        open_end = True
        while True:
            self._call_back(statement.done for statement in fresh if statement.done is not None)
            self._incomplete |= len(waiting) + len(fresh) > _BACKLOG
            waiting.extend(statement._replace(done=None) for statement in fresh)
            self._held = len(waiting)
            patience = again - time.monotonic()
            if not open_end or patience <= 0:
                return open_end
            fresh.clear()
            open_end = self._fetch(fresh, patience)

    def _call_back(self, calls: Iterable[Callable[[float], None]]) -> None:
        found = list(calls)
        if found:
            self._done.extend(found)
            self._wake()


def _nothing(_now: float) -> None:
    """The default of `Store.on_renewed`."""
