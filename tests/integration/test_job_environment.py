"""What a job of the job manager finds: its environment, directories, output and temporary files."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from prouter.agent.archives.packer import pack
from prouter.agent.sandbox.files import list_directory
from prouter.agent.sandbox.sandbox import Sandbox
from prouter.errors import InvalidRequest, StartFailed
from prouter.jobs import State
from tests.support.job_manager import CONNECTION, SERVER, Managers, Observed, new_uid, python

PRINT_ENVIRONMENT = "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), __import__('sys').argv[1:]]))"


def test_a_job_sees_its_place_the_agents_properties_and_the_requests_variables(managers: Managers) -> None:
    environ = {"PATH": os.environ["PATH"], "FROM_AGENT": "yes", "PROUTER_CLIENT__TOKEN": "secret", "LANG": "C"}
    jobs = managers.open(environ=environ, properties={"gpu": "a100", "zone Ж": "1"})
    uid = jobs.create()
    jobs.start(
        uid, *python(PRINT_ENVIRONMENT, "{port}"), env={"LANG": "xx", "DA__PAGENT__gpu": "none", "B": "{sandbox}"}
    )
    seen, cwd, arguments = jobs.output(uid)
    path = f"/jobs/{CONNECTION}/{uid}"
    sandbox = str(jobs.manager.sandbox(uid).root)
    assert {name: value for name, value in seen.items() if name != "LC_CTYPE"} == {
        "PATH": os.environ["PATH"],
        "FROM_AGENT": "yes",
        "LANG": "xx",
        "DA__PAGENT__gpu": "none",
        "DA__PAGENT__zone Ж": "1",
        "B": "{sandbox}",
        "PROUTER_JOB_ID": uid,
        "PROUTER_JOB_PATH": path,
        "PROUTER_BASE_URL": f"{path}/http/",
        "PROUTER_BASE_PATH": f"{path}/http",
        "PROUTER_SANDBOX": sandbox,
        "PYTHONUNBUFFERED": "1",
        **dict.fromkeys(("TMPDIR", "TMP", "TEMP", "TMUX_TMPDIR"), seen["TMPDIR"]),
    }
    assert (cwd, arguments) == (sandbox, ["{port}"])


def test_not_even_the_request_changes_the_mark_of_a_jobs_processes(observed: Observed) -> None:
    uid = observed.run(*python(PRINT_ENVIRONMENT), env={"PROUTER_JOB_ID": new_uid()})
    assert observed.output(uid)[0]["PROUTER_JOB_ID"] == uid


def test_templates_are_filled_in_with_expose(observed: Observed) -> None:
    uid = observed.create()
    code = f"import json, os, sys; open('seen', 'w').write(json.dumps([sys.argv, os.environ['X']]))\n{SERVER}"
    record = observed.start(
        uid, *python(code, "{port}", '{"a": {}}'), env={"X": "{base_url}"}, expose={"port": "assign"}
    )
    assert observed.file(uid, "seen") == f'[["-c", "{record.ports[0]}", "{{\\"a\\": {{}}}}"], "{record.path}/http/"]'
    assert record.args[-2] == str(record.ports[0])


def test_output_goes_to_the_sandbox(observed: Observed) -> None:
    uid = observed.run("sh", "-c", "echo out; echo err >&2")
    observed.ended(uid)
    assert observed.file(uid, ".pagent.stdout") == "out\n"
    assert observed.file(uid, ".pagent.stderr") == "err\n"
    assert observed.manager.log(uid, "stdout").read(0).data == b"out\n"


def test_forwarded_output_does_not(observed: Observed) -> None:
    uid = observed.run("true", forward_stdout=True)
    observed.ended(uid)
    assert list(list_directory(observed.manager.sandbox(uid))) == []


def test_the_working_directory_is_inside_the_sandbox(observed: Observed) -> None:
    uid = observed.create()
    (observed.manager.sandbox(uid).root / "sub" / "dir").mkdir(parents=True)
    observed.start(uid, *python(PRINT_ENVIRONMENT), cwd="sub/dir")
    assert observed.output(uid)[1] == str(observed.manager.sandbox(uid).root / "sub" / "dir")


@pytest.mark.parametrize("cwd", ["missing", "..", "/tmp", "link", "file"])
def test_other_working_directories_are_refused_and_the_job_can_still_be_started(observed: Observed, cwd: str) -> None:
    uid = observed.create()
    root = observed.manager.sandbox(uid).root
    (root / "link").symlink_to("/tmp")
    (root / "file").touch()
    with pytest.raises(InvalidRequest, match="cwd"):
        observed.start(uid, "true", cwd=cwd)
    assert observed.manager.record(uid).state is State.NEW
    assert observed.start(uid, "true").state is State.RUNNING


TEMPORARY = """
import json, os, stat, sys, tempfile
from multiprocessing.connection import Listener
with tempfile.NamedTemporaryFile(delete=False) as file:
    file.write(b"x" * 100000)
