"""The scripts of deploy/container/compose.yaml, run by hand: an agent joins by the invitation that a service stored."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import Process, start_router

COMPOSE = Path(__file__).parents[2] / "deploy" / "container" / "compose.yaml"
JOIN = "/var/lib/prouter-join"
NO_WAIT = {"PROUTER_CLIENT__RECONNECT_DELAY": "0.1", "PROUTER_CLIENT__RECONNECT_DELAY_MAX": "0.2"}


def test_the_agent_joins_and_joins_again_by_the_stored_command(work_dir: Path, launch: Callable[..., Any]) -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    router = launch(start_router, server__curve=True)
    volume = work_dir / "join"
    volume.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    [script] = services["invitation"]["command"]
    script = script.replace("$$", "$").replace(JOIN, str(volume)).replace("router:8889", router.agents)
    state = {"PROUTER_STATE__DIR": str(router.directory / "state"), "PROUTER_SERVER__CURVE": "true"}
    for _ in range(2):
        subprocess.run(
            [*services["invitation"]["entrypoint"], script], env={**os.environ, **state, "PATH": path}, check=True
        )
    stored = volume / "agent"
    assert [*volume.iterdir()] == [stored]
    assert stored.stat().st_mode & 0o777 == 0o600

    [shell, file] = services["agent"]["entrypoint"][-2:]
    environment = {"PROUTER_STATE__DIR": str(work_dir / "agent"), "PATH": path, **NO_WAIT}
    uids = set()
    for number in range(2):
        agent = Process([shell, file.replace(JOIN, str(volume))], work_dir / f"agent{number}.log", environment)
        try:
            uids.add(agent.wait_line(r"^ready agent=(\S+)")[1])
        finally:
            agent.stop()
    assert len(uids) == 1
