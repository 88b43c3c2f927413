"""Archives for tests: made with Python's own modules, packed and unpacked by ours, and compared."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

from prouter.agent.archives import Unpacked, Unpacker, pack
from prouter.agent.sandbox.sandbox import Sandbox

__all__ = ["Unseekable", "make_tar", "make_zip", "packed", "special", "tree", "unpack"]


def unpack(sandbox: Sandbox, archive: bytes, step: int = 65_536, **options: object) -> Unpacked:
    """Unpack an archive in pieces of `step` bytes."""
    with Unpacker(sandbox, **options) as unpacker:  # type: ignore[arg-type]
        for start in range(0, len(archive), step):
            unpacker.feed(archive[start : start + step])
        return unpacker.finish()


def packed(sandbox: Sandbox, archive_format: str = "tar", **options: object) -> bytes:
    """Pack a sandbox into bytes."""
    return b"".join(pack(sandbox, archive_format=archive_format, **options))  # type: ignore[arg-type]


def make_tar(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Make a tar of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tuple):
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
            else:
                tar.addfile(member)
    return out.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


def tree(root: Path, grain: int = 1) -> dict[bytes, tuple[object, ...]]:
    """Everything below a directory: kind, mode, time to `grain` nanoseconds, contents or target."""
    found: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, names in os.walk(os.fsencode(root)):
        for name in folders + names:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            contents: object = None
            if kind == stat.S_IFLNK:
                contents = os.readlink(path)
            elif kind == stat.S_IFREG:
                contents = Path(os.fsdecode(path)).read_bytes()
            mode = None if kind == stat.S_IFLNK else stat.S_IMODE(info.st_mode)
            found[os.path.relpath(path, os.fsencode(root))] = (kind, mode, info.st_mtime_ns // grain, contents)
    return found


class Unseekable(io.BytesIO):
    """A file that can only be written on: zipfile then puts sizes after the data."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise OSError

    def seek(self, *_: object) -> int:
        raise OSError


def make_zip(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, seekable: bool = True) -> bytes:
    """Make a zip; if it cannot be `seekable`, sizes come after the data."""
    out = io.BytesIO() if seekable else Unseekable()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()
