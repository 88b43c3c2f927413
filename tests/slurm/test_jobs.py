"""Jobs on a Slurm cluster, as users see them: exact ends, servers on loopback, the queue, limits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.slurm.cluster import NEEDS_SLURM
from tests.slurm.site import WHOLE_NODE, Site, environment_of, lives, running_site
from tests.support.processes import wait_until

pytestmark = NEEDS_SLURM

SERVER = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(jobs__slurm__allow=["--exclusive", "--nodelist"]) as site:
        yield site


@pytest.fixture(scope="module")
def timed(site: Site) -> str:
    """A job whose time is up soon: Slurm looks at that every 30 seconds, while other tests run."""
    path = site.start("sleep", "100")
    site.cluster.run("scontrol", "update", f"jobid={site.number(path)}", "EndTime=now+1")
    return path


@pytest.fixture(autouse=True)
def nothing_left(site: Site, timed: str) -> Iterator[None]:
    """No test leaves jobs that take the next one's nodes."""
    yield
    site.remove_all(but=timed)


def test_exact_exit_status_output_and_node(site: Site) -> None:
    path = site.create("a name; with signs")
    site.router.post(f"{path}/file/in.txt", None)
    script = "pwd; echo to stderr >&2; echo $SLURM_JOB_ID $PROUTER_JOB_ID; exit 42"
    site.starting(path, "sh", "-c", script)
    info = site.until(path, state="FINISHED")
    assert (info["exit_code"], info["signal"], info["reason"], info["phase"]) == (42, None, "exited", "exited")
    assert info["node"] in site.cluster.nodes
    uid = path.rpartition("/")[2]
    lines = site.router.get(f"{path}/logs/stdout").text.splitlines()
    assert lines == [str(site.cluster.shared / "jobs" / uid), f"{site.number(path)} {uid}"]
    assert site.router.get(f"{path}/logs/stderr").text == "to stderr\n"
    site.remove(path)
    wait_until(lambda: not site.files(path).exists())


def test_a_signal_is_told_by_its_name(site: Site) -> None:
    path = site.start("sh", "-c", "kill -SEGV $$")
    info = site.until(path, state="FINISHED")
    assert (info["exit_code"], info["signal"], info["reason"]) == (None, "SIGSEGV", "signaled")
    site.remove(path)


def test_a_server_on_loopback_of_its_node_is_served(site: Site) -> None:
    path = site.start(*SERVER, "{port}", expose={"port": "assign"}, slurm={"extra": ["--nodelist=n2"]})
    info = site.info(path)
    assert (info["state"], info["phase"], info["node"]) == ("RUNNING", "ready", "n2")
    page = site.router.get(f"{path}/http/")
    assert page.status_code == 200
    assert "Directory listing" in page.text
    port = info["ports"][0]
    assert site.router.get(f"{path}/port/{port}/").status_code in (200, 404)
    assert site.router.post(f"{path}/stop", {"grace": 5}).json()["reason"] == "stopped"
    assert not lives(info["pid"])
    site.remove(path)


@pytest.mark.parametrize("port", ["detect", "unix", "notify"])
def test_servers_are_found_on_their_node(site: Site, port: str) -> None:
    script = {
        "detect": "import http.server as h; h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler).serve_forever()",
        "unix": (
            "import sys, socketserver, http.server as h\n"
            "class S(socketserver.UnixStreamServer):\n"
            "    def get_request(self): return super().get_request()[0], ('job', 0)\n"
            "S(sys.argv[1], h.SimpleHTTPRequestHandler).serve_forever()"
        ),
        "notify": (
            "import os, urllib.request as u, http.server as h\n"
            "s = h.HTTPServer(('127.0.0.1', 0), h.SimpleHTTPRequestHandler)\n"
            "u.urlopen(os.environ['DA__PAGENT__JOB_ENDPOINT'] + '?job_id=' + os.environ['PROUTER_JOB_ID']"
            " + '&port=%d' % s.server_port)\n"
            "s.serve_forever()"
        ),
    }[port]
    arguments = ["{socket}"] if port == "unix" else []
    options: dict[str, Any] = {"port_expected_count": 1} if port == "notify" else {"expose": {"port": port}}
    path = site.start(sys.executable, "-c", script, *arguments, **options)
    assert site.info(path)["phase"] == "ready"
    assert site.router.get(f"{path}/http/").status_code == 200
    site.remove(path)


