"""Work in a sandbox with the rights of the job's user."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from prouter.agent.sandbox import rights
from prouter.agent.sandbox.files import delete, list_directory, open_read
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.agent.sandbox.uploads import Upload
from prouter.errors import Forbidden
from prouter.processes.users import User
from tests.support.unprivileged import open_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take the rights of other users")

USER = User("job-64999", 64999, 64999)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with open_folder() as folder:
        sandbox = Sandbox(folder / ("a" * 32))
        sandbox.belong_to(USER)
        sandbox.create()
        yield sandbox


def _upload(sandbox: Sandbox, name: bytes) -> None:
    with Upload(sandbox, name) as upload:
        upload.write(b"contents")
        upload.commit()


def test_a_thread_that_has_not_chosen_its_rights_gets_nowhere(sandbox: Sandbox) -> None:
    for work in (lambda: _upload(sandbox, b"f"), lambda: open_read(sandbox, b"f"), lambda: list_directory(sandbox)):
        with pytest.raises(RuntimeError, match="without a choice of rights"):
            work()
    assert list(sandbox.root.iterdir()) == []


def test_files_are_the_users_and_files_of_root_are_out_of_reach(sandbox: Sandbox) -> None:
    secret = sandbox.root.parent / "secret"
    secret.write_bytes(b"of root")
    secret.chmod(0o600)
    os.link(secret, sandbox.root / "hard")
    with sandbox.acting():
        _upload(sandbox, b"below/f")
        with pytest.raises(Forbidden):
            open_read(sandbox, b"hard")
        delete(sandbox, b"hard")
    for path in (sandbox.root, sandbox.root / "below", sandbox.root / "below/f"):
        assert path.stat().st_uid == USER.uid
    assert secret.read_bytes() == b"of root"


def _allow_by_name(path: Path, uid: int) -> None:
    """Give a user all rights by an access control list, as setfacl(1) does; not on file systems without such lists."""
    entries = [(1, 7, -1), (2, 7, uid), (4, 0, -1), (16, 7, -1), (32, 0, -1)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    with contextlib.suppress(OSError):
        os.setxattr(path, "system.posix_acl_access", packed)


def test_a_shut_sandbox_is_open_to_requests_and_not_to_its_user(sandbox: Sandbox) -> None:
    _allow_by_name(sandbox.root, USER.uid)
    sandbox.shut()
    assert sandbox.is_shut
    with sandbox.acting():
        _upload(sandbox, b"late")
        with open_read(sandbox, b"late") as found:
            assert found.read_chunk(0, 100) == b"contents"
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(USER.gid, USER.gid, USER.gid)
        os.setresuid(USER.uid, USER.uid, USER.uid)
        os._exit(os.access(sandbox.root / "late", os.F_OK))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_rights_end_with_their_block_and_belong_to_one_thread(sandbox: Sandbox, tmp_path: Path) -> None:
    def owner(name: str) -> int:
        (tmp_path.parent / name).touch()
        return (tmp_path.parent / name).stat().st_uid

    tmp_path.parent.chmod(0o777)
    found: list[int] = []
    try:
        with sandbox.acting():
            pass
        with pytest.raises(ZeroDivisionError), sandbox.acting():
            _ = 1 / 0
        go = threading.Event()
        other = threading.Thread(target=lambda: found.extend([owner("other")] if go.wait(20) else []))
        other.start()
        with sandbox.acting():
            with rights.own():
                assert owner("own") == 0
            go.set()
            other.join()
        assert (owner("after"), found) == (0, [0])
    finally:
        tmp_path.parent.chmod(0o700)


def test_what_a_job_hides_from_itself_counts_and_goes(sandbox: Sandbox) -> None:
    with sandbox.acting():
        _upload(sandbox, b"closed/f")
    os.chmod(sandbox.root / "closed", 0)
    assert sandbox.size_bytes() >= 8192
    sandbox.remove()
    assert not sandbox.root.exists()
