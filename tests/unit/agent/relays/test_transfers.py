"""Streams to a sandbox: files, archives and logs as a worker sees them, on real directories."""

from __future__ import annotations

import bz2
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.lock import BoundedSemaphore

from prouter.agent.logs.job_log import JobLog
from prouter.agent.relays import archives
from prouter.agent.relays.archives import ARCHIVE_KINDS
from prouter.agent.relays.files import FILE_KINDS
from prouter.agent.relays.logs import LogNews, LogStreams
from prouter.agent.relays.transfers import Transfers
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import InvalidRequest, IsDirectory, NoSpace, NotFound, Overloaded, PRouterError, RangeNotSatisfiable
from prouter.fabric.mux import DEFAULT_WINDOW
from prouter.jobs import JobRecord, Reason, State
from prouter.transport.stream_io import StreamIO, StreamReset
from tests.support.loopback import Loopback, wait_for

MIB = 1024 * 1024


class OneJob:
    """A job manager with one job, as far as transfers use one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.box = Sandbox(root)
        self.box.create()
        self.state = JobRecord("j1", "c1", "job", State.RUNNING)
        self.limit: int | None = None
        self._logs = {name: JobLog(self.box, name) for name in ("stdout", "stderr")}

    def record(self, uid: str) -> JobRecord:
        if uid != "j1":
            raise NotFound(f"job '{uid}' is not found")
        return self.state

    def sandbox(self, uid: str) -> Sandbox:
        return self.box

    def log(self, uid: str, name: str) -> JobLog:
        if name not in self._logs:
            raise InvalidRequest(f"no log {name}")
        return self._logs[name]

    def sandbox_limit(self, uid: str) -> int | None:
        return self.limit

    def end(self) -> None:
        self.state = replace(self.state, state=State.FINISHED, reason=Reason.EXITED, exit_code=0)


class Place:
    """An agent's transfers, and a worker that opens streams to them."""

    def __init__(self, root: Path) -> None:
        self.job = OneJob(root)
        self.news = LogNews()
        kinds = {**FILE_KINDS, **ARCHIVE_KINDS, "log": LogStreams(self.news).send}
        self.transfers = Transfers(self.job, kinds, 2)
        self.loopback = Loopback(self.transfers.open)

    def open(self, kind: str, **target: Any) -> StreamIO:
        return StreamIO(self.loopback.open({"kind": kind, "job": "j1", **target}))

    def read(self, kind: str, **target: Any) -> tuple[dict[str, Any], bytes]:
        stream = self.open(kind, **target)
        stream.close()
        preface = stream.read_preface()
        return preface, b"".join(iter(stream.read, b""))

    def write(self, kind: str, data: bytes, **target: Any) -> dict[str, Any]:
        stream = self.open(kind, **target)
        stream.write_all(data)
        stream.close()
        stream.read_preface()
        result = stream.read_preface()
        assert stream.read() == b""
        return result

    def is_clean(self) -> bool:
        return len(self.transfers) == 0 and self.loopback.open_streams == 0

    def log(self, data: bytes) -> None:
        with (self.job.root / ".pagent.stdout").open("ab") as file:
            file.write(data)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with gevent.Timeout(20):
        made = Place(tmp_path / "sandbox")
        yield made
        wait_for(made.is_clean)
        made.news.close()
        made.transfers.close()


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1024, 64 * 1024, 3 * MIB + 5])
@pytest.mark.parametrize("known", [True, False])
def test_what_was_uploaded_is_downloaded(place: Place, size: int, known: bool) -> None:
    data = os.urandom(size)
    result = place.write("file.write", data, path=b"a/b \xff", size=size if known else None, executable=True)
    assert result["size"] == size
    preface, got = place.read("file.read", path=b"a/b \xff")
    assert got == data
    assert (preface["size"], preface["offset"], preface["length"]) == (size, 0, size)
    assert preface["etag"] == result["etag"]
    assert preface["mode"] & 0o111 == 0o111


