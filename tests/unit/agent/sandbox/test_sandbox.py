"""Sandboxes: created, measured, removed, and confined, by the kernel's openat2 or by the walk in its place."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prouter.agent.archives import Unpacker, pack
from prouter.agent.sandbox import files, syscalls
from prouter.agent.sandbox.paths import shown, split
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.uploads import Upload
from prouter.errors import Conflict, Forbidden, InvalidRequest, NotFound, PRouterError
from tests.support.programs import needed

NAMES = st.binary(min_size=1, max_size=255).filter(lambda n: n not in (b".", b"..") and not set(n) & {0, 0x2F})
IMPLEMENTATIONS = [
    pytest.param(
        True, id="openat2", marks=pytest.mark.skipif(not syscalls.have_openat2(), reason="kernel has no openat2")
    ),
    pytest.param(False, id="walk"),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> Sandbox:
    made = Sandbox(tmp_path / "jobs" / "one", openat2=request.param)
    made.create()
    return made


def upload(sandbox: Sandbox, path: bytes, data: bytes = b"data") -> None:
    with Upload(sandbox, path) as writing:
        writing.write(data)
        writing.commit()


def read(sandbox: Sandbox, path: bytes) -> bytes:
    with files.open_read(sandbox, path) as handle:
        return b"".join(handle.chunks())


def without_privileges(action: Callable[[], None]) -> bool:
    """Run this in a child process to which permissions apply even if it is root's; whether it succeeded."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
            if ctypes.CDLL(None).capset(header, bytes(24)) == 0:
                action()
                status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_new_sandbox_is_private(sandbox: Sandbox) -> None:
    assert stat.S_IMODE(sandbox.root.stat().st_mode) == 0o700


def test_creating_twice_is_a_conflict(sandbox: Sandbox) -> None:
    with pytest.raises(Conflict):
        sandbox.create()


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    Sandbox(tmp_path / "never" / "was").remove()
    (tmp_path / "jobs").mkdir()
    Sandbox(tmp_path / "jobs" / "none").remove()


