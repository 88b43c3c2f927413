"""The README's first job, typed as it stands there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def test_first_job(router: Router) -> None:
    [commands] = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert "router=http://127.0.0.1:8888" in commands
    script = commands.replace("http://127.0.0.1:8888", router.url)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("hello from a job\n{")
    assert re.search(r'"state": ?"RUNNING"', result.stdout)
    assert "GET /hello.txt" in result.stdout


@needed("curl")
def test_first_job_without_an_agent_says_why(lonely: Router) -> None:
    [commands] = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    script = commands.replace("http://127.0.0.1:8888", lonely.url)
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode != 0
    assert "agent" in result.stderr
    assert "Traceback" not in result.stderr
