"""`make audit` tells apart: nothing is known, something is known, and nothing could be asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[3] / "tools" / "audit.py"
FOUND = "Found 1 known vulnerability in 1 package"
TABLE = "Name Version ID Fix Versions"


@pytest.mark.parametrize(
    ("out", "err", "status", "expected", "told"),
    [
        ("", "No known vulnerabilities found", 0, 0, "no known vulnerability"),
        (TABLE, FOUND.replace("vulnerability", "vulnerabilities"), 1, 1, "make lock"),
        (TABLE, FOUND, 1, 1, "make lock"),
        ("", "ERROR: requests.exceptions.ConnectionError: Max retries exceeded", 1, 2, "where there is a network"),
        ("", "ERROR: falcon: Dependency not found on PyPI and could not be audited", 1, 2, "a mirror answers"),
        ("", "ERROR: the lock file is broken", 1, 2, "nothing was checked: ERROR: the lock file is broken"),
    ],
)
def test_an_audit_is_never_silent(tmp_path: Path, out: str, err: str, status: int, expected: int, told: str) -> None:
    stand_in = f"import sys\nprint({out!r})\nprint({err!r}, file=sys.stderr)\nsys.exit({status})\n"
    (tmp_path / "pip_audit.py").write_text(stand_in)
    done = subprocess.run(
        [sys.executable, str(AUDIT), "requirements.lock"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done
    assert told in done.stdout + done.stderr
