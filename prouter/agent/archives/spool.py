"""Storage of an archive until it has arrived completely, for formats that are read from their end."""

from __future__ import annotations

import errno
import os
from typing import final

from prouter.agent.sandbox.paths import hidden_name, refusal, translated
from prouter.agent.sandbox.quota import Claim
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import NoSpace, TooLarge

__all__ = ["Spool"]

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_FLAGS = os.O_RDWR | os.O_CLOEXEC
_WHAT = b"the archive"


@final
class Spool:
    """A nameless file on the sandbox's file system; its bytes count for the sandbox's size limit.

    Args:
        limit: bytes the sandbox may hold; None for any number.
    """

    def __init__(self, sandbox: Sandbox, limit: int | None) -> None:
        self._claim = None if limit is None else Claim(sandbox.quota, limit, unseen=True)
        self._size = 0
        with translated(_WHAT, writing=True), sandbox.opened() as root:
            try:
                self.fd = os.open(b".", _FLAGS | os.O_TMPFILE, 0o600, dir_fd=root)
            except OSError as error:
                if error.errno not in _NO_TMPFILE:
                    raise
                name = hidden_name()
                self.fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root)
                os.unlink(name, dir_fd=root)

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            TooLarge: the sandbox is at its size limit.
            NoSpace: the disk is full.
        """
        self._size += len(data)
        if self._claim is not None:
            try:
                self._claim.cover(self._size)
            except NoSpace as error:
                raise TooLarge(f"the archive itself has to be stored to be unpacked: {error.detail}") from error
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self.fd, left) :]
        except OSError as error:
            raise refusal(error, _WHAT, writing=True) from error

    def rewind(self) -> int:
        """Return the descriptor, positioned at the beginning."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return self.fd

    def close(self) -> None:
        """Delete the file. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            if self._claim is not None:
                self._claim.release()
