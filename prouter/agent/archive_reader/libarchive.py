"""The part of libarchive's reading interface that the archive reader uses, through ctypes.

Only formats and filters that libarchive decodes by itself are enabled: the filters lzop, lrzip and grzip start
programs, and the format mtree opens files of the machine that an archive names.

Source: archive_read(3), archive_entry(3) and their neighbours.
"""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Iterator
from typing import Any

__all__ = ["ArchiveError", "Library", "Member"]

_NAMES = ("libarchive.so.13", "libarchive.so")
_FORMATS = ["tar", "zip", "cpio", "7zip", "rar", "rar5", "cab", "lha", "xar", "iso9660", "ar", "warc", "empty"]
_FILTERS = ["gzip", "bzip2", "compress", "lzma", "xz", "lzip", "lz4", "zstd", "uu", "rpm"]
_EOF, _OK, _RETRY, _WARN, _FAILED = 1, 0, -10, -20, -25
_BLOCK = 1 << 16
_RETRIES = 1000

_handle, _text, _int, _int64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "archive_read_new": (_handle, []),
    "archive_read_open_fd": (_int, [_handle, _int, ctypes.c_size_t]),
    "archive_read_next_header": (_int, [_handle, ctypes.POINTER(_handle)]),
    "archive_read_data_block": (
        _int,
        [_handle, ctypes.POINTER(_handle), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(_int64)],
    ),
    "archive_error_string": (_text, [_handle]),
    "archive_version_string": (_text, []),
    "archive_format": (_int, [_handle]),
    "archive_entry_pathname": (_text, [_handle]),
    "archive_entry_filetype": (ctypes.c_uint, [_handle]),
    "archive_entry_perm": (ctypes.c_uint, [_handle]),
    "archive_entry_size": (_int64, [_handle]),
    "archive_entry_size_is_set": (_int, [_handle]),
    "archive_entry_mtime": (ctypes.c_longlong, [_handle]),
    "archive_entry_mtime_nsec": (ctypes.c_long, [_handle]),
    "archive_entry_mtime_is_set": (_int, [_handle]),
    "archive_entry_symlink": (_text, [_handle]),
    "archive_entry_hardlink": (_text, [_handle]),
}
_FORMAT_ZIP = 0x50000


class ArchiveError(Exception):
    """libarchive cannot continue; the text is libarchive's, and begins with the member's name where there is one."""


class Library:
    """The loaded library.

    Raises:
        OSError: it is not installed, or too old.
    """

    def __init__(self) -> None:
        self._library = self._load()
        try:
            for name, (result, arguments) in _FUNCTIONS.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except AttributeError as error:
            raise OSError(str(error)) from error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # tells the type checker that there are more

    @staticmethod
    def _load() -> ctypes.CDLL:
        for name in _NAMES[:-1]:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        return ctypes.CDLL(_NAMES[-1])

    def members(self, fd: int) -> Iterator[Member]:
        """Yield the members of the archive on descriptor `fd`; each is valid until the next.

        Raises:
            ArchiveError: it is not an archive, damaged, or of an unsupported kind.
        """
        archive = self.archive_read_new()
        if not archive:
            raise MemoryError
        for name in [f"archive_read_support_filter_{one}" for one in _FILTERS] + [
            f"archive_read_support_format_{one}" for one in _FORMATS
        ]:
            support = getattr(self._library, name, None)  # an older library has fewer
            if support is not None:
                support.restype, support.argtypes = _int, [_handle]
                support(archive)
        if self.archive_read_open_fd(archive, fd, _BLOCK) != _OK:
            raise ArchiveError(self.error(archive))
        entry, retries = _handle(), 0
        while (status := self.archive_read_next_header(archive, ctypes.byref(entry))) != _EOF:
            if status == _RETRY and retries < _RETRIES:
                retries += 1
            elif status in (_OK, _WARN):
                yield Member(self, archive, entry)
            else:
                raise ArchiveError(self.error(archive))
        if retries:
            raise ArchiveError("parts of it are damaged and were passed over")

    def error(self, archive: Any) -> str:
        """Return libarchive's text for its last error."""
        said: bytes | None = self.archive_error_string(archive)
        return (said or b"libarchive gives no reason").decode("utf-8", "backslashreplace").strip()


class Member:
    """The current member of an archive."""

    def __init__(self, library: Library, archive: Any, entry: Any) -> None:
        self._library = library
        self._archive = archive
        self._entry = entry
        self.name: bytes = library.archive_entry_pathname(entry) or b""

    @property
    def in_zip(self) -> bool:
        """Whether the archive is a zip."""
        return bool(self._library.archive_format(self._archive) == _FORMAT_ZIP)

    @property
    def type(self) -> int:
        """The type as in `stat.S_IFMT`; a file if the archive does not say."""
        return self._library.archive_entry_filetype(self._entry) or stat.S_IFREG

    @property
    def mode(self) -> int:
        """Permission bits."""
        return int(self._library.archive_entry_perm(self._entry)) & 0o777

    @property
    def size(self) -> int | None:
        """The size in bytes, if it is known."""
        known = self._library.archive_entry_size_is_set(self._entry)
        return int(self._library.archive_entry_size(self._entry)) if known else None

    @property
    def mtime_ns(self) -> int | None:
        """The time in nanoseconds since the epoch, if it is known and a file can have it."""
        library, entry = self._library, self._entry
        if not library.archive_entry_mtime_is_set(entry):
            return None
        ns = library.archive_entry_mtime(entry) * 1_000_000_000 + library.archive_entry_mtime_nsec(entry)
        return ns if -(1 << 63) <= ns < 1 << 63 else None

    @property
    def symlink(self) -> bytes:
        """The target of a symbolic link."""
        return self._library.archive_entry_symlink(self._entry) or b""

    @property
    def hardlink(self) -> bytes:
        """The member of which this one is another name; empty if it is none."""
        return self._library.archive_entry_hardlink(self._entry) or b""

    def blocks(self) -> Iterator[tuple[int, bytes, str]]:
        """Yield the contents: offset, bytes, and a warning about them, which only the last block has.

        Raises:
            ArchiveError: the contents are damaged.
        """
        library = self._library
        data, size, offset = _handle(), ctypes.c_size_t(), _int64()
        out = ctypes.byref(data), ctypes.byref(size), ctypes.byref(offset)
        while (status := library.archive_read_data_block(self._archive, *out)) != _EOF:
            if status not in (_OK, _WARN):
                raise ArchiveError(library.error(self._archive))
            taken = ctypes.string_at(data.value, size.value) if data.value and size.value else b""
            yield offset.value, taken, library.error(self._archive) if status == _WARN else ""
