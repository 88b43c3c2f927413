"""``prouter demo``, as ``make demo`` runs it, with the real JupyterLab."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import requests

from tests.support.processes import Process, processes_with, wait_until

DEMO = [sys.executable, "-m", "prouter", "demo"]


@pytest.fixture
def environment(work_dir: Path) -> dict[str, str]:
    """Marks every process of the demonstration, and gives it a place for temporary files and a home of its own."""
    (work_dir / "tmp").mkdir()
    (work_dir / "home").mkdir()
    return {"DEMO_MARK": uuid4().hex, "TMPDIR": str(work_dir / "tmp"), "HOME": str(work_dir / "home")}


@pytest.fixture
def demo(work_dir: Path, environment: dict[str, str]) -> Iterator[Process]:
    """The demonstration, running until it is stopped."""
    process = Process(DEMO, work_dir / "demo.log", environment)
    yield process
    process.stop(60)


def nothing_runs(environment: dict[str, str]) -> bool:
    return not processes_with(environment["DEMO_MARK"])


def files_left(work_dir: Path) -> list[Path]:
    return [*(work_dir / "tmp").iterdir(), *(work_dir / "home").iterdir()]


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    """Listen on the ports that a router uses by default."""
    with ExitStack() as stack:
        for port in (8888, 8889):
            taken = stack.enter_context(socket.socket())
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind(("127.0.0.1", port))
                taken.listen()
            except OSError:
                continue  # by somebody else, which serves as well
        yield


@pytest.mark.usefixtures("usual_ports_taken")
def test_check_runs_a_cell_and_leaves_nothing(work_dir: Path, environment: dict[str, str]) -> None:
    process = Process([*DEMO, "--check"], work_dir / "demo.log", environment)
    try:
        process.wait_line(r"^Python 3\.\d+", 90)
        process.wait_line(r"^6 \* 7 =  42$")
        assert process.popen.wait(60) == 0, process.log_end()
    finally:
        process.stop(60)
    assert nothing_runs(environment)
    assert not files_left(work_dir)


def test_link_needs_no_login_and_ctrl_c_leaves_nothing(
    work_dir: Path, environment: dict[str, str], demo: Process
) -> None:
    link = demo.wait_line(r"^ +(http://127\.0\.0\.1:\d+/jobs/\S+)$", 90)[1]
    page = requests.get(link, timeout=20, allow_redirects=False)
    assert page.status_code == 200
    assert "<title>JupyterLab</title>" in page.text
    demo.popen.send_signal(signal.SIGINT)
    demo.popen.send_signal(signal.SIGINT)
    assert demo.popen.wait(60) == 0, demo.log_end()
    assert nothing_runs(environment)
    assert not files_left(work_dir)


def test_processes_end_with_a_killed_demonstration(environment: dict[str, str], demo: Process) -> None:
    demo.wait_line(r"JupyterLab started", 90)
    demo.kill()
    wait_until(lambda: nothing_runs(environment), 30, "all processes of the demonstration are gone")


def test_missing_jupyterlab_is_said(work_dir: Path, environment: dict[str, str]) -> None:
    code = "import sys; sys.modules['jupyterlab'] = None; from prouter.cli import main; main(['demo'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "install prouter[demo]" in result.stderr
