"""The blocks of docs/python.md run as they stand, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.processes import Agent, Router

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_every_block_runs(router: Router, agent: Agent, tmp_path: Path) -> None:
    before = {job["uid"] for job in router.get("/jobs").json()["jobs"]}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 9
    program = "\n".join(f"print('== {number}')\n{block}" for number, block in enumerate(blocks))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PROUTER_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={**kept, "PROUTER_URL": router.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    for text in (
        "added 1000 numbers",
        "stopped",
        "b'2\\n3\\n' ends at 6",
        "<h1>Hello</h1>",
        "job.removed",
        "[0, 1, 2]",
    ):
        assert text in said, said
    assert {job["uid"] for job in router.get("/jobs").json()["jobs"]} == before
