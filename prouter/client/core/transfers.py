"""Flows that move files and directories: upload, download, sync."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Sequence
from functools import partial

from prouter.client.core.errors import NotFound, PreconditionFailed, RouterError, from_response
from prouter.client.core.files import Download, delete, head, make_directory, read_file, walk, write_file
from prouter.client.core.flow import Flow, Lost, Request, now, read, send, sleep, work
from prouter.client.core.models import Entry, Synced, Transferred
from prouter.client.core.packing import Member, file_body, scan, sha256, tar_body
from prouter.client.core.paths import encoded, is_directory_name, joined, query
from prouter.client.core.progress import Counter, Progress
from prouter.client.core.retries import Attempts, Context, opened
from prouter.client.core.unpacking import PartFile, Unpacker

__all__ = ["MANIFEST", "download", "sync", "upload"]

MANIFEST = ".prouter-sync.json"
"""File in a synced directory that has the hashes of what was sent."""
_AGENTS = ".pagent.*"
"""Files of the agent at the root of a sandbox: copies of the job's logs, which `Job.logs` reads."""
_TAR = {"Content-Type": "application/x-tar"}
_MASKS = 6000
"""Bytes of a URL for the names of files that have arrived: some proxies take no URLs of more than 8 KiB."""
_LETTERS = re.compile(r"[\[*?]")
"""Letters that mean something in masks."""
_SAME = 2e-6
"""Seconds by which two modification times may differ: the API tells them as floating point numbers."""


