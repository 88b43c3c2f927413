"""``prouter up`` with real processes: output, restarts, shutdown, refusals."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.ports import free_port
from tests.support.processes import Process, Router, processes_with, start_router, wait_until
from tests.support.raw_http import Raw

PROJECT = Path(__file__).parents[2]
Launch = Callable[..., Any]
Up = Callable[..., Process]


@pytest.fixture(scope="module")
def lasting(short_dir: Path) -> Iterator[Router]:
    """A router with a unix socket, for tests that leave it working."""
    directory = short_dir / "lasting"
    router = start_router(directory, control__unix=str(directory / "http.sock"))
    yield router
    assert router.stop() == 0


@pytest.fixture
def up(work_dir: Path) -> Iterator[Up]:
    """``up(*arguments, environment=, cwd=)``: a ``prouter up`` that may fail to start; ended after the test."""
    started: list[Process] = []

    def start(*arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> Process:
        argv = [sys.executable, "-m", "prouter", "up", "--set", "control.drain_delay=0", *arguments]
        started.append(Process(argv, work_dir / f"up{len(started)}.log", environment, cwd))
        return started[-1]

    yield start
    for process in started:
        process.popen.terminate()
    for process in started:
        process.stop()


def answers_at(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def answers(router: Router) -> bool:
    return answers_at(router.url)


def worker_pids(router: Router) -> set[int]:
    parent = router.child("gunicorn")
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


def ends_with_config_error(process: Process) -> str:
    assert process.popen.wait(20) == 2
    text = process.log_end()
    assert "Traceback" not in text
    return text


# -- running ----------------------------------------------------------------------------------------------------


def test_it_tells_the_ports_it_took_and_answers_there(lasting: Router) -> None:
    info = lasting.get("/info").json()
    assert info["auth"]["uid"]
    host, port = lasting.agents.split(":")
    with socket.create_connection((host, int(port)), 5):
        pass


def test_a_killed_broker_is_back_on_the_same_port_for_agents(lasting: Router) -> None:
    uid = lasting.get("/info").json()["auth"]["uid"]
    for _ in range(3):
        before = lasting.child("broker")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda before=before: lasting.child("broker") != before and answers(lasting))  # type: ignore[misc]
    assert lasting.get("/info").json()["auth"]["uid"] == uid
    host, port = lasting.agents.split(":")
    with socket.create_connection((host, int(port)), 5):
        pass


def test_a_terminated_broker_is_back_too(lasting: Router) -> None:
    before = lasting.child("broker")
    os.kill(before, signal.SIGTERM)
    wait_until(lambda: lasting.child("broker") != before and answers(lasting))


def test_no_connection_is_refused_while_gunicorn_comes_back(lasting: Router) -> None:
    before = lasting.child("gunicorn")
    os.kill(before, signal.SIGKILL)
    while lasting.child("gunicorn") == before:
        socket.create_connection((lasting.url.split("/")[-1].split(":")[0], int(lasting.url.split(":")[-1])), 5).close()
    assert lasting.get("/info").status_code == 200


def test_the_unix_socket_outlives_a_gunicorn_that_was_terminated(lasting: Router) -> None:
    before = lasting.child("gunicorn")
    os.kill(before, signal.SIGTERM)
    wait_until(lambda: lasting.child("gunicorn") != before and answers(lasting))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(lasting.directory / "http.sock"))
        sock.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 " in sock.recv(100)


def test_a_killed_worker_is_replaced(lasting: Router) -> None:
    wait_until(lambda: len(worker_pids(lasting)) == 2)
    victim = min(worker_pids(lasting))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(worker_pids(lasting)) == 2 and victim not in worker_pids(lasting))


def test_ttin_and_ttou_change_the_number_of_workers(lasting: Router) -> None:
    wait_until(lambda: len(worker_pids(lasting)) == 2)
    lasting.popen.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(worker_pids(lasting)) == 3)
    lasting.popen.send_signal(signal.SIGTTOU)
    wait_until(lambda: len(worker_pids(lasting)) == 2)


def test_run_directory_and_configuration_are_private(lasting: Router) -> None:
    run = lasting.directory / "run"
    assert run.stat().st_mode & 0o777 == 0o700
    assert (lasting.directory / "state").stat().st_mode & 0o777 == 0o700
    assert (run / "router.yaml").stat().st_mode & 0o777 == 0o600
    assert (lasting.directory / "http.sock").stat().st_mode & 0o777 == 0o660


def test_a_router_without_an_endpoint_for_agents_says_so(up: Up, work_dir: Path) -> None:
    state = f"state.dir={work_dir / 's'}"
    process = up("--set", "control.port=0", "--set", state, "--set", "server.enabled=False")
    url = process.wait_line(r"^ready control=(\S+) agents=none$")[1]
    broker = int(re.findall(r"child=broker pid=(\d+)", process.log.read_text())[0])
    os.kill(broker, signal.SIGKILL)
    wait_until(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 200)
    wait_until(lambda: len(re.findall(r"child=broker pid=", process.log.read_text())) == 2)


# -- reload -----------------------------------------------------------------------------------------------------


def test_hup_takes_a_new_configuration_and_refuses_a_wrong_one(up: Up, work_dir: Path) -> None:
    file = work_dir / "router.yaml"
    text = f"control: {{port: 0, workers: 1}}\nserver.port: 0\nstate.dir: {work_dir / 's'}\n"
    file.write_text(text)
    process = up("--config", str(file))
    url = process.wait_line(r"^ready control=(\S+)")[1]
    gunicorn = int(re.findall(r"child=gunicorn pid=(\d+)", process.log.read_text())[0])
    children = Path(f"/proc/{gunicorn}/task/{gunicorn}/children")
    first = set(children.read_text().split())
    assert len(first) == 1

    file.write_text(text.replace("workers: 1", "workers: many"))
    process.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: f"event=reload_refused error={file}:1: control.workers" in process.log_end())
    assert requests.get(f"{url}/readyz", timeout=5).status_code == 200
    assert set(children.read_text().split()) == first

    file.write_text(text.replace("workers: 1", "workers: 3"))
    process.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: len(children.read_text().split()) == 3 and not first & set(children.read_text().split()))
    wait_until(lambda: requests.get(f"{url}/readyz", timeout=5).status_code == 200)


# -- the end ----------------------------------------------------------------------------------------------------


def test_term_drains_and_leaves_nothing(launch: Launch) -> None:
    router: Router = launch(start_router, control__drain_delay=0.5)
    router.popen.terminate()
    wait_until(lambda: router.get("/readyz").status_code == 503, what="not ready any more")
    assert router.popen.wait(20) == 0
    with pytest.raises(requests.ConnectionError):
        router.get("/readyz")
    assert processes_with(str(router.directory)) == []
    assert not (router.directory / "run" / "router.yaml").exists()


def test_idle_connections_that_clients_never_close_do_not_delay_the_end(launch: Launch) -> None:
    router: Router = launch(start_router, control__drain_timeout=60)
    with Raw(router.url) as idle:
        idle.request("GET", "/healthz")
        assert idle.read_until(b"}").endswith(b'{"status":"ok"}')
        router.popen.terminate()
        assert router.popen.wait(30) == 0
        assert idle.read_to_end() == b""


def test_shutdown_over_http_ends_it_as_well(launch: Launch) -> None:
    router: Router = launch(start_router)
    assert router.post("/shutdown").status_code == 200
    assert router.popen.wait(20) == 0
    assert processes_with(str(router.directory)) == []


def test_it_can_be_stopped_while_it_starts(up: Up, work_dir: Path) -> None:
    process = up("--set", "control.port=0", "--set", "server.port=0", "--set", f"state.dir={work_dir / 's'}")
    wait_until(lambda: "Booting worker" in process.log_end())
    process.popen.terminate()
    assert process.popen.wait(10) == 0


def test_a_second_term_cuts_the_drain_short(launch: Launch) -> None:
    router: Router = launch(start_router, control__drain_delay=60, control__drain_timeout=60)
    with requests.get(f"{router.url}/events", stream=True, timeout=30):
        started = time.monotonic()
        for phase in ("event=draining", "Handling signal: term", None):
            router.popen.terminate()
            if phase:
                wait_until(lambda phase=phase: phase in router.log_end())  # type: ignore[misc]
        assert router.popen.wait(20) == 0
    assert time.monotonic() - started < 20


def test_a_killed_supervisor_leaves_no_process(launch: Launch) -> None:
    router: Router = launch(start_router)
    assert len(processes_with(str(router.directory))) >= 4
    router.kill()
    wait_until(lambda: processes_with(str(router.directory)) == [])


def test_systemd_hears_when_it_is_ready_and_when_it_stops(up: Up, work_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(work_dir / "notify"))
        manager.settimeout(30)
        sets = [f"state.dir={work_dir / 's'}", "control.port=0", "server.port=0"]
        process = up(
            *(part for item in sets for part in ("--set", item)), environment={"NOTIFY_SOCKET": manager.getsockname()}
        )
        assert manager.recv(100) == b"READY=1"
        process.popen.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        assert process.popen.wait(20) == 0
        manager.settimeout(0)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


# -- directories ------------------------------------------------------------------------------------------------


def test_two_routers_of_one_user_do_not_collide(up: Up, work_dir: Path) -> None:
    home = {"XDG_STATE_HOME": str(work_dir / "state"), "XDG_RUNTIME_DIR": str(work_dir / "run")}
    home |= dict.fromkeys(("STATE_DIRECTORY", "RUNTIME_DIRECTORY"), "")
    ports = ("--set", "control.port=0", "--set", "server.port=0")
    routers = [up(*ports, environment=home) for _ in range(2)]
    uids = set()
    for process in routers:
        url = process.wait_line(r"^ready control=(\S+)")[1]
        uids.add(requests.get(f"{url}/info", timeout=5).json()["auth"]["uid"])
    assert len(uids) == 2
    for kind in ("state", "run"):
        assert sorted(path.name for path in (work_dir / kind / "prouter").iterdir()) == ["router-0", "router-0.2"]


def test_a_state_directory_in_use_is_refused(lasting: Router, up: Up) -> None:
    text = ends_with_config_error(up("--set", "control.port=0", "--set", f"state.dir={lasting.directory / 'state'}"))
    assert "is in use by another router; give each its own" in text


def test_a_run_directory_in_use_is_refused(lasting: Router, up: Up, work_dir: Path) -> None:
    directories = ("--set", f"state.dir={work_dir / 's'}", "--set", f"state.run_dir={lasting.directory / 'run'}")
    assert "state.run_dir: " in ends_with_config_error(up("--set", "control.port=0", *directories))


def test_a_run_directory_too_deep_for_sockets_is_refused(up: Up, work_dir: Path) -> None:
    deep = work_dir / ("d" * 100)
    assert "too long for unix sockets" in ends_with_config_error(up("--set", f"state.run_dir={deep}"))


def test_gunicorn_settings_lying_about_are_not_read(up: Up, work_dir: Path) -> None:
    (work_dir / "cwd").mkdir()
    (work_dir / "cwd" / "gunicorn.conf.py").write_text("raise SystemExit(9)")
    (work_dir / "cwd" / "falcon.py").write_text("raise SystemExit(9)")
    sets = [f"state.dir={work_dir / 's'}", "control.port=0", "server.port=0"]
    arguments = [part for item in sets for part in ("--set", item)]
    process = up(*arguments, cwd=work_dir / "cwd", environment={"GUNICORN_CMD_ARGS": "--workers=x"})
    process.wait_line(r"^ready ")


# -- refusals ---------------------------------------------------------------------------------------------------


def test_other_machines_are_not_served_without_encryption_or_tokens(up: Up) -> None:
    assert "0.0.0.0 can be reached from other" in ends_with_config_error(up("--set", "control.interface=0.0.0.0"))
    assert "accept_tokens is empty" in ends_with_config_error(
        up("--set", "server.interface=0.0.0.0", "--set", "server.insecure=True")
    )


def test_a_control_port_in_use_is_refused(up: Up, lasting: Router, work_dir: Path) -> None:
    sets = ("--set", f"control.port={lasting.url.rpartition(':')[2]}", "--set", f"state.dir={work_dir / 's'}")
    assert "control.interface, control.port: cannot listen on 127.0.0.1" in ends_with_config_error(up(*sets))


def test_a_unix_socket_in_use_is_refused_and_left_alone(up: Up, lasting: Router, work_dir: Path) -> None:
    path = lasting.directory / "http.sock"
    sets = ("--set", "control.port=0", "--set", f"control.unix={path}", "--set", f"state.dir={work_dir / 's'}")
    assert f"control.unix: cannot listen on {path}" in ends_with_config_error(up(*sets))
    assert path.is_socket()


def test_an_agent_port_in_use_ends_it_at_once(up: Up, lasting: Router, work_dir: Path) -> None:
    port = lasting.agents.rpartition(":")[2]
    process = up(
        "--set", "control.port=0", "--set", f"server.port={port}", "--set", f"state.dir={work_dir / 's'}"
    )  # fmt: skip
    assert process.popen.wait(20) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in process.log_end()
    assert "child_given_up child=broker" in process.log_end()


# -- separate services ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [str(PROJECT / "gunicorn.conf.py"), "python:prouter.web.gunicorn.conf"])
def test_broker_and_gunicorn_run_as_separate_services(work_dir: Path, settings: str) -> None:
    file, port = work_dir / "router.yaml", free_port()
    text = f"control: {{port: {port}, workers: 1}}\nserver.port: 0\n"
    text += f"state: {{dir: {work_dir / 'state'}, run_dir: {work_dir / 'run'}}}\n"
    file.write_text(text)
    environment = {"PROUTER_CONFIG": str(file)}
    broker = Process([sys.executable, "-m", "prouter", "broker"], work_dir / "broker.log", environment)
    gunicorn = Process([sys.executable, "-m", "gunicorn", "-c", settings], work_dir / "api.log", environment)
    children = Path(f"/proc/{gunicorn.pid}/task/{gunicorn.pid}/children")
    try:
        assert broker.wait_line(r"^ready agents=(tcp://127.0.0.1:\d+)$")
        wait_until(lambda: answers_at(f"http://127.0.0.1:{port}"))
        assert len(children.read_text().split()) == 1

        second = subprocess.run(
            [sys.executable, "-m", "prouter", "broker"],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert "is in use by another router" in second.stderr

        for workers in (2, 3):
            file.write_text(text.replace("workers: 1", f"workers: {workers}"))
            gunicorn.popen.send_signal(signal.SIGHUP)
            wait_until(lambda workers=workers: len(children.read_text().split()) == workers)  # type: ignore[misc]

        assert requests.post(f"http://127.0.0.1:{port}/shutdown", timeout=5).status_code == 200
        assert broker.popen.wait(20) == 0
    finally:
        assert gunicorn.stop() == 0, gunicorn.log_end()
        broker.stop()
