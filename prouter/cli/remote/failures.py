"""Errors of commands: one line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import click

from prouter.cli.remote.exits import Exit
from prouter.client import (
    AgentUnavailable,
    ConnectionFailed,
    Forbidden,
    JobUnreachable,
    NotFound,
    Overloaded,
    RouterError,
    TimedOut,
    Unauthorized,
)
from prouter.texts import visible

__all__ = ["Failure", "describe", "exit_of", "failures_end_the_command", "note", "quiet_end"]

_ACCESS_HELP = (
    "give one with PROUTER_TOKEN, --token-file FILE or 'prouter context add NAME --url URL --token-file FILE'"
)
_HINTS: dict[str, str] = {
    "agent_unavailable": "'prouter agents' shows the links",
    "agent_timeout": "'prouter agents' shows the links",
    "connection_failed": "'prouter doctor' looks for the reason",
    "gateway": "'prouter doctor' looks for the reason",
    "not_a_router": "'prouter context list' shows the URLs you stored",
}


class Failure(click.ClickException):
    """An error with an exit code of its own."""

    def __init__(self, message: str, code: int = Exit.ERROR) -> None:
        super().__init__(message)
        self.__dict__["exit_code"] = int(code)


def exit_of(error: Exception) -> int:
    """Return the exit code of an error."""
    if isinstance(error, TimedOut):
        return Exit.TIMED_OUT
    if isinstance(error, (Unauthorized, Forbidden)):
        return Exit.NOT_ALLOWED
    if isinstance(error, (ConnectionFailed, AgentUnavailable, JobUnreachable)):
        return Exit.UNREACHABLE
    if isinstance(error, RouterError) and error.code in ("gateway", "not_a_router", "redirected", "draining"):
        return Exit.UNREACHABLE
    if isinstance(error, Overloaded):
        return Exit.BUSY
    return Exit.NOT_FOUND if isinstance(error, NotFound) else Exit.ERROR


def describe(error: Exception) -> str:
    """Return an error in words, with what to do next."""
    if not isinstance(error, RouterError):
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename is not None else ""
            return f"{where}{error.strerror}"
        return str(error) or type(error).__name__
    hint = _HINTS.get(error.code)
    if error.code == "unauthorized":
        return f"the router asks for an access token, and this command has none that is valid; {_ACCESS_HELP}"
    if isinstance(error, Unauthorized):
        hint = _ACCESS_HELP
    elif isinstance(error, NotFound) and error.job is not None and error.code == "not_found":
        hint = "'prouter ps -a' lists the jobs"
    return f"{error.detail}; {hint}" if hint else error.detail


def note(text: str) -> None:
    """Print a line for people on stderr, whatever the text holds."""
    with suppress(OSError):  # A job or a transfer does not fail because nobody reads its notes.
        click.echo(f"prouter: {visible(text)}", err=True)


@contextmanager
def failures_end_the_command() -> Iterator[None]:
    """Turn errors into one line and an exit code; a reader that closes the pipe ends the command quietly."""
    try:
        yield
        sys.stdout.flush()
    except RouterError as error:
        raise Failure(describe(error), exit_of(error)) from error
    except BrokenPipeError:
        quiet_end()
    except OSError as error:
        if error.errno == errno.EPIPE:
            quiet_end()
        raise Failure(describe(error)) from error
    except ValueError as error:
        raise Failure(describe(error), Exit.USAGE) from error


def quiet_end() -> NoReturn:
    """Exit as a program does that SIGPIPE ends: nobody reads what it prints."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what is still buffered has no reader, and must not fail again
    os.close(null)
    raise SystemExit(int(Exit.BROKEN_PIPE))
