"""The start of a job's first process: fork, session, files, limits, exec, and the reason if that fails.

The keeper calls fork and exec itself, because it is small and has one thread. subprocess could set limits only in a
hook that runs in the child as well, and posix_spawn(3) can set neither limits nor directory.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from prouter.keeper import isolation
from prouter.processes import limits as job_limits
from prouter.processes.limits import Limits
from prouter.processes.users import User

__all__ = ["Command", "SpawnError", "explained", "read_outcome", "start", "use_all_descriptors"]

_IGNORED = {
    signum
    for signum in signal.valid_signals()
    if signum not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(signum) is signal.SIG_IGN
}
_HANDLED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
"""Signals for which the keeper has handlers."""


_SPARE = 8
"""Descriptors that are free after a start: for the next look at /proc, for the log writer, for the next agent."""

_files_of_jobs = resource.getrlimit(resource.RLIMIT_NOFILE)
"""Limit of open files (soft, hard) with which jobs start."""


def use_all_descriptors() -> None:
    """Raise the keeper's limit of open files as far as the system permits. Jobs start with the usual limit."""
    hard = _files_of_jobs[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class SpawnError(Exception):
    """A process could not be started; the text tells a person why."""


class Command(NamedTuple):
    """A command to start.

    Attributes:
        job: uid of the job, with which its processes are marked.
        env: the whole environment. The command is looked up in its PATH.
        cwd: directory to start in. A command with a slash in it is relative to this directory.
        group: file through which the process enters its control group; None if it has none.
        sandbox: the job's directory.
        user: whom it runs as; None for the keeper's own user.
        stdout: descriptor to write to; None for the agent's own stdout. Likewise `stderr`.
    """

    job: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    stdout: int | None
    stderr: int | None
    limits: Limits
    group: str | None = None
    sandbox: str | None = None
    user: User | None = None


def start(command: Command, watch: Callable[[int], None]) -> tuple[int, int]:
    """Fork the process.

    Args:
        watch: has the keeper's loop watch the pipe. It is called before the fork, after which nothing may fail.

    Returns:
        Its pid, and the reading end of a pipe for `read_outcome`.

    Raises:
        SpawnError: no process can be made.
    """
    reading, writing = _watched_pipe(watch)
    # No signal may run the keeper's handlers in the child. Blocked signals wait until the child resets its mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _run(command, writing)
    except OSError as error:
        os.close(reading)  # Nobody else has it, so the loop does not watch it any more (epoll(7)).
        raise SpawnError(f"no process could be made: {error.strerror}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writing)
    return pid, reading


def _watched_pipe(watch: Callable[[int], None]) -> tuple[int, int]:
    """A pipe whose reading end is watched. Some more descriptors are free then, which the keeper needs to go on.

    Raises:
        SpawnError: there are too few descriptors, or it cannot be watched.
    """
    made: list[int] = []
    try:
        made += os.pipe2(os.O_CLOEXEC)
        for _ in range(_SPARE):
            made.append(os.dup(made[0]))
        for fd in made[2:]:
            os.close(fd)
        del made[2:]
        watch(made[0])
    except OSError as error:
        for fd in made:
            os.close(fd)
        raise SpawnError(f"no process could be made: {explained(error)}") from error
    return made[0], made[1]


def explained(error: OSError) -> str:
    """Why a system call has failed, and what helps if too many files are open."""
    hint = " (raise the agent's limit of open files)" if error.errno == errno.EMFILE else ""
    return f"{error.strerror}{hint}"


def read_outcome(pipe: int) -> None:
    """Read from the pipe of `start`, once it is readable, whether the command runs; close the pipe.

    Raises:
        SpawnError: the command could not be executed. Its process ends by itself.
    """
    said = b""
    while part := os.read(pipe, 65536):
        said += part
    os.close(pipe)
    if said:
        raise SpawnError(json.loads(said))


def _run(command: Command, pipe: int) -> NoReturn:
    """In the child: execute the command, or write the reason into the pipe and exit."""
    try:
        _prepare(command)
        if command.user is not None:
            _become(command, command.user)
        _enter_directory(command.cwd)
        _execute(command)
    except BaseException as error:  # A forked child must never return into the keeper's event loop.
        text = str(error) if isinstance(error, SpawnError) else f"the process could not be set up: {error!r}"
        os.write(pipe, json.dumps(text).encode("ascii"))
    finally:
        os._exit(127)


def _prepare(command: Command) -> None:
    os.setsid()
    if command.group is not None:
        _enter(command.group)
    signal.set_wakeup_fd(-1)
    for signum in _IGNORED | _HANDLED:
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 0)
    for fd, output in ((1, command.stdout), (2, command.stderr)):
        if output is not None:
            os.dup2(output, fd)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, _files_of_jobs)
        job_limits.apply(command.limits, command.job)
    except (OSError, ValueError) as error:
        raise SpawnError(f"its limits cannot be set: {error}") from None
    isolation.close_descriptors()


def _become(command: Command, user: User) -> None:
    """Become the job's user, whose rights count from here on."""
    if user.isolated and command.sandbox is not None:
        try:
            isolation.isolate(command.sandbox, user)
        except OSError as error:
            text = f"it cannot get a /tmp of its own: {error}; jobs.private_tmp: off starts jobs without one"
            raise SpawnError(text) from None
    try:
        isolation.become(user)
    except OSError as error:
        raise SpawnError(f"it cannot run as user {user.uid}: {error.strerror}") from None


def _enter_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise SpawnError(f"its directory {path!r} cannot be entered: {error.strerror}") from None


def _enter(group: str) -> None:
    try:
        fd = os.open(group, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0")
    except OSError as error:
        raise SpawnError(f"its control group cannot be entered: {error.strerror}") from None
    os.close(fd)


def _execute(command: Command) -> NoReturn:
    name = command.argv[0]
    try:
        os.execvpe(name, command.argv, command.env)  # noqa: S606 - running what it is told is what it is for
    except OSError as error:
        raise SpawnError(_explain(name, error, command.user)) from None
    except ValueError as error:
        raise SpawnError(f"its arguments or environment are not valid: {error}") from None


def _explain(name: str, error: OSError, user: User | None) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if "/" not in name:
            hint = "; each argument is an item of its own in args" if " " in name else ""
            return f"command {name!r} was not found in PATH{hint}"
        if os.path.exists(name):
            return f"command {name!r} names an interpreter that does not exist"
        return f"command {name!r} was not found"
    if error.errno == errno.EACCES:
        if os.path.isdir(name):
            return f"command {name!r} is a directory"
        return f"command {name!r} is not executable{f' for user {user.uid}' if user is not None else ''}"
    if error.errno == errno.ENOEXEC:
        return f"command {name!r} is neither a program nor a script that starts with '#!'"
    return f"command {name!r} cannot be run: {error.strerror}"
