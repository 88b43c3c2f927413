"""``make audit``: look for known vulnerabilities in the versions that a lock file installs.

pip-audit asks PyPI's advisory database about each version. Exit status: 0 none is known, 1 some are, 2 the database
could not be asked.
"""

from __future__ import annotations

import subprocess
import sys

__all__ = ["main"]

_SECONDS = 30
_NO_ANSWER = (
    "not found on PyPI",
    "ConnectionError",
    "Max retries",
    "ServiceError",
    "Timeout",
    "Name or service",
    "Failed to establish",
)


def main(lock: str) -> int:
    """Audit the lock file; return the exit status."""
    # The lock file is complete: nothing has to be resolved or downloaded. Without --strict, what the database does not
    # know is passed over, and behind a mirror that would be everything.
    command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--disable-pip", "--no-deps", "--strict"]
    command += ["--progress-spinner", "off", "--timeout", str(_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, end="")
    if done.returncode == 0:
        print(f"audit: no known vulnerability in what {lock} installs on this platform")
        return 0
    if done.stdout.strip() and "known vulnerabilit" in done.stdout + done.stderr:
        print(done.stderr, end="", file=sys.stderr)
        print(f"audit: raise these versions with 'make lock', or in {lock} alone", file=sys.stderr)
        return 1
    reason = done.stderr.strip().splitlines()[-1:] or [f"pip-audit ended with status {done.returncode}"]
    print(f"audit: nothing was checked: {reason[0]}", file=sys.stderr)
    if any(word in done.stderr for word in _NO_ANSWER):
        print(
            "audit: the advisory database at https://pypi.org does not answer, or a mirror answers in its place; "
            "run this where there is a network",
            file=sys.stderr,
        )
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
