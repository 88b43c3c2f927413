"""A minimal agent for tests that kill it: opens a runner, starts the jobs it is told to, prints a line, and waits.

Its argument is JSON: ``state_dir``, ``keep_for``, ``cgroup``, ``held`` ({uid: sandbox}) and ``jobs`` ([SpawnSpec
fields]). Its line is JSON too: the ``keeper``'s pid and the first ``pids`` by job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gevent

from prouter.agent.jobs.local_runner import LocalRunner
from prouter.agent.jobs.runner import SpawnSpec


def main() -> None:
    """Run until killed."""
    told = json.loads(sys.argv[1])
    runner = LocalRunner(
        Path(told["state_dir"]), keep_for=told["keep_for"], cgroup=told["cgroup"], on_exit=lambda end: None
    )
    runner.open()
    for job, sandbox in told["held"].items():
        runner.hold(job, {"held": True}, sandbox)
    pids = {spec["job"]: runner.spawn(SpawnSpec(**spec)).pid for spec in told["jobs"]}
    sys.stdout.write(json.dumps({"keeper": runner.keeper_pid, "pids": pids}) + "\n")
    sys.stdout.flush()
    gevent.sleep(3600)


main()