def upload(
    context: Context,
    job: str,
    local: str | os.PathLike[str],
    remote: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Flow[Transferred]:
    """Upload a file, or the contents of a directory as one archive.

    Raises:
        OSError: something local cannot be read.
        RouterError: the router or its agent refused it.
    """
    source = os.path.abspath(os.fspath(local))
    found = yield from work(partial(os.stat, source))
    if not os.path.isdir(source):
        if not os.path.isfile(source):
            raise OSError(f"'{source}' is neither a file nor a directory")
        target = joined(remote, os.path.basename(source)) if is_directory_name(remote) else remote
        body = file_body(source, found.st_size, progress)
        yield from write_file(context, job, target, body, mode=found.st_mode & 0o777)
        return Transferred(files=1, bytes=found.st_size)
    members, skipped = yield from work(partial(scan, source, include, exclude))
    if not is_directory_name(remote) or encoded(remote):
        yield from make_directory(context, job, remote)
    yield from _send_archive(context, job, remote, members, progress)
    files = [one for one in members if _counts(one)]
    return Transferred(files=len(files), bytes=sum(one.size for one in files), skipped=tuple(skipped))


def _archive_url(job: str, remote: str) -> str:
    path = encoded(remote)
    return f"{job}/archive/{path}" if path else f"{job}/archive"


def _send_archive(
    context: Context, job: str, remote: str, members: Sequence[Member], progress: Progress | None
) -> Flow[None]:
    """Send members as one archive. After a loss, send those that did not arrive, as one archive."""
    attempts = Attempts(context, context.retry_for)
    left = list(members)
    while True:
        body = yield from work(partial(tar_body, left, progress))
        try:
            response = yield from send(Request("PUT", _archive_url(job, remote), _TAR, body))
        except Lost as lost:
            yield from sleep(attempts.after_loss(lost, (yield from now()), safe=True))
            there = yield from _remote(context, job, remote)
            missing = [one for one in left if _differs(one, there.get(one.name), {}, {})]
            if len(missing) < len(left):
                attempts.progressed()
            left = missing
            if not left:
                return
            continue
        context.reached = True
        if response.status < 300:
            return
        error = from_response(response.status, response.headers, response.content)
        yield from sleep(attempts.after_error(error, (yield from now()), safe=True))


def download(
    context: Context,
    job: str,
    remote: str,
    local: str | os.PathLike[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Flow[Transferred]:
    """Download a file, or the contents of a directory as one archive.

    Raises:
        NotFound: there is no such file.
        OSError: something local cannot be written.
        RouterError: the router or its agent refused it.
    """
    target = os.fspath(local)
    if encoded(remote) and "etag" in (yield from head(context, job, remote)).headers:
        name = remote.rstrip("/").rpartition("/")[2]
        if target.endswith(("/", os.sep)):
            yield from work(partial(os.makedirs, target, exist_ok=True))
        path = os.path.join(target, name) if os.path.isdir(target) else target
        return (yield from _download_file(context, job, remote, os.path.abspath(path), progress))
    own = () if encoded(remote) or include else (_AGENTS,)
    chosen = _Chosen(_archive_url(job, remote), include, [*exclude, *own])
    return (yield from _download_archive(context, chosen, os.path.abspath(target), progress))


def _download_file(context: Context, job: str, remote: str, path: str, progress: Progress | None) -> Flow[Transferred]:
    received = Download(job, remote)
    attempts = Attempts(context, context.retry_for)
    count = Counter(progress, None)
    part = PartFile(path)
    done = False
    try:
        yield from work(part.open)
        while True:
            try:
                response = yield from opened(context, received.request(), attempts)
                if received.begin(response):
                    yield from work(part.empty)
                count.restart(received.position, received.size)
                while piece := (yield from read()):
                    yield from work(partial(part.write, piece))
                    received.position += len(piece)
                    attempts.progressed()
                    count(len(piece))
                received.check()
                break
            except PreconditionFailed as error:
                received.restart(error)
                yield from work(part.empty)
            except Lost as lost:
                if received.complete:
                    break
                yield from sleep(attempts.after_loss(lost, (yield from now()), safe=True))
        yield from work(partial(part.finish, received.mode))
        done = True
    finally:
        if not done:
            part.abort()
    return Transferred(files=1, bytes=received.position)


class _Chosen:
    """What a download of a directory asks for.

    Attributes:
        complete: size of each file that has arrived, by name.
    """

    def __init__(self, url: str, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._url = url
        self._include = include
        self._exclude = exclude
        self.complete: dict[str, int] = {}

    def request(self) -> Request:
        """Return the request for what has not arrived; of many small files it asks for some again."""
        masks: list[str] = []
        left = _MASKS
        for name in sorted(self.complete, key=self.complete.__getitem__, reverse=True):
            mask = _LETTERS.sub(r"[\g<0>]", name)
            left -= 3 * len(os.fsencode(mask)) + len("&exclude=")
            if left < 0:
                break
            masks.append(mask)
        return Request("GET", self._url + query(include=self._include, exclude=[*self._exclude, *masks]))


def _download_archive(context: Context, chosen: _Chosen, root: str, progress: Progress | None) -> Flow[Transferred]:
    attempts = Attempts(context, context.retry_for)
    count = Counter(progress, None)
    while True:
        unpacker: Unpacker | None = None
        try:
            response = yield from opened(context, chosen.request(), attempts)
            size = response.headers.get("content-length", "")
            count.restart(0, int(size) if size.isdigit() else None)
            unpacker = yield from work(partial(Unpacker, root))
            while piece := (yield from read()):
                yield from work(partial(unpacker.feed, piece))
                count(len(piece))
            yield from work(unpacker.finish)
            complete = {**chosen.complete, **unpacker.complete}
            total = sum(complete.values())
            return Transferred(files=len(complete), bytes=total, skipped=tuple(unpacker.skipped))
        except Lost as lost:
            if unpacker is not None and unpacker.complete.keys() - chosen.complete.keys():
                chosen.complete.update(unpacker.complete)
                attempts.progressed()
            yield from sleep(attempts.after_loss(lost, (yield from now()), safe=True))
        finally:
            if unpacker is not None:
                unpacker.abort()


def sync(
    context: Context,
    job: str,
    local: str | os.PathLike[str],
    remote: str,
    *,
    hashes: bool = False,
    remove: bool = False,
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Flow[Synced]:
    """Make a directory in the sandbox like a local one; send only files that differ, as one archive.

    Raises:
        OSError: something local cannot be read.
        RouterError: the router or its agent refused it.
    """
    source = os.path.abspath(os.fspath(local))
    members, _ = yield from work(partial(scan, source, (), [*exclude, MANIFEST]))
    there = yield from _remote(context, job, remote)
    known = (yield from _manifest(context, job, remote)) if hashes else {}
    digests = (yield from work(partial(_digests, members))) if hashes else {}
    sending = [one for one in members if _differs(one, there.get(one.name), digests, known)]
    deleted = _superfluous(members, there, exclude) if remove else []
    for name in deleted:
        yield from delete(context, job, joined(remote, name), recursive=True)
    if sending:
        if encoded(remote):
            yield from make_directory(context, job, remote)
        yield from _send_archive(context, job, remote, sending, progress)
    if hashes:
        content = json.dumps(_new_manifest(members, sending, there, digests)).encode()
        yield from write_file(context, job, joined(remote, MANIFEST), content)
    sent = [one for one in sending if _counts(one)]
    kept = sum(map(_counts, members)) - len(sent)
    total = sum(one.size for one in sent)
    return Synced(sent=tuple(one.name for one in sent), deleted=tuple(deleted), kept=kept, bytes=total)


def _remote(context: Context, job: str, remote: str) -> Flow[dict[str, Entry]]:
    """Return what is in the sandbox's directory, by the name below it."""
    try:
        entries = yield from walk(context, job, remote)
    except NotFound as error:
        if error.code != "not_found" or not encoded(remote):
            raise
        return {}
    prefix = len(joined(remote, "")) if encoded(remote) else 0
    return {entry.path[prefix:]: entry for entry in entries}


_Manifest = dict[str, list[object]]
"""For each file and link: hash of its contents, size and modification time in the sandbox after it was sent."""


def _manifest(context: Context, job: str, remote: str) -> Flow[_Manifest]:
    try:
        known = json.loads((yield from read_file(context, job, joined(remote, MANIFEST), 0, None)))
    except (NotFound, ValueError):
        return {}
    except RouterError as error:
        if error.code != "is_directory":
            raise
        return {}
    return known if isinstance(known, dict) else {}


def _digests(members: Sequence[Member]) -> dict[str, str]:
    return {one.name: sha256(one.source) if one.is_file else f"link {one.target}" for one in members if _counts(one)}


def _counts(member: Member) -> bool:
    """Whether a member is a file or a link."""
    return not member.is_directory


def _differs(local: Member, there: Entry | None, digests: dict[str, str], known: _Manifest) -> bool:
    if there is None:
        return True
    if local.is_directory:
        return there.type != "dir"
    if local.is_file and there.mode != local.mode & 0o777:
        return True
    if there.type != ("file" if local.target is None else "link") or there.size != _size(local):
        return True
    if not digests:
        return not _same_time(there.mtime, local.mtime_ns / 1e9)
    digest, size, mtime = [*known.get(local.name, []), None, None, None][:3]
    return digest != digests[local.name] or size != there.size or not _same_time(there.mtime, mtime)


def _same_time(one: float, other: object) -> bool:
    return isinstance(other, (int, float)) and abs(one - other) <= _SAME


def _new_manifest(
    members: Sequence[Member], sending: Sequence[Member], there: dict[str, Entry], digests: dict[str, str]
) -> _Manifest:
    sent = {one.name for one in sending}
    return {
        one.name: [
            digests[one.name],
            *((_size(one), one.mtime_ns / 1e9) if one.name in sent else _known(there[one.name])),
        ]
        for one in members
        if _counts(one)
    }


def _size(member: Member) -> int:
    """Return the size that a listing tells: a link's is that of its target's name."""
    return member.size if member.target is None else len(os.fsencode(member.target))


def _known(entry: Entry) -> tuple[int, float]:
    return entry.size, entry.mtime


def _superfluous(members: Sequence[Member], there: dict[str, Entry], exclude: Sequence[str]) -> list[str]:
    """Return what is only in the sandbox, or is a directory at one end alone: the uppermost names.

    The agent's own files and excluded ones are not among them.
    """
    names = {one.name for one in members if one.name in there and one.is_directory == (there[one.name].type == "dir")}
    found: list[str] = []
    for name in sorted(there, key=os.fsencode):
        own = name == MANIFEST or name.partition("/")[0].startswith(".pagent.")
        below = any(name.startswith(f"{one}/") for one in found)
        if name not in names and not own and not below and not _excluded(name, there, exclude):
            found.append(name)
    return found


def _excluded(name: str, there: dict[str, Entry], exclude: Sequence[str]) -> bool:
    """Whether a name, something above it or something below it is excluded."""
    above = [name[:at] for at, letter in enumerate(name) if letter == "/"]
    below = [other for other in there if other.startswith(f"{name}/")]
    return any(fnmatch.fnmatchcase(one, mask) for one in (name, *above, *below) for mask in exclude)
