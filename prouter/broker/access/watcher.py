"""A thread that reads and writes keys and invitations on disk, so that the broker's loop never waits for a file."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from prouter.broker.access.gate import Rules, Settle
from prouter.config.errors import ConfigError
from prouter.key_pairs import KeyPair
from prouter.keys.accepted_keys import AcceptedKeys
from prouter.keys.invitation_book import BOOK, InvitationBook
from prouter.keys.invitations import Bound, Holder, Invitation, Refused
from prouter.keys.router_keys import finish_rotation, load_router_keys, rotation_stamp

__all__ = ["AccessWatcher"]

log = logging.getLogger("prouter.broker")

_INTERVAL = 0.5
"""Seconds between two looks at the files."""
_ANNOUNCED = 5.0
"""Seconds for which linked agents know the next key at least, before it is used."""
_AT_START = 60.0
"""The same for a router that finds at its start that it should use the next key: its agents have to link first."""

_AT_ONCE = 1000
"""Holders of invitations stored in one transaction."""

Change = Callable[[Rules, KeyPair, float], None]
"""Gets what the files say, the key pair to use, and the time now."""


class _Binding:
    """An agent that becomes a holder of an invitation."""

    def __init__(self, invitation: str, holder: Holder, settle: Settle) -> None:
        self.invitation = invitation
        self.holder = holder
        self.settle = settle


class AccessWatcher:
    """The files of access of one router, and the thread that looks after them.

    Args:
        state: the router's state directory.
        accept_keys: of ``server.accept_keys``.
        wake: called on the thread when `take_done` has something.

    Attributes:
        rules: what the files said at the start.
        pair: the key pair to use at the start.
        changed: among `take_done` when the files say something else.

    Raises:
        ConfigError: a file is damaged or cannot be read.
    """

    def __init__(self, state: Path, accept_keys: Path | None, *, encrypts: bool, wake: Callable[[], None]) -> None:
        self.changed: Change = _ignore
        self._state = state
        self._encrypts = encrypts
        self._wake = wake
        self._queue: queue.SimpleQueue[_Binding | None] = queue.SimpleQueue()
        # Written by this thread, and by the loop when an agent becomes a holder: `Invitation.holders` is shared.
        self._invitations: tuple[Invitation, ...] = ()
        self._done: deque[Callable[[float], None]] = deque()
        self._accepted = AcceptedKeys(accept_keys) if accept_keys is not None else None
        self._keys = load_router_keys(state)
        self._keys_stamp = rotation_stamp(state)
        self._switch_at = max(self._keys.switch_at, time.time() + _AT_START)
        self._book: InvitationBook | None = None
        self._book_stamp = (0, 0)
        self._book_version = 0
        self._failed = ""
        self._ending = False
        self._read_book()
        self.rules, self.pair = self._rules(), self._keys.current
        self._thread = threading.Thread(target=self._run, name="access", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def bind(self, invitation: str, holder: Holder, settle: Settle) -> None:
        """Store a holder of an invitation; `settle` is among `take_done` with the outcome (a `gate.Bind`)."""
        self._queue.put(_Binding(invitation, holder, settle))

    def take_done(self) -> list[Callable[[float], None]]:
        """What happened since, in order: to be called with the time now."""
        found: list[Callable[[float], None]] = []
        while self._done:
            found.append(self._done.popleft())
        return found

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        if self._book is not None:
            self._book.close()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = time.monotonic() + _INTERVAL
        while True:
            try:
                binding = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                self._look()
                due = time.monotonic() + _INTERVAL
                continue
            bindings = self._waiting(binding)
            if not bindings:
                return
            for one, outcome in zip(bindings, self._store(bindings), strict=True):
                self._tell(partial(one.settle, outcome))
            if self._ending:
                return

    def _tell(self, done: Callable[[float], None]) -> None:
        self._done.append(done)
        self._wake()

    def _waiting(self, first: _Binding | None) -> list[_Binding]:
        """The bindings that wait to be stored, not too many at once; notes that the thread is to end."""
        found: list[_Binding] = []
        following = first
        while True:
            if following is None:
                self._ending = True
                return found
            found.append(following)
            if len(found) >= _AT_ONCE or self._queue.empty():
                return found
            following = self._queue.get()

    def _store(self, bindings: list[_Binding]) -> list[Bound | Refused]:
        try:
            book = self._open_book()
            if book is None:
                return [Refused("the invitation was revoked") for _ in bindings]
            return book.bind_all([(binding.invitation, binding.holder) for binding in bindings])
        except ConfigError as error:
            log.error("event=invitations_not_stored agents=%d reason=%r", len(bindings), str(error))
            text = "the router cannot store who uses the invitation; see the router's log, then try again"
            return [Refused(text) for _ in bindings]

    def _look(self) -> None:
        """See whether a file has changed, and tell the loop."""
        try:
            changed = self._read_book()
            if self._accepted is not None:
                changed |= self._accepted.refresh()
            changed |= self._read_keys()
        except ConfigError as error:
            if str(error) != self._failed:
                self._failed = str(error)
                log.error("event=access_files_unreadable reason=%r", self._failed)
            return
        except Exception:
            log.exception("event=access_watch_failed")
            return
        self._failed = ""
        if changed:
            self._tell(partial(self._change, self._rules(), self._keys.current))

    def _change(self, rules: Rules, pair: KeyPair, now: float) -> None:
        self.changed(rules, pair, now)

    def _rules(self) -> Rules:
        accepted: Mapping[str, str] | None = self._accepted.keys if self._accepted is not None else None
        return Rules(self._invitations, accepted, self._keys.public if self._encrypts else ())

    def _read_book(self) -> bool:
        """Read the invitations if they have changed; whether they have."""
        book = self._open_book()
        if book is None:
            changed = bool(self._invitations)
            self._invitations = ()
            return changed
        version = book.version()
        if version == self._book_version:
            return False
        # Read after the version: what changes in between is read again the next time.
        self._invitations = tuple(book.all())
        self._book_version = version
        return True

    def _open_book(self) -> InvitationBook | None:
        """The database as it is now on disk; None when there is none."""
        path = self._state / BOOK
        try:
            info = path.stat()
        except FileNotFoundError:
            stamp = (0, 0)
        else:
            stamp = (info.st_dev, info.st_ino)
        if stamp != self._book_stamp:
            if self._book is not None:
                self._book.close()
            self._book, self._book_version = None, 0
            if stamp != (0, 0):
                self._book = InvitationBook(path)
            self._book_stamp = stamp
        return self._book

    def _read_keys(self) -> bool:
        """Read the router's keys if they have changed, and use the next one when its time has come."""
        keys, stamp = self._keys, rotation_stamp(self._state)
        if stamp != self._keys_stamp:
            keys = load_router_keys(self._state)
            self._keys_stamp = stamp
            self._switch_at = max(keys.switch_at, time.time() + _ANNOUNCED)
        if keys.next is not None and time.time() >= self._switch_at:
            keys = finish_rotation(self._state)
            self._keys_stamp = rotation_stamp(self._state)
            log.warning("event=router_key_changed key=%s", keys.current.public)
        elif keys.next is not None and keys != self._keys:
            log.info("event=router_key_announced next=%s", keys.next.public)
        changed, self._keys = keys != self._keys, keys
        return changed


def _ignore(rules: Rules, pair: KeyPair, now: float) -> None:
    """Nobody wants to know."""