def test_bytes_pass_in_both_directions_until_each_ends(site: Site) -> None:
    script = (
        "import os, socket\n"
        "s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))\n"
        "while True:\n"
        "    c, _ = s.accept()\n"
        "    n = 0\n"
        "    head = b''\n"
        "    while b'\\r\\n\\r\\n' not in head and (d := c.recv(65536)): head += d\n"
        "    if not head: continue\n"
        "    n = len(head.split(b'\\r\\n\\r\\n', 1)[1])\n"
        "    while n < 3_000_000: n += len(c.recv(65536))\n"
        "    c.sendall(b'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n' + b'x' * 5_000_000)\n"
        "    c.close()\n"
    )
    path = site.start(sys.executable, "-c", script, expose={"port": "assign", "ready": "tcp"})
    for _ in range(3):
        answer = site.router.post(f"{path}/http/", data=b"y" * 3_000_000)
        assert answer.content == b"x" * 5_000_000
    site.remove(path)


def test_another_programs_port_is_not_served(site: Site) -> None:
    path = site.start("sleep", "100")
    router_port = site.router.url.rpartition(":")[2]
    assert site.router.get(f"{path}/port/{router_port}/").status_code == 404
    site.remove(path)


def test_queued_start_is_told_with_slurms_reason_and_runs_when_its_turn_comes(site: Site) -> None:
    fillers = site.fill(slurm={"time": 600})
    path = site.create()
    info = site.starting(path, "sh", "-c", "exit 5", wait=0.5, resources=WHOLE_NODE)
    assert (info["state"], info["phase"]) == ("NEW", "queued")
    waiting = wait_until(lambda: (q := site.info(path)["queue"]) and q["expected_start"] and q["reason"] and q, 20)
    assert waiting["reason"] in ("Resources", "Priority")
    assert site.router.post(f"{path}/signal", {"signal": "USR1"}).status_code == 409
    site.remove(fillers[0])
    info = site.until(path, state="FINISHED")
    assert (info["exit_code"], info["reason"]) == (5, "exited")
    site.remove(path, fillers[1])


def test_stop_and_removal_of_a_queued_start(site: Site) -> None:
    fillers = site.fill()
    stopped, removed, cancelled = (site.start("true", wait=0, resources=WHOLE_NODE) for _ in range(3))
    wait_until(lambda: site.state(stopped) == site.state(removed) == site.state(cancelled) == "PENDING")
    assert site.router.post(f"{stopped}/stop", {"grace": 5}).json()["reason"] == "stopped"
    site.cluster.run("scancel", site.number(cancelled))
    site.remove(removed)
    info = site.until(cancelled, state="FINISHED")
    assert (info["reason"], info["exit_code"], info["signal"]) == ("cancelled", None, None)
    wait_until(lambda: {site.state(one) for one in (stopped, removed, cancelled)} == {"CANCELLED"})
    site.remove(stopped, cancelled, *fillers)


def test_scancel_from_outside_is_the_reason(site: Site) -> None:
    path = site.start("sleep", "100")
    site.cluster.run("scancel", site.number(path))
    info = site.until(path, state="FINISHED")
    assert (info["reason"], info["signal"]) == ("cancelled", "SIGTERM")
    site.remove(path)


