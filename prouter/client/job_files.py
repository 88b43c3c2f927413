"""A job's files, for programs that block."""

from __future__ import annotations

from collections.abc import Sequence

from prouter.client.core import files, transfers
from prouter.client.core.models import Entry, JobInfo, Synced, Transferred
from prouter.client.core.progress import Progress
from prouter.client.core.uploads import Local
from prouter.client.sync_driver import SyncDriver

__all__ = ["JobFiles"]


class JobFiles:
    """What `Job` does with the files in a job's sandbox."""

    _driver: SyncDriver
    latest: JobInfo

    def upload(
        self,
        local: Local,
        remote: str = ".",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Transferred:
        """Upload a file, or the contents of a directory as one archive.

        Args:
            remote: for a file its name in the sandbox, or a directory if it is ``.`` or ends with a slash; for a
                directory the one that gets its contents.
            include: masks (fnmatch) of whole relative paths to send; all by default.
            exclude: masks of what not to send; they win.
            progress: called with the bytes sent so far and in all.

        Raises:
            OSError: something local cannot be read.
        """
        flow = transfers.upload(
            self._driver.context, self.latest.path, local, remote, include=include, exclude=exclude, progress=progress
        )
        return self._driver.run(flow)

    def download(
        self,
        remote: str,
        local: Local = ".",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Transferred:
        """Download a file, or the contents of a directory as one archive. A file appears once it is complete.

        Args:
            local: for a file its new name, or a directory that exists or ends with a slash; for a directory the one
                that gets its contents.
            include: masks (fnmatch) of whole relative paths to receive; all by default.
            exclude: masks of what not to receive; they win.
            progress: called with the bytes received so far, and in all or None.

        Raises:
            NotFound: there is no such file.
            OSError: something local cannot be written.
        """
        flow = transfers.download(
            self._driver.context, self.latest.path, remote, local, include=include, exclude=exclude, progress=progress
        )
        return self._driver.run(flow)

    def sync(
        self,
        local: Local,
        remote: str = ".",
        *,
        hash: bool = False,  # noqa: A002 (the word that users look for)
        delete: bool = False,
        exclude: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Synced:
        """Send what differs of a local directory, as one archive.

        A file is the same if its size, modification time and permission bits are. With `hash` its contents count
        instead of the local time; a file ``.prouter-sync.json`` in the sandbox then remembers what was sent.

        Args:
            delete: delete what only the sandbox has.
            exclude: masks (fnmatch) of whole relative paths that are neither sent nor deleted.

        Raises:
            OSError: something local cannot be read.
        """
        flow = transfers.sync(
            self._driver.context,
            self.latest.path,
            local,
            remote,
            hashes=hash,
            remove=delete,
            exclude=exclude,
            progress=progress,
        )
        return self._driver.run(flow)

    def files(self, path: str = ".", *, recursive: bool = False) -> list[Entry]:
        """Return the entries of a directory, with `recursive` of those below it, too. Links are not followed."""
        flow = (files.walk if recursive else files.listing)(self._driver.context, self.latest.path, path)
        return self._driver.run(flow)

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the contents of a file: up to `length` bytes from `offset` on, or all."""
        return self._driver.run(files.read_file(self._driver.context, self.latest.path, path, offset, length))

    def write(self, path: str, data: bytes | str, *, mode: int | None = None, new: bool = False) -> None:
        """Write a file, whole or not at all; directories above it are made. Text is encoded as UTF-8.

        Args:
            mode: permission bits, 0o644 by default.
            new: fail (`PreconditionFailed`) if the file exists.
        """
        content = data.encode() if isinstance(data, str) else bytes(data)
        flow = files.write_file(self._driver.context, self.latest.path, path, content, mode=mode, new=new)
        self._driver.run(flow)

    def mkdir(self, path: str) -> None:
        """Make a directory, and those above it, unless it is there."""
        self._driver.run(files.make_directory(self._driver.context, self.latest.path, path))

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file, a link or an empty directory; with `recursive` a whole tree."""
        self._driver.run(files.delete(self._driver.context, self.latest.path, path, recursive=recursive))
