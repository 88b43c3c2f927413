"""Somebody who follows a page of the documentation word by word, in terminals of their own."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

from tests.support.blocks import Block, environment, run_shell
from tests.support.processes import Process

__all__ = ["Reader"]


class Reader:
    """Somebody with several terminals, who does what a page says.

    Args:
        directory: for state, and for what the reader makes.
        url: of the router's API.
        address: of the router for agents, ``host:port``.
        more: variables of all terminals.

    Attributes:
        said: what all blocks have printed that ran to their end.
    """

    def __init__(self, directory: Path, url: str, address: str, **more: str) -> None:
        self._directory = directory
        self._address = address
        self._environment = environment(url, XDG_RUNTIME_DIR=str(directory), **more)
        self._terminals: dict[str, Process] = {}
        self.said = ""

    def follow(self, block: Block) -> None:
        """Do what a block says, in the terminal that it is for."""
        if block.mark.startswith("terminal: "):
            self.run(block.mark.partition(": ")[2], block.text)
        elif block.mark == "invitation":
            line = self.type(block.text.replace("prouter invite", f"prouter invite --host {self._address}"))
            for terminal in ("agent", "other"):
                self.run(terminal, line)
        elif block.language == "python":
            self.said += self.type(f"{sys.executable} -W error - <<'THE END'\n{block.text}THE END\n")
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
            state["PROUTER_CLIENT__ADDRESS"] = self._address
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
