"""The README's examples, typed as they stand there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocks import blocks, environment, run_shell
from tests.support.processes import Router, start_router
from tests.support.programs import needed

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def lonely(short_dir: Path) -> Iterator[Router]:
    """A router without agents."""
    router = start_router(short_dir / "lonely", workers=1)
    yield router
    router.stop()


@needed("curl")
@pytest.mark.usefixtures("agent")
def test_from_the_command_line(router: Router, tmp_path: Path) -> None:
    [block] = blocks(README, "sh")
    done = run_shell(block.text, tmp_path, environment(router.url))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("42\n")
    assert "\nhello from a job\n" in done.stdout
    assert "RUNNING" in done.stdout
    assert "GET /hello.txt" in done.stdout


@pytest.mark.usefixtures("agent")
def test_from_python(router: Router, tmp_path: Path) -> None:
    [block] = blocks(README, "python")
    assert len(block.text.strip().splitlines()) <= 21
    program = block.text.replace("http://127.0.0.1:8888", router.url)
    assert program != block.text
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment(router.url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n42\n"), done.stderr


def test_without_an_agent_the_first_command_says_why(lonely: Router, tmp_path: Path) -> None:
    [block] = blocks(README, "sh")
    done = run_shell(block.text, tmp_path, environment(lonely.url))
    assert done.returncode != 0
    assert "agent" in done.stderr
    assert "Traceback" not in done.stderr
