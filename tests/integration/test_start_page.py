"""docs/start.md followed word by word: a router, an agent, jobs, then a second agent that was invited."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.blocks import Block, blocks, environment, run_shell
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.programs import needed

PAGE = Path(__file__).parents[2] / "docs" / "start.md"


class Reader:
    """Somebody with several terminals, whose router has ports of its own.

    Args:
        directory: for state, and for what the reader makes.
    """

    def __init__(self, directory: Path) -> None:
        control, self.server = free_port(), free_port()
        self._directory = directory
        self._environment = environment(
            f"http://127.0.0.1:{control}",
            PROUTER_CONTROL__PORT=str(control),
            PROUTER_CONTROL__WORKERS="1",
            PROUTER_CONTROL__DRAIN_DELAY="0",
            PROUTER_SERVER__PORT=str(self.server),
            XDG_RUNTIME_DIR=str(directory),
        )
        self._terminals: dict[str, Process] = {}
        self.said = ""

    def follow(self, block: Block) -> None:
        """Do what a block says, in the terminal that it is for."""
        if block.mark.startswith("terminal: "):
            self.run(block.mark.partition(": ")[2], block.text)
        elif block.mark == "invitation":
            line = self.type(block.text.replace("prouter invite", f"prouter invite --host 127.0.0.1:{self.server}"))
            for terminal in ("agent", "other"):
                self.run(terminal, line)
        else:
            self.said += self.type(block.text)

    def type(self, text: str) -> str:
        """Run a block to its end; return what it prints."""
        done = run_shell(
            text, self._directory, {**self._environment, "XDG_STATE_HOME": str(self._directory / "router")}
        )
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        return done.stdout

    def run(self, terminal: str, text: str) -> None:
        """Run a block that goes on, in place of what the terminal runs; wait until it is ready."""
        self.interrupt(terminal)
        state = {"XDG_STATE_HOME": str(self._directory / terminal)}
        if "--join" not in text:
            state["PROUTER_CLIENT__ADDRESS"] = f"127.0.0.1:{self.server}"
        command = re.sub(r"^prouter ", "exec prouter ", text, flags=re.MULTILINE)
        process = Process(
            ["bash", "-c", command],
            self._directory / f"{terminal}.log",
            {**self._environment, **state},
            cwd=self._directory,
        )
        self._terminals[terminal] = process
        process.wait_line("^ready ")

    def interrupt(self, terminal: str) -> None:
        """Press Ctrl-C there."""
        if process := self._terminals.pop(terminal, None):
            process.popen.send_signal(signal.SIGINT)
            process.popen.wait(30)

    def leave(self) -> None:
        """Close all terminals."""
        for process in reversed(self._terminals.values()):
            process.stop()


@pytest.fixture
def reader(work_dir: Path) -> Iterator[Reader]:
    reader = Reader(work_dir)
    yield reader
    reader.leave()


@needed("curl")
def test_every_step_works(reader: Reader) -> None:
    steps = blocks(PAGE, "sh")
    assert len(steps) >= 8
    for step in steps:
        reader.follow(step)
    assert "hello from " in reader.said
    assert "<h1>Hello from a job</h1>" in reader.said
    assert len(re.findall(r"^[0-9a-f]{32} .* up ", reader.said, re.MULTILINE)) == 2
    assert reader.said.endswith("here\n")