def test_a_part_of_a_file_is_read(place: Place) -> None:
    (place.job.root / "f").write_bytes(b"0123456789")
    assert place.read("file.read", path=b"f", offset=2, length=3)[1] == b"234"
    assert place.read("file.read", path=b"f", offset=8, length=99)[0]["length"] == 2
    assert place.read("file.read", path=b"f", offset=10)[1] == b""
    with pytest.raises(RangeNotSatisfiable):
        place.read("file.read", path=b"f", offset=11)


def test_a_file_is_removed_only_after_its_last_byte_was_consumed(place: Place) -> None:
    path = place.job.root / "f"
    path.write_bytes(b"x" * 3 * MIB)
    stream = place.open("file.read", path=b"f", remove=True)
    stream.read_preface()
    assert len(stream.read_exactly(3 * MIB)) == 3 * MIB
    gevent.idle()
    assert path.exists()
    stream.close()
    wait_for(lambda: not path.exists())


def test_who_has_the_last_byte_finds_the_file_gone(place: Place) -> None:
    path = place.job.root / "f"
    path.write_bytes(b"x" * 10)
    stream = place.open("file.read", path=b"f", remove=True)
    stream.read_preface()
    assert stream.read_exactly(10)
    others = [place.open("file.stat", path=b"f"), place.open("file.list", path=b"")]
    stream.close()
    with pytest.raises(NotFound):
        others[0].read_preface()
    others[1].read_preface()
    assert b'"f"' not in b"".join(iter(others[1].read, b""))
    assert stream.read() == b""
    for other in others:
        other.close()


def test_a_reader_that_is_slow_to_take_its_last_byte_holds_nobody_up_for_long(place: Place) -> None:
    (place.job.root / "f").write_bytes(b"x" * 10)
    stream = place.open("file.read", path=b"f", remove=True)
    stream.read_preface()
    assert place.read("file.stat", path=b"f")[0]["size"] == 10
    stream.reset("client_gone")
    assert (place.job.root / "f").exists()


def test_a_reader_that_ended_its_side_before_removes_too(place: Place) -> None:
    (place.job.root / "f").write_bytes(b"x" * 3 * MIB)
    stream = place.open("file.read", path=b"f", remove=True)
    stream.close()
    stream.read_preface()
    stream.read_exactly(MIB)
    gevent.idle()
    assert (place.job.root / "f").exists()
    stream.read_exactly(2 * MIB)
    assert stream.read() == b""
    wait_for(lambda: not (place.job.root / "f").exists())


def test_a_download_that_breaks_removes_nothing(place: Place) -> None:
    path = place.job.root / "f"
    path.write_bytes(b"x" * 3 * MIB)
    stream = place.open("file.read", path=b"f", remove=True)
    stream.read_exactly(MIB)
    stream.reset("client_gone")
    wait_for(place.is_clean)
    assert path.exists()


@pytest.mark.parametrize("size", [10, None])
def test_an_upload_that_is_reset_leaves_nothing(place: Place, size: int | None) -> None:
    stream = place.open("file.write", path=b"new/f", size=size)
    stream.write_all(b"half")
    stream.read_preface()
    stream.reset("upload_aborted")
    wait_for(place.is_clean)
    assert not any(file.is_file() for file in place.job.root.rglob("*"))


def test_an_upload_that_ends_early_is_refused(place: Place) -> None:
    for body in (b"half", b"h" * MIB):
        with pytest.raises(InvalidRequest, match="ended after") as caught:
            place.write("file.write", body, path=b"f", size=2 * MIB if len(body) > 4 else 10)
        assert caught.value.code == "truncated"
        assert not (place.job.root / "f").exists()


def test_an_upload_over_the_sandbox_limit_says_so_while_bytes_still_come(place: Place) -> None:
    place.job.limit = MIB
    stream = place.open("file.write", path=b"f", size=None)
    stream.read_preface()
    writer = gevent.spawn(stream.write_all, b"x" * 5 * MIB)
    with pytest.raises(NoSpace):
        stream.read_preface()
    writer.get()
    stream.close()
    wait_for(place.is_clean)
    assert not (place.job.root / "f").exists()


