"""A minimal agent for tests that kill it: opens a runner, starts the jobs it is told to, prints a line, and waits.

Its argument is JSON: ``state_dir``, ``keep_for``, ``cgroup``, ``held`` ({uid: sandbox}) and ``jobs`` ([SpawnSpec
fields]). Its line is JSON too: the ``keeper``'s pid and the first ``pids`` by job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gevent

from prouter.runners import Setup, SpawnSpec
from prouter.runners.local.runner import LocalRunner
from tests.support.runners import ExitReports


def main() -> None:
    """Run until killed."""
    told = json.loads(sys.argv[1])
    state_dir = Path(told["state_dir"])
    runner = LocalRunner(Setup(state_dir, state_dir.parent, told["keep_for"], told["cgroup"]))
    runner.open(ExitReports(lambda end: None))
    for job, sandbox in told["held"].items():
        runner.hold(job, {"held": True}, sandbox)
    pids = {spec["job"]: runner.spawn(SpawnSpec(**spec), 0).pid for spec in told["jobs"]}
    sys.stdout.write(json.dumps({"keeper": runner.keeper_pid, "pids": pids}) + "\n")
    sys.stdout.flush()
    gevent.sleep(3600)


main()
