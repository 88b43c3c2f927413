"""The guard of one job, ``guard.py DIRECTORY [LIFELINE]``: it starts the job, keeps its tree, and writes how it ended.

Files in the directory: ``spec.json`` is read; ``lock`` is locked while the guard lives; ``begun`` is made before the
command is started, so that no second guard starts it; ``spawned.json``, ``failed.json`` and ``exit.json`` are written
whole. At SIGTERM it ends the tree; so it does when the pipe LIFELINE ends, and removes the sandbox then.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER (prctl(2)): orphans of the tree become children of this process."""


def main() -> None:
    """Guard the job until no process of it is left."""
    directory = sys.argv[1]
    lifeline = int(sys.argv[2]) if sys.argv[2:] else None
    os.chdir(directory)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write(f"begun.{os.getpid()}", {"pid": os.getpid()})
    os.link(f"begun.{os.getpid()}", "begun")  # Fails if another guard was here before, or the job was cancelled.
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with open("spec.json") as file:
        spec = json.load(file)
    try:
        first = started(spec)
    except OSError as error:
        write("failed.json", {"text": f"{error.filename or spec['argv'][0]}: {error.strerror}"})
        return
    write("spawned.json", {"pid": first, "start_time": start_time(first), "started_at": time.time()})
    status, abandoned = None, False
    while status is None:
        if ending:
            end_tree()
        status = reaped().get(first)
        if status is None:
            ready = select.select([woken, *([lifeline] if lifeline is not None else [])], [], [])[0]
            if lifeline in ready:  # The agent has died.
                ending.append(1)
                lifeline, abandoned = None, True
            with suppress(BlockingIOError):
                os.read(woken, 4096)
    ended = time.time()
    while end_tree():
        reaped()
        time.sleep(0.001)
    reaped()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    died = os.WIFSIGNALED(status)
    write("exit.json", {
        "exit_code": None if died else os.WEXITSTATUS(status),
        "signal": signal.Signals(os.WTERMSIG(status)).name if died else None,
        "reason": None,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "max_rss": used.ru_maxrss * 1024,
        "at": ended,
    })  # fmt: skip
    if abandoned:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(spec["sandbox"], ignore_errors=True)


def started(spec: dict[str, Any]) -> int:
    """Start the command; return its pid."""
    outputs = [os.open(spec[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) for name in ("stdout", "stderr")]
    job = subprocess.Popen(
        spec["argv"], env=spec["env"], cwd=spec["cwd"], stdin=subprocess.DEVNULL, stdout=outputs[0], stderr=outputs[1],
        start_new_session=True,
    )  # fmt: skip
    job.returncode = 0  # This process waits for it by itself.
    for fd in outputs:
        os.close(fd)
    return job.pid


def reaped() -> dict[int, int]:
    """Wait for all children that have ended; return their statuses."""
    found = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            found[pid] = status
    return found


def end_tree() -> bool:
    """Kill all descendants; return whether there were any."""
    found = False
    todo = [os.getpid()]
    while todo:
        pid = todo.pop()
        with suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    todo += [int(word) for word in file.read().split()]
        if pid != os.getpid():
            found = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return found


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since the machine booted (proc(5))."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def write(name: str, content: dict[str, Any]) -> None:
    """Write a file as a whole."""
    with open(name + ".new", "w") as file:
        json.dump(content, file)
    os.rename(name + ".new", name)


if __name__ == "__main__":
    main()