def test_directories_are_made_listed_and_deleted(place: Place) -> None:
    assert place.read("file.mkdir", path=b"d/e")[0]["created"] is True
    assert place.read("file.mkdir", path=b"d/e")[0]["created"] is False
    for number in range(600):
        (place.job.root / "d" / f"{number:03}").touch()
    preface, body = place.read("file.list", path=b"d")
    assert preface["ok"]
    names = [json.loads(line)["name"] for line in body.splitlines()]
    assert names == [*(f"{number:03}" for number in range(600)), "e"]
    assert place.read("file.stat", path=b"d")[0]["type"] == "dir"
    with pytest.raises(PRouterError):
        place.read("file.delete", path=b"d")
    place.read("file.delete", path=b"d", recursive=True)
    assert not (place.job.root / "d").exists()


@pytest.mark.parametrize(
    ("kind", "target", "error"),
    [
        ("file.read", {"path": b"nix"}, NotFound),
        ("file.read", {"path": b"."}, PRouterError),
        ("file.read", {"path": b"dir"}, IsDirectory),
        ("file.read", {"path": b"../etc/passwd"}, PRouterError),
        ("file.read", {"path": "text"}, InvalidRequest),
        ("file.read", {"path": b"f", "offset": -1}, InvalidRequest),
        ("file.list", {"path": b"nix"}, NotFound),
        ("file.write", {"path": b"dir", "size": None}, PRouterError),
        ("archive.read", {"format": "rar"}, InvalidRequest),
        ("archive.read", {"include": [1]}, InvalidRequest),
        ("log", {"name": "stdin"}, InvalidRequest),
        ("log", {"name": "stdout", "offset": 5}, RangeNotSatisfiable),
        ("log", {"name": "stdout", "offset": 0, "tail": 1}, InvalidRequest),
        ("file.stat", {"path": b"f", "job": "nix"}, NotFound),
    ],
)
def test_what_cannot_be_done_is_an_error_in_the_preface(
    place: Place, kind: str, target: dict[str, Any], error: type[PRouterError]
) -> None:
    (place.job.root / "dir").mkdir()
    with pytest.raises(error):
        place.read(kind, **target)


def test_an_unknown_kind_is_reset(place: Place) -> None:
    with pytest.raises(StreamReset) as caught:
        place.read("teleport")
    assert caught.value.code == "unknown_kind"


# -- archives ---------------------------------------------------------------------------------------------------------


def test_a_tree_survives_packing_and_unpacking(place: Place) -> None:
    for number in range(50):
        path = place.job.root / "from" / str(number % 7) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 1000))
    preface, archive = place.read("archive.read", path=b"from", format="tar")
    assert preface["size"] == len(archive)
    result = place.write("archive.write", archive, path=b"to")
    assert result["files"] == 50
    there = {file.relative_to(place.job.root / "from"): file.read_bytes() for file in files_of(place, "from")}
    back = {file.relative_to(place.job.root / "to"): file.read_bytes() for file in files_of(place, "to")}
    assert there == back


def files_of(place: Place, name: str) -> list[Path]:
    return [file for file in (place.job.root / name).rglob("*") if file.is_file()]


def test_masks_choose_what_is_packed(place: Place) -> None:
    for name in ("a.txt", "b.txt", "c.dat"):
        (place.job.root / name).touch()
    _, archive = place.read("archive.read", include=["*.txt"], exclude=["b*"], format="tar.gz")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["a.txt"]


