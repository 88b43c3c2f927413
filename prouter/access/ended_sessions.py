"""Sessions that were ended before their time, on disk: their cookies would be valid otherwise."""

from __future__ import annotations

from pathlib import Path

from prouter.access.list_file import ListFile, Seen

__all__ = ["ENDED", "EndedSessions"]

ENDED = "ended-sessions.json"
"""Name of the file in the router's state directory."""
_ADVICE = "restore it from a backup, or remove it together with signing.key, which ends all sessions"
_MOST = 50_000
"""Ended sessions kept, the newest."""


class EndedSessions:
    """The file of a router's ended sessions.

    Args:
        directory: the router's state directory.

    Raises:
        ConfigError: by every method: the file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._file = ListFile(directory / ENDED, "sessions", _ADVICE)

    def seen(self) -> Seen | None:
        """Return what changes with the file's content; None if there is no file."""
        return self._file.seen()

    def all(self) -> frozenset[str]:
        """Return the ids of all sessions that were ended."""
        try:
            return frozenset(str(entry["id"]) for entry in self._file.read())
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged(error) from error

    def end(self, session: str, *, expires: float, now: float) -> None:
        """End a session.

        Args:
            expires: when its cookie stops being valid by itself, in seconds since the epoch.
        """
        with self._file.locked():
            known = [entry for entry in self._file.read() if float(entry["expires"]) > now and entry["id"] != session]
            self._file.write([*known[-_MOST:], {"id": session, "expires": expires}])