def test_remove_deletes_links_but_not_what_they_lead_to(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    (sandbox.root / "dir").mkdir()
    (sandbox.root / "dir" / "link").symlink_to(outside)
    sandbox.remove()
    assert not sandbox.root.exists()
    assert (outside / "keep").read_text() == "kept"


def test_remove_of_a_root_that_became_a_link_removes_the_link(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    sandbox.root.rmdir()
    sandbox.root.symlink_to(outside)
    with pytest.raises(NotFound):
        read(sandbox, b"keep")
    sandbox.remove()
    assert not sandbox.root.is_symlink()
    assert (outside / "keep").exists()


def test_a_directory_put_in_the_sandbox_s_place_is_not_served(sandbox: Sandbox, tmp_path: Path) -> None:
    upload(sandbox, b"file")
    sandbox.root.rename(tmp_path / "moved")
    sandbox.root.mkdir()
    (sandbox.root / "file").write_text("other")
    with pytest.raises(NotFound):
        read(sandbox, b"file")


def deep_tree(root: Path, depth: int) -> None:
    here = os.open(root, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("directory-with-a-long-name", dir_fd=here)
        below = os.open("directory-with-a-long-name", os.O_RDONLY, dir_fd=here)
        os.close(os.open(f"file{level}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)
        here = below
    os.close(here)


def test_trees_deeper_than_path_max_are_measured_and_removed(sandbox: Sandbox) -> None:
    deep_tree(sandbox.root, 500)
    (sandbox.root / "beside").mkdir()
    assert sandbox.size_bytes() >= 0
    path = b"/".join([b"directory-with-a-long-name"] * 400)
    upload(sandbox, path + b"/new", b"deep")
    assert read(sandbox, path + b"/new") == b"deep"
    before = len(os.listdir("/proc/self/fd"))
    sandbox.remove()
    assert not sandbox.root.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_directories_without_permissions_are_removed(sandbox: Sandbox) -> None:
    here = sandbox.root
    for _ in range(40):
        here = here / "d"
        here.mkdir()
        (here / "f").touch()
    while here != sandbox.root.parent:
        here.chmod(0)
        here = here.parent
    assert without_privileges(sandbox.remove)
    assert not sandbox.root.exists()


def test_remove_wins_over_a_process_that_keeps_creating_files(sandbox: Sandbox) -> None:
    code = (
        "import os, sys\nos.chdir(sys.argv[1])\nprint('go', flush=True)\n"
        "for n in range(20000):\n"
        "    try:\n        os.makedirs(f'd{n % 7}', exist_ok=True); open(f'd{n % 7}/{n}', 'w').close()\n"
        "    except OSError: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(sandbox.root)], stdout=subprocess.PIPE) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            sandbox.remove()
        finally:
            busy.kill()
    assert not sandbox.root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_mount_point_is_reported_and_what_is_mounted_is_untouched(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    target = sandbox.root / "a" / "mounted"
    target.mkdir(parents=True)
    (sandbox.root / "a" / "file").touch()
    if subprocess.run(["mount", "--bind", outside, target], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with pytest.raises(PRouterError, match="mount") as caught:
            sandbox.remove()
        assert caught.value.code == "not_removed"
        assert (outside / "keep").exists()
        assert not (sandbox.root / "a" / "file").exists()
    finally:
        subprocess.run(["umount", target], check=True)
    sandbox.remove()
    assert not sandbox.root.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file immutable")
@needed("chattr")
def test_an_immutable_file_is_reported_by_name(sandbox: Sandbox) -> None:
    (sandbox.root / "other").touch()
    (sandbox.root / "stays").touch()
    if subprocess.run(["chattr", "+i", sandbox.root / "stays"], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(PRouterError, match="stays") as caught:
            sandbox.remove()
        assert caught.value.code == "not_removed"
        assert os.listdir(sandbox.root) == ["stays"]
    finally:
        subprocess.run(["chattr", "-i", sandbox.root / "stays"], check=True)


def test_size_counts_allocated_blocks_and_hard_links_once(sandbox: Sandbox) -> None:
    empty = sandbox.size_bytes()
    (sandbox.root / "data").write_bytes(os.urandom(1 << 20))
    os.link(sandbox.root / "data", sandbox.root / "again")
    with (sandbox.root / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    assert (1 << 20) <= sandbox.size_bytes() - empty < (1 << 20) + 65536


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(name=NAMES, folder=NAMES)
def test_every_name_the_file_system_can_hold_works(sandbox: Sandbox, name: bytes, folder: bytes) -> None:
    path = folder + b"/" + name
    upload(sandbox, path, name)
    assert read(sandbox, path) == name
    entries = list(files.list_directory(sandbox, folder))
    assert [os.fsencode(entry.name) for entry in entries] == [name]
    files.delete(sandbox, folder, recursive=True)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (b"..", Forbidden),
        (b"a/../b", Forbidden),
        (b"a/..", Forbidden),
        (b"/etc/passwd", Forbidden),
        (b"//etc", Forbidden),
        (b"", InvalidRequest),
        (b".", InvalidRequest),
        (b"a\0b", InvalidRequest),
        (b"x" * 256, InvalidRequest),
    ],
)
def test_what_is_no_path_inside_is_refused(sandbox: Sandbox, path: bytes, error: type[PRouterError]) -> None:
    with pytest.raises(error):
        split(path)
    with pytest.raises(error):
        Upload(sandbox, path)


def test_dots_and_doubled_slashes_are_read_as_posix_does() -> None:
    assert split(b"./a//b/.") == (b"a", b"b")
    assert split(b"...") == (b"...",)


def test_paths_are_shown_on_one_printable_line() -> None:
    assert shown("naïve\nname\x1b".encode() + b"\xff") == "naïve\\nname\\x1b\\xff"
    assert len(shown(b"x" * 5000)) == 200


def test_links_that_stay_inside_are_followed(sandbox: Sandbox) -> None:
    upload(sandbox, b"a/b/file", b"inside")
    root = sandbox.root
    (root / "direct").symlink_to("a/b/file")
    (root / "a" / "up").symlink_to("../a/b")
    (root / "absolute").symlink_to(root / "a" / "b")
    (root / "to-root").symlink_to(root)
    (root / "chain").symlink_to("to-root/absolute/../up/file")
    for path in (b"direct", b"a/up/file", b"absolute/file", b"to-root/a/b/file", b"chain"):
        (root / "a" / "up").unlink()
        (root / "a" / "up").symlink_to("../a/b")
        if path == b"chain":
            (root / "a" / "b" / "up").symlink_to(".")
            (root / "chain").unlink()
            (root / "chain").symlink_to("to-root/absolute/../up/file")
        assert read(sandbox, path) == b"inside", path


@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd", "a/../../../secret", "/proc/self/root/etc/passwd"])
def test_links_that_leave_are_refused(sandbox: Sandbox, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (sandbox.root / "a").mkdir()
    (sandbox.root / "link").symlink_to(target)
    with pytest.raises(Forbidden):
        files.open_read(sandbox, b"link")


def test_a_directory_link_that_leaves_is_refused_everywhere(sandbox: Sandbox, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    (sandbox.root / "link").symlink_to(outside)
    attempts: list[Callable[[], object]] = [
        lambda: files.open_read(sandbox, b"link/file"),
        lambda: files.list_directory(sandbox, b"link"),
        lambda: files.stat(sandbox, b"link/file"),
        lambda: files.mkdir(sandbox, b"link/new"),
        lambda: files.delete(sandbox, b"link/file"),
        lambda: Upload(sandbox, b"link/new"),
        lambda: Upload(sandbox, b"link/new/deeper"),
        lambda: sandbox.directory(b"link"),
        lambda: Unpacker(sandbox, path=b"link"),
        lambda: list(pack(sandbox, b"link")),
    ]
    for attempt in attempts:
        with pytest.raises(Forbidden):
            attempt()
    assert os.listdir(outside) == ["file"]


def test_a_loop_of_links_is_refused(sandbox: Sandbox) -> None:
    (sandbox.root / "a").symlink_to("b")
    (sandbox.root / "b").symlink_to("a")
    with pytest.raises(Forbidden):
        files.open_read(sandbox, b"a")


def test_a_working_directory_is_given_as_a_path_inside(sandbox: Sandbox) -> None:
    files.mkdir(sandbox, b"work/here")
    (sandbox.root / "link").symlink_to("work")
    assert sandbox.directory(b"link/here") == sandbox.root / "work" / "here"
    assert sandbox.directory(b"") == sandbox.root
    with pytest.raises(NotFound):
        sandbox.directory(b"missing")


SWAPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
print("go", flush=True)
while os.getppid() == int(sys.argv[2]):
    for _ in range(1000):
        libc.renameat2(-100, b"d", -100, b"link", 2)  # RENAME_EXCHANGE
"""


@pytest.fixture
def swapped(sandbox: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """The sandbox's ``d`` is a directory and a link to a directory outside, by turns, thousands of times a second."""
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "file").write_text("secret")
    (outside / "sub" / "file").write_text("secret")
    (sandbox.root / "d" / "sub").mkdir(parents=True)
    (sandbox.root / "link").symlink_to(outside)
    arguments = [sys.executable, "-c", SWAPPER, str(sandbox.root), str(os.getpid())]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        assert swapper.stdout.readline() == b"go\n"
        try:
            yield outside
        finally:
            swapper.send_signal(signal.SIGKILL)


def test_no_swap_of_a_directory_for_a_link_lets_anything_out(sandbox: Sandbox, swapped: Path) -> None:
    def unpack() -> None:
        with Unpacker(sandbox) as unpacker:
            unpacker.feed(archive)
            unpacker.finish()

    source = Sandbox(sandbox.root.parent / "source")
    source.create()
    upload(source, b"d/sub/unpacked", b"inside")
    upload(source, b"d/file", b"inside")
    archive = b"".join(pack(source))
    before = {path: path.lstat().st_mtime_ns for path in [swapped, *swapped.rglob("*")]}
    operations: list[Callable[[], object]] = [
        lambda: upload(sandbox, b"d/file", b"inside"),
        lambda: upload(sandbox, b"d/new/file", b"inside"),
        lambda: read(sandbox, b"d/file"),
        lambda: [entry.name for entry in files.list_directory(sandbox, b"d")],
        lambda: files.mkdir(sandbox, b"d/made/made"),
        lambda: files.delete(sandbox, b"d/sub", recursive=True),
        lambda: files.delete(sandbox, b"d/file"),
        lambda: b"".join(pack(sandbox, b"d")),
        unpack,
    ]
    succeeded = refused = 0
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        for operation in operations:
            try:
                result = operation()
            except PRouterError:
                refused += 1
            else:
                succeeded += 1
                assert not isinstance(result, bytes) or b"secret" not in result
    assert succeeded > 20
    assert refused > 20
    assert {path: path.lstat().st_mtime_ns for path in [swapped, *swapped.rglob("*")]} == before
    assert (swapped / "file").read_text() == "secret"


def test_removing_a_tree_under_swaps_leaves_the_outside_alone(sandbox: Sandbox, swapped: Path) -> None:
    with contextlib.suppress(PRouterError):
        sandbox.remove()
    assert sorted(path.name for path in swapped.rglob("*")) == ["file", "file", "sub"]