@pytest.mark.parametrize("body", [b"this is no archive at all" * 100, b""])
def test_what_is_no_archive_is_refused(place: Place, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        place.write("archive.write", body)


def test_archives_wait_for_one_of_the_processes_that_read_them_and_then_are_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = BoundedSemaphore(1)
    monkeypatch.setattr(archives, "_READERS", places)
    monkeypatch.setattr(archives, "_READER_WAIT", 0.05)
    archive = bz2.compress(os.urandom(2000))
    with places, pytest.raises(Overloaded, match="already"):
        place.write("archive.write", archive)
    with pytest.raises(InvalidRequest, match="Unrecognized"):
        place.write("archive.write", archive)
    assert places.counter == 1


# -- logs -------------------------------------------------------------------------------------------------------------


def test_a_log_is_read_from_an_offset_or_its_last_lines(place: Place) -> None:
    place.log(b"one\ntwo\nthree\n")
    assert place.read("log", name="stdout") == ({"ok": True, "offset": 0, "size": 14}, b"one\ntwo\nthree\n")
    assert place.read("log", name="stdout", offset=4)[1] == b"two\nthree\n"
    assert place.read("log", name="stdout", tail=1) == ({"ok": True, "offset": 8, "size": 14}, b"three\n")
    assert place.read("log", name="stderr") == ({"ok": True, "offset": 0, "size": 0}, b"")


def test_followers_get_every_byte_and_the_end(place: Place) -> None:
    streams = [place.open("log", name="stdout", follow=True) for _ in range(100)]
    for stream in streams:
        stream.close()
        assert stream.read_preface()["offset"] == 0
    readers = [gevent.spawn(lambda one: b"".join(iter(one.read, b"")), stream) for stream in streams]
    place.news.job_changed(place.job.state)
    for number in range(20):
        place.log(b"line %d\n" % number)
        place.news.job_changed(place.job.state)
        gevent.sleep(0.001)
    place.job.end()
    place.news.job_changed(place.job.state)
    wanted = b"".join(b"line %d\n" % number for number in range(20))
    assert {reader.get() for reader in readers} == {wanted}


@pytest.mark.parametrize("first", [b"", b"first "])
def test_a_follower_sees_what_is_written_without_news_of_the_job(place: Place, first: bytes) -> None:
    place.log(first)
    stream = place.open("log", name="stdout", follow=True)
    stream.read_preface()
    assert stream.read_exactly(len(first)) == first
    gevent.idle()
    place.log(b"second")
    assert stream.read_exactly(6) == b"second"
    stream.reset("client_gone")


def test_a_follower_that_goes_away_is_let_go_at_once(place: Place) -> None:
    place.log(b"first ")
    stream = place.open("log", name="stdout", follow=True)
    stream.read_preface()
    assert len(place.transfers) == 1
    stream.reset("client_gone")
    wait_for(lambda: len(place.transfers) == 0)


def test_a_cut_log_begins_with_the_line_that_says_so(place: Place) -> None:
    lines = b"".join(b"%07d\n" % number for number in range(50_000))
    place.log(lines)
    place.job.log("j1", "stdout").enforce_limit(100_000)
    preface, body = place.read("log", name="stdout", offset=8)
    marker, kept = body.split(b"\n", 1)
    assert b"dropped" in marker
    assert lines.endswith(kept)
    assert preface["offset"] + len(body) == len(lines)


def test_a_log_cut_under_a_slow_reader_is_resumed_by_position(place: Place) -> None:
    lines = b"".join(b"%07d\n" % number for number in range(400_000))
    place.log(lines)
    stream = place.open("log", name="stdout", follow=True)
    stream.close()
    stream.read_preface()
    wait_for(lambda: stream.buffered >= DEFAULT_WINDOW - 64 * 1024)
    place.job.log("j1", "stdout").enforce_limit(100_000)
    got = stream.read_exactly(stream.buffered)
    with pytest.raises(StreamReset) as caught:
        got += stream.read_exactly(len(lines))
    assert caught.value.code == "overloaded"
    assert lines.startswith(got)
    preface, rest = place.read("log", name="stdout", offset=len(got))
    assert b"dropped" in rest.split(b"\n", 1)[0]
    assert lines.endswith(rest.split(b"\n", 1)[1])
    assert preface["offset"] + len(rest) == len(lines)
