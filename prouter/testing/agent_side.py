"""The agent's side of a runner in a process of its own, which a test can kill.

Its only argument is JSON (`Bench.agent`). It prints one JSON object per line: ``{"kept": number}`` once the runner is
open, ``{"spawned": uid}`` or ``{"queued": uid}`` for each start that is done, ``{"ready": true}``, and then waits to be
killed. ``{"fault": text}`` says at any time that the runner has broken the interface.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import gevent

from prouter.runners import Limits, Spawned, SpawnSpec
from prouter.testing.checked_runner import CheckedRunner
from prouter.testing.recorded_reports import RecordedReports

__all__ = ["main"]


def main() -> None:
    """Open the runner, hold and start the jobs, and wait."""
    told = json.loads(sys.argv[1])
    suite = _suite(told["file"], told["module"], told["class"])
    made = suite.make_runner(suite.setup(Path(told["directory"]), told["keep_for"]))
    runner = CheckedRunner(made, suite.patience)
    _print({"kept": len(runner.open(RecordedReports(_fault)))})
    for job, record in told["held"].items():
        runner.hold(job, record, told["sandboxes"][job])

    def start(fields: dict[str, Any]) -> None:
        placed = runner.spawn(SpawnSpec(**{**fields, "limits": Limits(*fields["limits"])}), told["wait"])
        _print({"spawned" if isinstance(placed, Spawned) else "queued": placed.job})

    gevent.joinall([gevent.spawn(start, fields) for fields in told["jobs"]], raise_error=True)
    for job, record in told["records"].items():
        runner.update_record(job, record)
    _print({"ready": True})
    gevent.sleep(3600)


def _suite(file: str, module: str, name: str) -> Any:
    """The test class, from the file in which it was collected."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None, f"{file} is a Python file"
        assert spec.loader is not None, f"{file} is a Python file"
        found = importlib.util.module_from_spec(spec)
        sys.modules[module] = found
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _fault(text: str) -> None:
    _print({"fault": text})


def _print(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
