"""The README's first job, typed as it stands there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import Router
from tests.support.programs import needed

README = Path(__file__).parents[2] / "README.md"


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
