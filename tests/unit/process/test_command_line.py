"""Secrets are hidden in the command line of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prouter.process.command_line import secret_parts


@pytest.mark.parametrize(
    ("arguments", "hidden"),
    [
        (["prouter", "agent", "--set", "client.token=abc"], ["abc"]),
        (["prouter", "agent", "--set= client.token =abc=d"], ["abc=d"]),
        (["prouter", "up", "--set", "server.accept_tokens.a=abc", "--set", "control.port=1"], ["abc"]),
        (["prouter", "up", "--set", "server={'accept_tokens': ['abc']}"], ["{'accept_tokens': ['abc']}"]),
        (["prouter", "agent", "--join", "prouter://h:1/?key=k&token=abc"], ["abc"]),
        (["prouter", "agent", "--join=prouter://h:1/?token=abc&key=k"], ["abc"]),
        (["prouter", "agent", "--join", "nonsense", "client.token=x"], []),
        (["prouter", "token", "create", "--name", "client.token=x", "--set"], []),
        (["prouter", "--set", "--set", "client.token=ä"], ["ä"]),
        (
            ["prouter", "run", "-e", "A=abc", "--env=B=d=e", "--env", "C", "--token", "xyz", "--token=z"],
            ["abc", "d=e", "xyz", "z"],
        ),
        (["prouter", "run", "--name", "--token"], []),
        ([], []),
    ],
)
def test_secret_parts_are_found(arguments: list[str], hidden: list[str]) -> None:
    line = b"".join(argument.encode() + b"\0" for argument in arguments)
    assert [line[at : at + length].decode() for at, length in secret_parts(line)] == hidden


def test_the_system_shows_no_secret_of_a_running_command() -> None:
    program = (
        "import sys; from prouter.process.command_line import hide_secrets; hide_secrets(); "
        "sys.stdout.write(open('/proc/self/cmdline').read().replace(chr(0), ' ') + '|' + ' '.join(sys.argv))"
    )
    argv = [sys.executable, "-c", program, "--set", "client.token=s3cret", "--join", "prouter://h/?token=t0ken&key=k"]
    shown, _, kept = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.rpartition("|")
    assert shown.endswith("--set client.token=****** --join prouter://h/?token=*****&key=k ")
    assert kept.endswith("--set client.token=s3cret --join prouter://h/?token=t0ken&key=k")
