"""Jobs that run as users of their own (`jobs.user`): against each other, against the agent, and their files."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prouter.agent.jobs.state.user_pool import UserPool
from prouter.config import ConfigError
from prouter.processes.process_tree import mark_value
from prouter.processes.users import with_processes
from tests.support.job_users import FIRST, UserJob, python_for_all, users, why_not, words_of_log
from tests.support.processes import Agent, Process, Router, start_agent, start_router, wait_until
from tests.support.unprivileged import as_ordinary_user, open_folder

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

HOSTILE = (Path(__file__).parents[1] / "jobs" / "hostile_neighbour.py").read_text()
SERVER = """
import http.server, socketserver, sys
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return self.socket.accept()[0], ("local", 0)
Server(sys.argv[1], http.server.SimpleHTTPRequestHandler).serve_forever()
"""
SLEEP = "import time; time.sleep(600)"
TELL = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="prt-users-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def own_router(place: Path) -> Iterator[Router]:
    process = start_router(place / "router", workers=1)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def agent(place: Path, own_router: Router) -> Iterator[Agent]:
    """An agent with twelve users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANTED_SETTING", "planted")
        process = start_agent(place / "agent", own_router, jobs__user=users(12))
    yield process
    process.stop()


@pytest.fixture
def new_job(own_router: Router, agent: Agent) -> Iterator[Callable[..., UserJob]]:
    """``new_job()`` or ``new_job(agent)``: jobs that are removed after the test."""
    made: list[UserJob] = []

    def make(on: Agent = agent, root: Path | None = None) -> UserJob:
        made.append(UserJob(own_router, on, root))
        return made[-1]

    yield make
    for job in made:
        own_router.post(f"{job.path}/remove")


def test_a_job_reaches_nothing_of_its_neighbour_and_of_the_agent(
    new_job: Callable[..., UserJob], own_router: Router, agent: Agent
) -> None:
    victim, attacker = new_job(), new_job()
    info = victim.python(SERVER, "{socket}", expose={"port": "unix"})
    assert own_router.get(f"{victim.path}/http/").status_code == 200
    state, routers = agent.directory / "state", own_router.directory / "state"
    logs = agent.directory / "jobs" / ".job-logs"
    known = {
        "files": [str(path) for top in (state, routers, logs) for path in top.rglob("*") if path.is_file()],
        "directories": [str(path) for path in (state, routers, logs, state / "keeper", victim.sandbox)],
        "sockets": [
            str(victim.sandbox / ".pagent.sock"),
            str(state / "keeper" / "keeper.sock"),
            str(own_router.directory / "run" / "agents.sock"),
            str(own_router.directory / "run" / "broker.ipc"),
        ],
        "pids": [info["pid"], agent.pid, int(next(words_of_log(agent, "keeper_pid"))), own_router.pid],
    }
    assert known["files"]
    attacker.python(HOSTILE, json.dumps(known))
    found = attacker.output()
    assert found["reached"] == []
    about, user = found["about"], str(attacker.user)
    assert attacker.user != victim.user
    assert (about["uids"], about["gids"], about["groups"]) == ([user], [user], [])
    assert (about["no_new_privs"], about["umask"], about["memory"]) == ("1", "0077", [])
    assert {int(word, 16) for word in about["capabilities"]} == {0}
    assert about["environment"]["HOME"] == str(attacker.sandbox)
    own = ("PROUTER_", "DA__PAGENT__", "TMP", "TEMP", "PYTHON", "USER", "LOGNAME")
    rest = {name for name in about["environment"] if not name.startswith(own)}
    assert rest <= {"PATH", "HOME", "LANG", "TZ", "TERM", "TMUX_TMPDIR", "LC_CTYPE"}


FORGER = """
import os, resource, socket, sys, time
victim, mark, code = sys.argv[1:4]
if len(sys.argv) == 4:
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
        resource.setrlimit(resource.RLIMIT_RTTIME, (int(mark), hard))
        argv = [sys.executable, "-I", "-c", code, victim, mark, code, "again"]
        os.execve(sys.executable, argv, {"PROUTER_JOB_ID": victim})
    time.sleep(600)
server = socket.create_server(("127.0.0.1", 0))
open("listens", "w").close()
while True:
    peer, _ = server.accept()
    peer.recv(65536)
    peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nforged")
    peer.close()
"""


