"""The bare command line needs click only; the client needs nothing of the router; a missing extra is named."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest

from prouter.cli.catalogue import COMMANDS

ROOT = Path(__file__).parents[3]
BARE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if path is None and root not in sys.stdlib_module_names | {allowed}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from prouter.cli import main
main({arguments}, prog_name="prouter")
"""
"""A program that finds the standard library and some packages only, and runs a command."""


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = BARE.format(allowed={"prouter", "click", "__editable___prouter_finder"}, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_bare_command_line_has_help_and_a_version() -> None:
    assert bare("--version").stdout.startswith("prouter, version ")
    done = bare("--help")
    assert done.returncode == 0, done.stderr
    assert "pip install 'prouter[server]'" in done.stdout


@pytest.mark.parametrize("command", ["up", "agent", "token", "demo", "run"])
def test_a_command_whose_extra_is_missing_names_it_in_one_line(command: str) -> None:
    done = bare(command, "--set", "control.port=0", "more", "--help")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"'prouter {command}' needs" in line
    assert line.endswith(f"pip install 'prouter[{COMMANDS[command].extra}]'")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", one)[0].lower() for one in requirements if "extra ==" not in one}


def closure(requirements: set[str]) -> set[str]:
    """All packages that these bring, as the installed ones say."""
    found: set[str] = set()
    waiting = list(requirements)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            try:
                waiting += names(requires(name) or [])
            except PackageNotFoundError:
                continue  # for another platform or Python
    return found


def test_the_client_brings_nothing_of_the_router() -> None:
    told = requires("prouter") or []
    base = names(told)
    client = {name for one in told if 'extra == "client"' in one for name in names([one.partition(";")[0]])}
    assert base == {"click"}
    brought = closure(base | client)
    assert {"httpx", "pyyaml", "websockets", "rich"} <= brought
    assert not brought & {"gevent", "gunicorn", "greenlet", "falcon", "pyzmq", "pydantic", "msgpack", "cryptography"}
    assert {entry.extra for entry in COMMANDS.values()} <= set(metadata("prouter").get_all("Provides-Extra") or [])