def test_refusals_come_in_slurms_words(site: Site) -> None:
    path = site.create()
    body = {"args": ["true"], "env": {}, "slurm": {"partition": "nowhere"}}
    answer = site.router.post(f"{path}/start", body)
    assert answer.status_code == 502
    assert "invalid partition" in answer.json()["detail"].lower()
    for field, wrong in (("partition", "a b"), ("colour", "red"), ("extra", ["--exclude=n1"])):
        path = site.create()
        answer = site.router.post(f"{path}/start", {**body, "slurm": {field: wrong}})
        assert answer.status_code == 400
        assert f"slurm.{field}" in answer.json()["detail"]
        site.remove(path)


def test_a_command_that_does_not_exist(site: Site) -> None:
    path = site.create()
    answer = site.router.post(f"{path}/start", {"args": ["no-such-program"], "env": {}})
    assert answer.status_code == 502
    assert "'no-such-program' was not found" in answer.json()["detail"]
    site.remove(path)


def test_options_reach_slurm(site: Site) -> None:
    path = site.start(
        "sleep", "100", resources={"cpus": 2, "memory": 200 << 20}, slurm={"partition": "urgent", "time": "0:10:00"}
    )
    shown = site.cluster.run("scontrol", "-o", "show", "job", site.number(path))
    for text in ("NumCPUs=2", "MinMemoryNode=200M", "Partition=urgent", "TimeLimit=00:10:00", "JobName=prouter-test-"):
        assert text in shown
    environment = environment_of(site.info(path)["pid"])
    assert environment["SLURM_CPUS_PER_TASK"] == "2"
    site.remove(path)


def test_slurm_ends_a_job_that_uses_more_memory_than_it_asked_for(site: Site) -> None:
    path = site.start(
        sys.executable, "-c", "import time; x = b'1' * 300_000_000; time.sleep(100)", resources={"memory": 60 << 20}
    )
    assert site.until(path, state="FINISHED")["reason"] == "memory"
    site.remove(path)


def test_a_preempted_job(site: Site) -> None:
    path = site.start("sleep", "100", slurm={"partition": "scavenge"})
    urgent = site.start("sleep", "100", slurm={"partition": "urgent", "nodes": 2, "extra": ["--exclusive"]})
    assert site.until(path, state="FINISHED")["reason"] == "preempted"
    site.remove(path, urgent)


def test_the_time_limit_of_slurm_is_the_reason(site: Site, timed: str) -> None:
    info = site.until(timed, deadline=80, state="FINISHED")
    assert (info["reason"], info["signal"]) == ("walltime", "SIGTERM")


def test_logs_follow(site: Site) -> None:
    path = site.start("sh", "-c", "echo first; while [ ! -e go ]; do sleep 0.05; done; echo last")
    with site.router.get(f"{path}/logs/stdout", params={"follow": 1}, stream=True) as answer:
        lines = answer.iter_lines()
        assert next(lines) == b"first"
        (site.cluster.shared / "jobs" / path.rpartition("/")[2] / "go").touch()
        assert list(lines) == [b"last"]


def test_what_the_creation_asked_for_is_reserved(site: Site) -> None:
    """Also more than the agent's own machine has, and of any agent."""
    (connection,) = site.router.get("/connections").json()["connections"]
    assert connection["resources"]["cpus"] is None
    agent = {"type": "any", "resources": {"cpus": 3.5, "memory": 200 << 20}}
    path = site.router.post("/jobs/create", {"name": "test", "agent": agent}).json()["path"]
    site.starting(path, "sleep", "100", limits={"timeout": 500})
    shown = site.cluster.run("scontrol", "-o", "show", "job", site.number(path))
    for text in ("NumCPUs=4", "MinMemoryNode=200M", "TimeLimit=00:10:00"):
        assert text in shown
    huge = {"type": "any", "resources": {"cpus": 1000}}
    path = site.router.post("/jobs/create", {"name": "test", "agent": huge}).json()["path"]
    assert site.starting(path, "true", wait=0)["phase"] == "queued"
