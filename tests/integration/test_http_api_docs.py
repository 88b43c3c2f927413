"""The examples of docs/http-api.md run as they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.processes import Agent, Router
from tests.support.programs import needed

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"


@needed("curl")
def test_every_example_runs(router: Router, agent: Agent, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 8
    script = "set -eu -o pipefail\n" + "\n".join(f"echo '== {number}'\n{block}" for number, block in enumerate(blocks))
    script += "\nfor path in $JOB $RUN; do curl -fsSX POST $path/remove -o /dev/null; done\n"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"ROUTER": router.url, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    assert "world" in said
    assert "304" in said
    assert "202" in said
    assert "SIGTERM" in said
    assert "<h1>Hello</h1>" in said
    assert "src/main.py" in said
    assert "line 1\nline 2\nline 3\n" in said
    assert "event: end" in said
