"""Files of a sandbox: reading, listing, deleting, and uploads that happen whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from prouter.agent.sandbox import files
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.uploads import Upload, Uploaded
from prouter.errors import Conflict, Forbidden, InvalidRequest, IsDirectory, NoSpace, NotFound, PRouterError


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    made = Sandbox(tmp_path / "one")
    made.create()
    return made


def upload(sandbox: Sandbox, path: bytes, data: bytes, **options: object) -> Uploaded:
    with Upload(sandbox, path, **options) as writing:  # type: ignore[arg-type]
        writing.write(data)
        return writing.commit()


def read(sandbox: Sandbox, path: bytes) -> bytes:
    with files.open_read(sandbox, path) as handle:
        return b"".join(handle.chunks())


def names(sandbox: Sandbox, path: bytes = b"") -> list[str]:
    return [entry.name for entry in files.list_directory(sandbox, path)]


def test_what_was_uploaded_is_read_back(sandbox: Sandbox) -> None:
    data = os.urandom(3_000_000)
    done = upload(sandbox, b"some/new/place/file.bin", data, size=len(data))
    assert (done.size, done.created) == (len(data), True)
    with files.open_read(sandbox, b"some/new/place/file.bin") as handle:
        assert handle.size == len(data)
        assert handle.etag == done.etag
        assert handle.etag.startswith('"')
        assert b"".join(handle.chunks(n=70_000)) == data
        assert handle.read_chunk(2_999_990, 100) == data[-10:]
        assert handle.read_chunk(3_000_000, 1) == b""
        assert b"".join(handle.chunks(10, 20)) == data[10:20]


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, 0o644),
        ({"executable": True}, 0o755),
        ({"mode": 0o600}, 0o600),
        ({"mode": 0o600, "executable": True}, 0o711),
    ],
)
def test_modes_are_as_asked_whatever_the_umask(sandbox: Sandbox, options: dict[str, object], mode: int) -> None:
    upload(sandbox, b"file", b"", **options)
    assert stat.S_IMODE((sandbox.root / "file").stat().st_mode) == mode


def test_a_mode_beyond_permission_bits_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidRequest):
        Upload(sandbox, b"file", mode=0o4755)


def test_every_upload_has_its_own_etag(sandbox: Sandbox) -> None:
    etags = {upload(sandbox, b"file", b"same size", sync=False).etag for _ in range(200)}
    assert len(etags) == 200


def test_an_upload_replaces_the_file_only_when_it_is_committed(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"old")
    with Upload(sandbox, b"file") as writing:
        writing.write(b"half")
        assert read(sandbox, b"file") == b"old"
        assert names(sandbox) == ["file"]
    assert read(sandbox, b"file") == b"old"
    assert upload(sandbox, b"file", b"new").created is False
    assert read(sandbox, b"file") == b"new"
    assert names(sandbox) == ["file"]


def test_who_reads_while_the_file_is_replaced_reads_the_old_one_whole(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"old" * 1000)
    with files.open_read(sandbox, b"file") as handle:
        upload(sandbox, b"file", b"new")
        assert b"".join(handle.chunks(n=10)) == b"old" * 1000


def test_an_upload_that_is_cut_changes_nothing(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"old")
    with Upload(sandbox, b"file", size=10) as writing:
        writing.write(b"half")
        with pytest.raises(InvalidRequest, match="4 of 10"):
            writing.commit()
    assert read(sandbox, b"file") == b"old"
    assert names(sandbox) == ["file"]


def test_more_bytes_than_announced_are_refused(sandbox: Sandbox) -> None:
    with Upload(sandbox, b"file", size=3) as writing, pytest.raises(InvalidRequest):
        writing.write(b"four")
    assert names(sandbox) == []


def test_the_killed_agent_leaves_nothing(sandbox: Sandbox) -> None:
    code = (
        "import sys, signal\nfrom prouter.agent.sandbox.sandbox import Sandbox\n"
        "from prouter.agent.sandbox.uploads import Upload\n"
        "upload = Upload(Sandbox(sys.argv[1]), b'dir/file')\nupload.write(b'half')\n"
        "print('half', flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(sandbox.root)], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"half\n"
        agent.send_signal(signal.SIGKILL)
    assert names(sandbox, b"dir") == []


def test_an_exclusive_upload_replaces_nothing(sandbox: Sandbox) -> None:
    with Upload(sandbox, b"file", exclusive=True) as first, Upload(sandbox, b"file", exclusive=True) as second:
        first.write(b"first")
        first.commit()
        second.write(b"second")
        with pytest.raises(Conflict):
            second.commit()
    with pytest.raises(Conflict):
        Upload(sandbox, b"file", exclusive=True)
    assert read(sandbox, b"file") == b"first"
    assert names(sandbox) == ["file"]


def test_of_many_uploads_at_once_one_wins_whole(sandbox: Sandbox) -> None:
    def write(byte: int) -> None:
        for _ in range(20):
            upload(sandbox, b"file", bytes([byte]) * 50_000, sync=False)

    threads = [threading.Thread(target=write, args=(byte,)) for byte in range(65, 69)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (sandbox.root / "file").exists():
            data = read(sandbox, b"file")
            assert len(data) == 50_000
            assert len(set(data)) == 1
    for thread in threads:
        thread.join()
    assert names(sandbox) == ["file"]


def test_a_link_is_replaced_and_never_written_through(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    upload(sandbox, b"inside", b"inside")
    for target in (tmp_path / "outside", Path("inside"), Path("nowhere")):
        (sandbox.root / "link").unlink(missing_ok=True)
        (sandbox.root / "link").symlink_to(target)
        upload(sandbox, b"link", b"new")
        assert not (sandbox.root / "link").is_symlink()
        assert read(sandbox, b"link") == b"new"
    assert (tmp_path / "outside").read_text() == "outside"
    assert read(sandbox, b"inside") == b"inside"


def test_a_hard_link_to_a_file_outside_is_replaced_too(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    os.link(tmp_path / "outside", sandbox.root / "file")
    upload(sandbox, b"file", b"new")
    assert (tmp_path / "outside").read_text() == "outside"


def test_a_fifo_or_socket_is_replaced_by_an_upload(sandbox: Sandbox) -> None:
    os.mkfifo(sandbox.root / "fifo")
    upload(sandbox, b"fifo", b"now a file")
    assert read(sandbox, b"fifo") == b"now a file"


def test_a_directory_is_never_replaced(sandbox: Sandbox) -> None:
    files.mkdir(sandbox, b"dir")
    with pytest.raises(Conflict, match="directory"):
        Upload(sandbox, b"dir")
    with pytest.raises(InvalidRequest):
        Upload(sandbox, b"dir/")
    with Upload(sandbox, b"later") as writing:
        files.mkdir(sandbox, b"later")
        with pytest.raises(Conflict):
            writing.commit()
    assert sorted(names(sandbox)) == ["dir", "later"]
    assert names(sandbox, b"later") == []


def test_a_file_in_the_way_of_a_directory_is_a_conflict(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"")
    with pytest.raises(Conflict):
        Upload(sandbox, b"file/below")
    with pytest.raises(Conflict):
        Upload(sandbox, b"file/below/more")
    with pytest.raises(Conflict):
        files.mkdir(sandbox, b"file")


def test_a_directory_that_is_deleted_under_an_upload_is_a_conflict(sandbox: Sandbox) -> None:
    with Upload(sandbox, b"dir/file") as writing:
        writing.write(b"x")
        files.delete(sandbox, b"dir", recursive=True)
        with pytest.raises(Conflict):
            writing.commit()


def test_the_sandbox_s_limit_is_kept(sandbox: Sandbox) -> None:
    with pytest.raises(NoSpace):
        Upload(sandbox, b"file", size=8193, limit=8192)
    with Upload(sandbox, b"file", limit=8192) as writing:
        writing.write(bytes(8192))
        with pytest.raises(NoSpace, match="size limit"):
            writing.write(b"x")
    assert names(sandbox) == []


def test_a_file_at_the_sandbox_s_limit_is_replaced_by_one_of_its_size(sandbox: Sandbox) -> None:
    for _ in range(3):
        with Upload(sandbox, b"file", limit=8192) as writing:
            writing.write(bytes(8192))
            assert writing.commit().size == 8192
    with pytest.raises(NoSpace):
        Upload(sandbox, b"other", size=1, limit=8192)
    files.delete(sandbox, b"file")
    with Upload(sandbox, b"other", size=1, limit=8192) as writing:
        writing.write(b"1")
        assert writing.commit().created


def test_uploads_at_the_same_time_share_the_sandbox_s_limit(sandbox: Sandbox) -> None:
    with Upload(sandbox, b"one", limit=8192, size=4096), Upload(sandbox, b"two", limit=8192) as two:
        two.write(b"x")
        with pytest.raises(NoSpace):
            Upload(sandbox, b"three", limit=8192, size=1)
    with Upload(sandbox, b"three", limit=8192, size=8192):
        pass  # what was aborted takes no room


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_synced_upload_is_on_disk_before_it_has_its_name(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    if before is not None:
        upload(sandbox, b"file", before)
    held: list[bytes | None] = []
    synced: list[str] = []

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(fd: int) -> None:
            held.append((sandbox.root / "file").read_bytes() if (sandbox.root / "file").exists() else None)
            synced.append(name)
            real(fd)

        monkeypatch.setattr(os, name, call)

    watched("fdatasync")
    watched("fsync")
    with Upload(sandbox, b"file", sync=True) as writing:
        writing.write(b"new")
        writing.commit()
    assert synced == ["fdatasync", "fsync"]
    assert held == [before, b"new"]


def test_without_files_that_have_no_name_a_hidden_one_is_used(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without_tmpfile(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", without_tmpfile)
    with Upload(sandbox, b"file") as writing:
        writing.write(b"half")
        assert len(names(sandbox)) == 1
        assert names(sandbox)[0].startswith(".prouter-")
    assert names(sandbox) == []
    assert upload(sandbox, b"file", b"one").created is True
    assert upload(sandbox, b"file", b"two").created is False
    with pytest.raises(Conflict):
        Upload(sandbox, b"file", exclusive=True)
    assert upload(sandbox, b"other", b"three", exclusive=True).created is True
    assert (read(sandbox, b"file"), read(sandbox, b"other")) == (b"two", b"three")
    assert sorted(names(sandbox)) == ["file", "other"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_told_and_leaves_the_old_file(small_disk: Path) -> None:
    sandbox = Sandbox(small_disk / "one")
    sandbox.create()
    upload(sandbox, b"file", b"old")
    with Upload(sandbox, b"file") as writing, pytest.raises(NoSpace):
        writing.write(bytes(4 << 20))
    assert read(sandbox, b"file") == b"old"
    assert names(sandbox) == ["file"]
    with pytest.raises(NoSpace):
        Upload(sandbox, b"big", size=100 << 20)
    upload(sandbox, b"file", b"new")
    sandbox.remove()
    assert not sandbox.root.exists()


def test_a_read_only_file_system_is_told(small_disk: Path) -> None:
    sandbox = Sandbox(small_disk / "one")
    sandbox.create()
    upload(sandbox, b"file", b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for attempt in (
        lambda: upload(sandbox, b"file", b"new"),
        lambda: files.mkdir(sandbox, b"dir"),
        lambda: files.delete(sandbox, b"file"),
        lambda: Sandbox(small_disk / "two").create(),
    ):
        with pytest.raises(Forbidden):
            attempt()
    with pytest.raises(PRouterError):
        sandbox.remove()
    assert read(sandbox, b"file") == b"old"


def test_what_cannot_be_read_as_a_file_is_told_without_touching_it(sandbox: Sandbox) -> None:
    files.mkdir(sandbox, b"dir")
    os.mkfifo(sandbox.root / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(sandbox.root / "socket"))
        with pytest.raises(Forbidden):
            files.open_read(sandbox, b"fifo")
        with pytest.raises(Forbidden):
            files.open_read(sandbox, b"socket")
    with pytest.raises(IsDirectory):
        files.open_read(sandbox, b"dir")
    with pytest.raises(IsDirectory):
        files.open_read(sandbox, b"")
    for missing in (b"missing", b"missing/file", b"fifo/file"):
        with pytest.raises(NotFound):
            files.open_read(sandbox, missing)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", bytes(100_000))
    with files.open_read(sandbox, b"file") as handle:
        os.truncate(sandbox.root / "file", 10)
        with pytest.raises(Conflict, match="cut"):
            list(handle.chunks())


def test_a_file_that_grows_is_read_as_long_as_it_was(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"12345")
    with files.open_read(sandbox, b"file") as handle:
        with (sandbox.root / "file").open("ab") as more:
            more.write(b"67890")
        assert b"".join(handle.chunks()) == b"12345"


def test_remove_after_reading_spares_another_file_of_that_name(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"one")
    with files.open_read(sandbox, b"file") as handle:
        upload(sandbox, b"file", b"two")
        assert handle.remove() is False
    assert read(sandbox, b"file") == b"two"
    with files.open_read(sandbox, b"file") as handle:
        assert handle.remove() is True
        assert handle.remove() is False
        assert handle.read_chunk(0, 10) == b"two"
    assert names(sandbox) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_tree_on_a_read_only_file_system_is_not_ours_to_delete(sandbox: Sandbox) -> None:
    upload(sandbox, b"d/file", b"")
    place = sandbox.root / "d"
    if subprocess.run(["mount", "--bind", place, place], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        files.mkdir(sandbox, b"d/below")
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        with pytest.raises(Forbidden, match="Read-only") as caught:
            files.delete(sandbox, b"d/below", recursive=True)
        assert caught.value.code == "not_removed"
        with pytest.raises(Conflict, match="mount point"):
            files.delete(sandbox, b"d", recursive=True)
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("late", ["file", "directory"])
def test_remove_gives_a_name_back_that_changed_at_the_last_moment(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    upload(sandbox, b"file", b"one")
    real = os.rename

    def rename(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(os, "rename", real)
        files.delete(sandbox, b"file")
        if late == "file":
            upload(sandbox, b"file", b"two")
        else:
            files.mkdir(sandbox, b"file")
        real(*args, **kwargs)  # type: ignore[arg-type]

    with files.open_read(sandbox, b"file") as handle:
        monkeypatch.setattr(os, "rename", rename)
        assert handle.remove() is False
    assert names(sandbox) == ["file"]
    assert files.stat(sandbox, b"file").type == ("file" if late == "file" else "dir")


def test_remove_of_what_was_read_through_a_link_removes_the_link(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"one")
    (sandbox.root / "link").symlink_to("file")
    with files.open_read(sandbox, b"link") as handle:
        assert handle.remove() is True
    assert names(sandbox) == ["file"]


def test_a_listing_says_what_is_there(sandbox: Sandbox) -> None:
    upload(sandbox, b"b file", b"12345", executable=True)
    os.utime(sandbox.root / "b file", (1, 1_700_000_000.5))
    files.mkdir(sandbox, b"a")
    (sandbox.root / "c").symlink_to("nowhere")
    os.mkfifo(sandbox.root / "d")
    upload(sandbox, b"\xff\n", b"")
    entries = list(files.list_directory(sandbox))
    assert [(entry.name, entry.type) for entry in entries] == [
        ("a", "dir"),
        ("b file", "file"),
        ("c", "link"),
        ("d", "other"),
        ("\udcff\n", "file"),
    ]
    assert entries[1].to_wire() == {
        "name": "b file",
        "href": "b%20file",
        "type": "file",
        "size": 5,
        "mtime": 1_700_000_000.5,
        "mode": 0o755,
    }
    assert unquote_to_bytes(entries[4].href) == b"\xff\n"


def test_only_directories_are_listed(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"")
    with pytest.raises(Conflict):
        files.list_directory(sandbox, b"file")
    for missing in (b"missing", b"file/below"):
        with pytest.raises(NotFound):
            files.list_directory(sandbox, missing)


def test_stat_describes_the_link_or_what_it_leads_to(sandbox: Sandbox) -> None:
    upload(sandbox, b"file", b"12345")
    (sandbox.root / "link").symlink_to("file")
    assert files.stat(sandbox, b"link").type == "link"
    assert files.stat(sandbox, b"link", follow=True).size == 5
    assert files.stat(sandbox, b"").type == "dir"


def test_mkdir_tells_whether_it_made_it(sandbox: Sandbox) -> None:
    assert files.mkdir(sandbox, b"a/b/c") is True
    assert files.mkdir(sandbox, b"a/b/c/") is False
    assert files.mkdir(sandbox, b"") is False


def test_delete_takes_files_links_and_empty_directories(sandbox: Sandbox) -> None:
    upload(sandbox, b"dir/file", b"")
    (sandbox.root / "link").symlink_to("dir")
    with pytest.raises(Conflict):
        files.delete(sandbox, b"dir")
    files.delete(sandbox, b"link", recursive=True)
    assert names(sandbox, b"dir") == ["file"]
    files.delete(sandbox, b"dir/file")
    files.delete(sandbox, b"dir")
    with pytest.raises(NotFound):
        files.delete(sandbox, b"dir")
    with pytest.raises(NotFound):
        files.delete(sandbox, b"dir", recursive=True)
    with pytest.raises(Conflict):
        files.delete(sandbox, b"", recursive=True)


def test_no_descriptor_is_lost(sandbox: Sandbox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    upload(sandbox, b"dir/file", b"x")
    actions: list[Callable[[bytes], object]] = [
        lambda path: read(sandbox, path),
        lambda path: names(sandbox, path),
        lambda path: files.mkdir(sandbox, path),
        lambda path: files.delete(sandbox, path),
        lambda path: Upload(sandbox, path).abort(),
    ]
    for path in (b"dir", b"missing", b"dir/file/x", b"../x"):
        for action in actions:
            with contextlib.suppress(PRouterError):
                action(path)
    assert len(os.listdir("/proc/self/fd")) == before
