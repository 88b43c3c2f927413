"""The commands, by what they are about. ``prouter --help`` shows them from here, without importing each of them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COMMANDS", "SECTIONS", "Entry"]

_JOBS, _FILES, _ROUTER, _ACCESS = SECTIONS = ("Jobs", "Files", "Routers and agents", "Access")
_FOLDERS = {_JOBS: "jobs", _FILES: "files", _ROUTER: "routers", _ACCESS: "access"}


@dataclass(frozen=True)
class Entry:
    """A command.

    Attributes:
        section: one of `SECTIONS`.
        help: in a few words.
        extra: the extra of the package that it needs: ``client``, ``server`` or ``demo``.
    """

    section: str
    help: str
    extra: str = "client"

    def module(self, name: str) -> str:
        """Return which module has the command of this name."""
        return f"prouter.cli.{_FOLDERS[self.section]}.{name}"


COMMANDS: dict[str, Entry] = {
    "run": Entry(_JOBS, "Run a job: its output, and its exit code."),
    "ps": Entry(_JOBS, "List jobs."),
    "info": Entry(_JOBS, "Show everything about jobs."),
    "logs": Entry(_JOBS, "Print what a job writes."),
    "wait": Entry(_JOBS, "Wait for the end of jobs."),
    "stop": Entry(_JOBS, "End jobs."),
    "signal": Entry(_JOBS, "Send a signal to jobs."),
    "rm": Entry(_JOBS, "Remove jobs."),
    "open": Entry(_JOBS, "Open a job's page in your browser."),
    "forward": Entry(_JOBS, "Make a port of a job a local one."),
    "explain": Entry(_JOBS, "Say why a job waits, or does not answer."),
    "cp": Entry(_FILES, "Copy files to and from jobs."),
    "ls": Entry(_FILES, "List files of a job."),
    "up": Entry(_ROUTER, "Run a router.", "server"),
    "agent": Entry(_ROUTER, "Run jobs on this machine.", "server"),
    "broker": Entry(_ROUTER, "Run a router's broker alone.", "server"),
    "demo": Entry(_ROUTER, "Try it: JupyterLab in your browser.", "demo"),
    "agents": Entry(_ROUTER, "List agents."),
    "drain": Entry(_ROUTER, "Have agents take no new jobs."),
    "resume": Entry(_ROUTER, "Have drained agents take jobs again."),
    "events": Entry(_ROUTER, "Print changes of jobs and agents."),
    "top": Entry(_ROUTER, "Watch jobs and agents, live."),
    "doctor": Entry(_ROUTER, "Look for what is wrong."),
    "config": Entry(_ROUTER, "Print the configuration, explained.", "server"),
    "context": Entry(_ACCESS, "Store routers, and choose one."),
    "token": Entry(_ACCESS, "Make, list and revoke tokens.", "server"),
    "share": Entry(_ACCESS, "Make links that open one job."),
    "invite": Entry(_ACCESS, "Invite another machine's agent.", "server"),
    "keygen": Entry(_ACCESS, "Make keys for encrypted links.", "server"),
    "completion": Entry(_ACCESS, "Completion for bash, zsh and fish."),
}
"""Every command, by its name."""