def test_a_process_that_poses_as_another_jobs_is_not_of_that_job(
    new_job: Callable[..., UserJob], own_router: Router, place: Path
) -> None:
    """Without control groups a job can forge all by which the keeper tells orphans apart, but for their user."""
    groupless = start_agent(place / "groupless", own_router, jobs__user=users(2, 18), jobs__cgroup="off")
    try:
        victim, attacker = new_job(groupless), new_job(groupless)
        attacker.python(FORGER, victim.uid, str(mark_value(victim.uid)), FORGER)
        wait_until((attacker.sandbox / "listens").exists)
        args = [python_for_all(), "-I", "-c", SLEEP]
        body = {"args": args, "env": {}, "expose": {"port": "detect", "timeout": 1}}
        answer = own_router.post(f"{victim.path}/start", body)
        assert answer.status_code == 502, answer.text
        assert "its processes listened on any port" in answer.json()["detail"]
        own_router.post(f"{attacker.path}/remove")
        assert with_processes([attacker.user]) == {}
    finally:
        groupless.stop()


def test_a_job_inherits_no_descriptor_but_its_own_three(new_job: Callable[..., UserJob]) -> None:
    job = new_job()
    job.python("import os; print([fd for fd in range(4096) if os.path.lexists(f'/proc/self/fd/{fd}')])")
    job.ended()
    assert job.log() == "[0, 1, 2]\n"