with Listener(family="AF_UNIX") as listener:
    socket = listener.address
seen = {name: os.environ[name] for name in ("TMPDIR", "TMP", "TEMP", "TMUX_TMPDIR")}
print(json.dumps([os.path.realpath(file.name), socket, seen, stat.S_IMODE(os.stat(os.environ["TMPDIR"]).st_mode)]))
"""


def packed(sandbox: Sandbox, path: bytes = b"") -> list[str]:
    """The names in an archive."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(sandbox, path)))) as archive:
        return archive.getnames()


@pytest.mark.parametrize("deep", [0, 60])
def test_temporary_files_are_in_the_sandbox_and_sockets_fit_however_long_its_path_is(tmp_path: Path, deep: int) -> None:
    managers = Managers(tmp_path / ("d" * deep))
    (tmp_path / ("d" * deep)).mkdir(exist_ok=True)
    try:
        jobs = managers.open()
        uid = jobs.run(sys.executable, "-I", "-c", TEMPORARY)
        file, socket, seen, mode = jobs.output(uid)
        root = jobs.manager.sandbox(uid).root
        assert Path(file).parent == root / ".pagent.tmp"
        assert len(set(seen.values())) == 1
        assert socket.startswith(seen["TMPDIR"])
        assert mode == 0o700
        assert jobs.manager.sandbox(uid).size_bytes() >= 100000
        assert not os.path.islink(seen["TMPDIR"])  # A short link ends with the job.
        assert [entry.name for entry in list_directory(jobs.manager.sandbox(uid))] == [
            ".pagent.stderr",
            ".pagent.stdout",
        ]
        assert [entry.name for entry in list_directory(jobs.manager.sandbox(uid), b".pagent.tmp")] == [Path(file).name]
        assert packed(jobs.manager.sandbox(uid)) == [".pagent.stderr", ".pagent.stdout"]
        assert packed(jobs.manager.sandbox(uid), b".pagent.tmp") == [Path(file).name]
        jobs.manager.remove(uid)
        assert not os.path.exists(file)
    finally:
        managers.close()


def test_a_file_in_the_way_of_temporary_files_fails_the_start(observed: Observed) -> None:
    uid = observed.create()
    (observed.manager.sandbox(uid).root / ".pagent.tmp").write_text("mine")
    with pytest.raises(StartFailed, match=r"'\.pagent\.tmp': File exists"):
        observed.start(uid, "true")


def test_the_request_may_put_temporary_files_elsewhere(observed: Observed) -> None:
    uid = observed.run(*python(PRINT_ENVIRONMENT), env={"TMPDIR": "/var/tmp"})
    assert observed.output(uid)[0]["TMPDIR"] == "/var/tmp"


@pytest.mark.parametrize(
    ("configured", "asked", "inside"),
    [("agent", None, False), ("sandbox", None, True), ("agent", "sandbox", True), ("sandbox", "agent", False)],
)
def test_home_is_the_agents_or_the_sandbox(
    managers: Managers, configured: str, asked: str | None, inside: bool
) -> None:
    environ = {"HOME": "/home/agent", "XDG_CACHE_HOME": "/home/agent/cache", "XDG_RUNTIME_DIR": "/run/user/1"}
    jobs = managers.open(environ=environ, home=configured)
    uid = jobs.run(*python(PRINT_ENVIRONMENT), home=asked)
    seen = jobs.output(uid)[0]
    assert seen["HOME"] == (str(jobs.manager.sandbox(uid).root) if inside else "/home/agent")
    assert ("XDG_CACHE_HOME" in seen) is not inside
    assert seen["XDG_RUNTIME_DIR"] == "/run/user/1"
