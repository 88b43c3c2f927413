"""A job's sandbox in memory, which answers the client's requests for files and archives."""

from __future__ import annotations

import fnmatch
import io
import json
import tarfile
from urllib.parse import parse_qs, unquote, urlsplit

from prouter.client.core.flow import Lost, Request
from tests.support.flow_player import Answer, body_of

__all__ = ["JOB", "SandboxModel"]

JOB = "/jobs/c/j"


class SandboxModel:
    """Files and directories by path.

    Attributes:
        files: contents and modification time of each file.
        links: targets.
        directories: their paths.
        modes: permission bits of files that were unpacked.
        arriving: for each upload of an archive, how many of its members arrive before it is cut.
        unpacked: names of all files that were unpacked.
        cuts: for each request, how many bytes of the answer arrive before it is cut; -1 cuts the request itself.
    """

    def __init__(self, cuts: list[int | None] | None = None) -> None:
        self.files: dict[str, tuple[bytes, float]] = {}
        self.links: dict[str, tuple[str, float]] = {}
        self.directories: set[str] = set()
        self.cuts = iter(cuts or [])
        self.arriving = iter(list[int]())
        self.unpacked: list[str] = []
        self.modes: dict[str, int] = {}
        self.version = 0

    def __call__(self, request: Request) -> Answer | Lost:
        cut = next(self.cuts, None)
        if cut == -1:
            return Lost("reset", sent=False)
        answer = self._answer(request)
        if cut is None or isinstance(answer, Lost):
            return answer
        whole = b"".join(piece for piece in answer.pieces if isinstance(piece, bytes))
        return Answer(answer.status, answer.headers, (whole[: cut % (len(whole) + 1)], Lost("reset")))

    def _answer(self, request: Request) -> Answer | Lost:
        url = urlsplit(request.path)
        kind, _, rest = url.path.removeprefix(f"{JOB}/").partition("/")
        path = unquote(rest, errors="surrogateescape")
        query = parse_qs(url.query)
        if kind == "archive":
            if request.method == "PUT":
                return self._unpack(path, body_of(request))
            return self._pack(path, query.get("exclude", []))
        if request.method == "PUT":
            if "directory" in query:
                self.directories.add(path)
            else:
                self.put(path, body_of(request), 0.0)
            return Answer(201)
        if request.method == "DELETE":
            return self._delete(path)
        return self._get(path, request)

    def put(self, path: str, data: bytes, mtime: float) -> None:
        """Write a file."""
        self.version += 1
        self.files[path] = (data, mtime)
        self.links.pop(path, None)
        self._parents(path)

    def _parents(self, path: str) -> None:
        self.directories |= {path[:at] for at, letter in enumerate(path) if letter == "/"}

    def _delete(self, path: str) -> Answer:
        for known in (self.files, self.links):
            for name in [name for name in known if name == path or name.startswith(f"{path}/")]:
                del known[name]
        self.directories = {name for name in self.directories if name != path and not name.startswith(f"{path}/")}
        return Answer(204)

    def _get(self, path: str, request: Request) -> Answer:
        if path in self.files:
            return self._file(path, request)
        if path and path not in self.directories:
            return Answer(404, {"x-prouter-error": "not_found"}, (b'{"code": "not_found"}',))
        entries = [("file", name, len(data), mtime) for name, (data, mtime) in self.files.items()]
        entries += [("link", name, len(target), mtime) for name, (target, mtime) in self.links.items()]
        entries += [("dir", name, 0, 0.0) for name in self.directories]
        shown = [
            {
                "name": name.rpartition("/")[2],
                "type": kind,
                "size": size,
                "mtime": mtime,
                "mode": self.modes.get(name, 0o644),
            }
            for kind, name, size, mtime in entries
            if name.rpartition("/")[0] == path
        ]
        return Answer(200, {}, (json.dumps({"path": path, "entries": shown}).encode(),))

    def _file(self, path: str, request: Request) -> Answer:
        data = self.files[path][0]
        etag = f'"{self.version}"'
        if request.headers.get("If-Match", etag) != etag:
            return Answer(412, {"x-prouter-error": "precondition_failed"}, (b'{"code": "precondition_failed"}',))
        headers = {"etag": etag, "content-length": str(len(data))}
        if request.method == "HEAD":
            return Answer(200, headers)
        first, dash, last = request.headers.get("Range", "bytes=").removeprefix("bytes=").partition("-")
        if not dash:
            return Answer(200, headers, (data,))
        part = data[int(first) : int(last) + 1 if last else None]
        return Answer(206, {**headers, "content-range": f"bytes {first}-x/{len(data)}"}, (part,))

    def _pack(self, path: str, exclude: list[str]) -> Answer:
        target = io.BytesIO()
        prefix = f"{path}/" if path else ""
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, (data, mtime) in self.files.items():
                masked = any(fnmatch.fnmatchcase(name.removeprefix(prefix), mask) for mask in exclude)
                if name.startswith(prefix) and not masked:
                    info = tarfile.TarInfo(name.removeprefix(prefix))
                    info.size, info.mtime = len(data), mtime
                    archive.addfile(info, io.BytesIO(data))
        return Answer(200, {"content-length": str(len(target.getvalue()))}, (target.getvalue(),))

    def _unpack(self, path: str, data: bytes) -> Answer | Lost:
        most = next(self.arriving, None)
        prefix = f"{path}/" if path else ""
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for count, member in enumerate(archive):
                if count == most:
                    return Lost("reset")
                name = prefix + member.name
                if member.isdir():
                    self.directories.add(name)
                elif member.issym():
                    self.links[name] = (member.linkname, member.mtime)
                else:
                    self.unpacked.append(name)
                    self.modes[name] = member.mode
                    self.put(name, archive.extractfile(member).read(), member.mtime)  # type: ignore[union-attr]
        return Answer(200)