def test_files_belong_to_the_jobs_user_on_every_way_in_and_out(new_job: Callable[..., UserJob]) -> None:
    job = new_job()
    for name in ("plain", "below/one"):
        assert job.request("POST", f"/file/{name}", data=b"contents").ok
    packed, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, mode in (("packed/setuid", 0o4755), ("packed/plain", 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = 3, mode
            tar.addfile(member, io.BytesIO(b"abc"))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("zipped/one", "abc")
    for data in (packed, zipped):
        answer = job.request("POST", "/archive", data=data.getvalue())
        assert answer.ok, answer.text
    for found in job.sandbox.rglob("*"):
        assert (found.lstat().st_uid, found.lstat().st_mode & 0o7000) == (job.user, 0), found
    code = "import os; print(open('plain').read(), flush=True); open('made', 'w').write('by the job')"
    job.python(f"{code}; os.remove('below/one'); open('/tmp/x', 'w').close(); open('/dev/stdout', 'w').write('again')")
    job.ended()
    assert job.log() == "contents\nagain", job.log("stderr")
    # The job has ended: its user is kept out, and requests still work.
    info = job.sandbox.stat()
    assert (info.st_uid, info.st_mode & 0o007) == (0, 0)
    assert job.request("GET", "/file/made").text == "by the job"
    assert job.request("GET", "/file/.pagent.stdout").text == "contents\nagain"
    assert job.request("POST", "/file/late", data=b"late").ok
    assert job.request("DELETE", "/file/plain").ok
    assert (job.sandbox / "late").stat().st_uid == job.user
    for kind in ("tar", "tar.gz"):
        whole = job.request("GET", f"/archive?format={kind}").content
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            assert {"made", "late", "packed", ".pagent.stdout"} <= set(tar.getnames())
            logged = tar.extractfile(".pagent.stdout")
            assert logged is not None
            assert logged.read() == b"contents\nagain"
    job.remove()
    assert not job.sandbox.exists()


def test_what_a_job_prepares_leads_the_agent_nowhere(new_job: Callable[..., UserJob], place: Path) -> None:
    secret = place / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)
    job = new_job()
    job.python(
        f"""
import os
os.symlink({str(secret)!r}, "link"); os.symlink("/", "all"); os.mkfifo("fifo"); os.mkdir("closed")
os.chmod("closed", 0); open("unreadable", "w").close(); os.chmod("unreadable", 0)
open("setuid", "w").close(); os.chmod("setuid", 0o6755)
"""
    )
    job.ended()
    assert job.log("stderr") == ""
    os.link(secret, job.sandbox / "hard")  # As a job can where fs.protected_hardlinks is off.
    for name in ("link", f"all{secret}", "hard", "fifo", "unreadable", "all/etc/passwd"):
        answer = job.request("GET", f"/file/{name}")
        assert answer.status_code in (403, 404), name
        assert "of root" not in answer.text
    assert job.request("GET", "/archive").status_code == 403
    assert job.request("DELETE", "/file/hard").ok
    job.remove()
    assert not job.sandbox.exists()
    assert secret.read_text() == "of root"


def test_a_socket_of_another_user_is_not_served(new_job: Callable[..., UserJob], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        job = new_job()
        job.python(SERVER, "{socket}", expose={"port": "unix"})
        assert job.request("GET", "/http/").status_code == 200
        # As a job could with a link, or with another name of the socket.
        os.unlink(job.sandbox / ".pagent.sock")
        os.symlink(tmp_path / "s", job.sandbox / ".pagent.sock")
        assert job.request("GET", "/http/").status_code == 502
        os.unlink(job.sandbox / ".pagent.sock")
        os.link(tmp_path / "s", job.sandbox / ".pagent.sock")
        assert job.request("GET", "/http/").status_code == 502
        job.remove()


def test_a_user_is_used_again_once_nothing_of_its_last_job_is_left(
    new_job: Callable[..., UserJob], launch: Callable[..., Any], own_router: Router
) -> None:
    small = launch(start_agent, own_router, jobs__user=[str(FIRST + 15)])
    job = new_job(small)
    assert job.user == FIRST + 15
    job.python(SLEEP)
    refused = own_router.post("/jobs/create", {"name": "two", "agent": {"type": "uid", "uid": small.uid}})
    assert (refused.status_code, "jobs.user" in refused.text) == (429, True), refused.text
    # A process that left the job's tree with the help of another service, as cron would start it.
    left = subprocess.Popen(["sleep", "600"], user=job.user, group=job.user, extra_groups=[])
    own_router.post(f"{job.path}/stop", {"grace": 0})
    assert left.wait(10) == -signal.SIGKILL
    job.request("POST", "/file/after", data=b"x")
    code = "import os, sys; print(os.access(sys.argv[1], os.F_OK))"
    second = new_job(small)
    assert second.user == job.user
    second.python(code, str(job.sandbox / "after"))
    second.ended()
    assert second.log() == "False\n"


def test_users_survive_a_restart_of_the_agent(
    launch: Callable[..., Any], own_router: Router, work_dir: Path, new_job: Callable[..., UserJob]
) -> None:
    settings: dict[str, Any] = {
        "jobs__user": users(2, skip=16),
        "jobs__keep_for": 60,
        "jobs__root": str(work_dir / "j"),
    }
    first = launch(start_agent, own_router, identity__uid="kept", **settings)
    runs, waits = new_job(first, work_dir / "j"), new_job(first, work_dir / "j")
    info = runs.python(SERVER, "{socket}", expose={"port": "unix"})
    first.kill()
    second = start_agent(first.directory, own_router, identity__uid="kept", **settings)
    try:
        assert wait_until(lambda: runs.request("GET", "/http/").status_code == 200)
        assert os.stat(f"/proc/{info['pid']}").st_uid == runs.user
        assert runs.request("POST", "/file/new", data=b"x").ok
        assert (runs.sandbox / "new").stat().st_uid == runs.user
        full = own_router.post("/jobs/create", {"name": "three", "agent": {"type": "uid", "uid": "kept"}})
        assert full.status_code == 429
        waits.python(TELL)
        assert waits.output()["USER"] == f"job-{waits.user}"
        runs.remove()
        waits.remove()
    finally:
        second.stop()


def test_one_user_for_all_jobs_and_the_machines_tmp(launch: Callable[..., Any], own_router: Router) -> None:
    root = Path(tempfile.mkdtemp(prefix="prt-users-", dir="/var/lib"))
    root.chmod(0o755)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LISTED_TOKEN", "given")
            settings: dict[str, Any] = {
                "jobs__private_tmp": "off",
                "jobs__root": str(root / "jobs"),
                "jobs__env_pass": ["LISTED_*"],
            }
            shared = launch(start_agent, own_router, jobs__user=FIRST + 18, **settings)
        for _ in range(2):
            path = own_router.create(shared.uid)
            own_router.start(path, [python_for_all(), "-I", "-c", TELL], port_expected_count=0)
            assert own_router.post(f"{path}/wait").json()["exit_code"] == 0
            told = json.loads(own_router.get(f"{path}/logs/stdout").text)
            assert (told["LISTED_TOKEN"], told["HOME"]) == ("given", str(root / "jobs" / path.rpartition("/")[2]))
        assert (root / "jobs").stat().st_mode & 0o777 == 0o711
        shared.stop()
    finally:
        shutil.rmtree(root)


def test_a_long_path_through_closed_directories(launch: Callable[..., Any], own_router: Router) -> None:
    closed = Path(tempfile.mkdtemp(prefix="prt-users-", dir="/var/lib"))
    root = closed / ("long" * 20) / "jobs"
    code = "import os, tempfile as t; t.mkstemp(dir='/tmp'); t.mkstemp()"
    told = "print(len(os.listdir('/var/tmp')), flush=True)"
    try:
        small = launch(start_agent, own_router, jobs__user=users(1, skip=19), jobs__root=str(root))
        path = own_router.create(small.uid)
        sandbox = root / path.rpartition("/")[2]
        server = f"{code}\n{told}\n{SERVER}"
        command = [python_for_all(), "-I", "-c", server, "{socket}"]
        own_router.start(path, command, expose={"preset": "jupyterlab", "path": "keep"})
        assert own_router.get(f"{path}/http/").status_code == 404
        assert own_router.get(f"{path}/logs/stdout").text.split() == ["2"]
        for found in (sandbox / ".pagent.tmp", *sandbox.glob(".pagent.config/*")):
            assert found.stat().st_uid == FIRST + 19
        assert len(list((sandbox / ".pagent.tmp").iterdir())) == 2
        own_router.post(f"{path}/remove")
        wait_until(lambda: not list(Path("/run").glob(f"prouter-0-*/{sandbox.name[:16]}")))
        assert not sandbox.exists()
        small.stop()
    finally:
        shutil.rmtree(closed)


def test_jobs_of_the_agents_own_user_cannot_inspect_agent_and_keeper(own_router: Router) -> None:
    python, packages = python_for_all(), Path(pytest.__file__).parents[1]
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    places = [packages, Path(__file__).parents[2]]
    closed = any(not path.stat().st_mode & 0o001 for place in places for path in (place, *place.parents))
    if version.stdout.strip() != str(sys.version_info[:2]) or closed:
        pytest.skip("no other user may run the agent here")
    with open_folder() as folder:
        argv = ["setpriv", f"--reuid={FIRST}", f"--regid={FIRST}", "--clear-groups", python, "-m", "prouter", "agent"]
        sets = {"client.address": own_router.agents, "state.dir": str(folder / "s"), "jobs.root": str(folder / "j")}
        environment = {"PYTHONPATH": f"{places[1]}:{packages}", "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
        argv += [f"--set={key}={value}" for key, value in sets.items()]
        with tempfile.TemporaryDirectory() as logs:
            agent = Process(argv, Path(logs) / "log", environment)
            try:
                path = own_router.create(agent.wait_line(r"^ready agent=(\S+)")[1])
                pids = [agent.pid, int(next(words_of_log(agent, "keeper_pid")))]
                known = json.dumps({"files": [], "directories": [], "sockets": [], "pids": pids})
                own_router.start(path, [python, "-I", "-c", HOSTILE, known], port_expected_count=0)
                assert own_router.post(f"{path}/wait").json()["exit_code"] == 0
                reached = set(json.loads(own_router.get(f"{path}/logs/stdout").text)["reached"])
            finally:
                agent.stop()
    # What it can do is in docs/security.md.
    allowed = {f"{what} {pid}" for pid in pids for what in ("signal", "limit")}
    assert reached - allowed == {"list neighbours", "make a neighbour", "move the sandbox"}


def test_an_agent_with_wrong_users_does_not_start(work_dir: Path) -> None:
    with pytest.raises(AssertionError, match=r"prouter: jobs\.user: 'root' has the rights of root"):
        start_agent(work_dir / "agent", "127.0.0.1:1", jobs__user="root")


def test_an_agent_that_is_not_root_does_not_start_with_users() -> None:
    def work() -> None:
        with pytest.raises(ConfigError, match="start the agent as root"):
            UserPool("somebody", isolated=True)

    as_ordinary_user(work)
