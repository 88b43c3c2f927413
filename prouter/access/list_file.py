"""A list of entries in one JSON file of the state directory, which the command line and all workers read and write."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prouter.config.errors import ConfigError
from prouter.keys.files import write_private

__all__ = ["Entry", "ListFile", "Seen"]

Entry = dict[str, Any]
Seen = tuple[int, int, int]
"""Modification time in nanoseconds, size and inode."""

_VERSION = 1
_LARGEST = 8 * 1024 * 1024
"""Bytes of a file."""


class ListFile:
    """One such file. It is replaced as a whole, so that no reader sees half of it.

    Args:
        path: of the file, which need not exist.
        name: what the entries are called, in the file and in errors.
        advice: what to do about a damaged file.

    Raises:
        ConfigError: by every method: the file cannot be used.
    """

    def __init__(self, path: Path, name: str, advice: str) -> None:
        self.path = path
        self._name = name
        self._advice = advice

    def seen(self) -> Seen | None:
        """Return what changes with the file's content; None if there is no file."""
        try:
            info = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror or error}") from error
        return info.st_mtime_ns, info.st_size, info.st_ino

    def read(self) -> list[Entry]:
        """Return all entries; none without a file."""
        try:
            with self.path.open("rb") as file:
                data = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror or error}") from error
        try:
            if len(data) > _LARGEST:
                raise ValueError("it is too large")
            document = json.loads(data)
            if document["version"] != _VERSION:
                raise ValueError(f"it is of version {document['version']!r}")
            entries: list[Entry] = [dict(entry) for entry in document[self._name]]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self.damaged(error) from error
        return entries

    def write(self, entries: list[Entry]) -> None:
        """Replace the file; to be called within `locked`."""
        write_private(self.path, json.dumps({"version": _VERSION, self._name: entries}, indent=1) + "\n")

    def damaged(self, error: Exception) -> ConfigError:
        """Return the error for a file that holds something else."""
        return ConfigError(
            f"{self.path} is no file of {self._name} of this version of prouter ({type(error).__name__}); "
            f"{self._advice}"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing: of two at the same time, one would lose its change."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{lock} cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
