"""The directory of public keys that may link (``server.accept_keys``), read again as it changes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from prouter.config.errors import ConfigError
from prouter.keys.files import PUBLIC, PublicKey, load_certificate

__all__ = ["AcceptedKeys"]

log = logging.getLogger("prouter.keys")

_SETTLED = 2_000_000_000
"""Nanoseconds after which a directory's modification time is trusted: two changes may get the same time."""
_WHOLE = 10
"""Looks after which every file is looked at, whatever the directory says: a file may be written over in place."""

_FRESH = 0.5
"""Seconds between two looks at the directory for `AcceptedKeys.current`: a flood of handshakes must not cause a scan
each."""
_Seen = tuple[int, int, int]
"""Modification time in nanoseconds, size and inode of a file."""


class AcceptedKeys:
    """The keys of the files ``*.key`` in a directory.

    A key whose file has ``uid = NAME`` in its metadata is good for the agent or router with this uid alone. A file that
    cannot be read or holds no key lets nobody in; it is logged once, until it changes.

    Attributes:
        keys: the uid that each public key is good for; empty for any. Another mapping whenever it changes.

    Args:
        directory: it must exist.

    Raises:
        ConfigError: it does not, or cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._changed_at = 0
        """When the directory was changed last, in nanoseconds, as far as the files were looked at."""
        self._looks = 0
        self._files: dict[str, tuple[_Seen, PublicKey | None]] = {}
        """By name, what was seen of the file and the key it holds."""
        self.keys: Mapping[str, str] = {}
        self._looked = time.monotonic()
        try:
            self._scan()
        except OSError as error:
            raise ConfigError(
                f"server.accept_keys: {directory} cannot be read: {error.strerror or error}; "
                "make the directory and put the public keys there that may link"
            ) from error

    def refresh(self) -> bool:
        """Read what has changed; return whether `keys` is another set now.

        A directory that cannot be read any more lets nobody in.
        """
        before = self.keys
        try:
            changed_at = self._directory.stat().st_mtime_ns
            self._looks += 1
            settled = changed_at == self._changed_at < time.time_ns() - _SETTLED
            if settled and self._looks % _WHOLE:
                return False
            self._scan()
            self._changed_at = changed_at
        except OSError as error:
            self._files, self.keys, self._changed_at = {}, {}, 0
            if before:
                log.error("event=accept_keys_unreadable directory=%s error=%r", self._directory, str(error))
        return self.keys != before

    def current(self) -> Mapping[str, str]:
        """Return the keys as the directory has them now, or had them within the last half second."""
        now = time.monotonic()
        if now - self._looked > _FRESH:
            self._looked = now
            self.refresh()
        return self.keys

    def _scan(self) -> None:
        found: dict[str, tuple[_Seen, PublicKey | None]] = {}
        changed = False
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if not entry.name.endswith(PUBLIC) or entry.name.startswith("."):
                    continue
                seen = _seen(entry)
                known = self._files.get(entry.name)
                if known is None or known[0] != seen:
                    known = (seen, self._load(entry.name))
                    changed = True
                found[entry.name] = known
        if changed or len(found) != len(self._files):
            self.keys = {key.public: key.uid for _, key in found.values() if key is not None}
        self._files = found

    def _load(self, name: str) -> PublicKey | None:
        try:
            return load_certificate(self._directory / name)
        except ConfigError as error:
            log.warning("event=key_ignored reason=%r", str(error))
            return None


def _seen(entry: os.DirEntry[str]) -> _Seen:
    try:
        info = entry.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (info.st_mtime_ns, info.st_size, info.st_ino)
