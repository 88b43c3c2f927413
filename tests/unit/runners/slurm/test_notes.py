"""Lines for people, from the program on the node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = "from prouter.runners.slurm.node.notes import note; note('caf\\udce9'); note('the job goes on')"


def test_a_line_is_written_whatever_is_in_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        assert subprocess.run([sys.executable, "-c", CODE], stdout=log, timeout=30).returncode == 0
    assert (tmp_path / "log").read_text() == "caf\\udce9\nthe job goes on\n"


def test_a_full_file_system_costs_nothing_but_the_line() -> None:
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([sys.executable, "-c", CODE], stdout=full, timeout=30).returncode == 0
