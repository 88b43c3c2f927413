"""gunicorn's private parts: what the router replaces, calls or relies on in `Arbiter` and its worker class.

gunicorn documents its settings, its hooks and how a worker class is chosen. The router needs more, and all of that is
in this module, so that a new version of gunicorn has to be compared with one file:

=================================  ================================================================================
``Arbiter.manage_workers``         replaced: gunicorn counts draining workers as serving ones (`Roster`)
``Arbiter.reload``                 wrapped: it waits for the old workers to end and handles no signal meanwhile
``spawn_worker``, ``kill_worker``  called by the replacement
``WORKERS``, ``num_workers``,      read by the replacement
``worker_age``
``cfg.graceful_timeout``           0 for the length of a reload, so that it waits for no worker
``SIG_QUEUE``                      emptied in a new worker, for a stop that arrived between fork and its own handlers
``systemd``                        set, so that gunicorn unlinks no unix socket that the supervisor made
SIGCHLD                            sent to the arbiter by workers: after it, it calls ``manage_workers`` at once
``GeventWorker``                   subclassed: `age`, `ppid`, `tmp`, `sockets`, `wsgi`, `max_requests`, `alive`
=================================  ================================================================================

`check` compares the installed gunicorn with `OLDEST` and `BEFORE` and looks for these parts, before anything starts.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import gunicorn
from gunicorn.arbiter import Arbiter
from gunicorn.workers.ggevent import GeventWorker

from prouter.errors import PRouterError

__all__ = ["BEFORE", "OLDEST", "ArbiterAdapter", "GunicornWorker", "UnsupportedGunicorn", "check"]

OLDEST = (25, 1)
"""The oldest gunicorn this module was written for and tried with; pyproject.toml has the same bounds."""
BEFORE = (28,)
"""The first gunicorn this module was not compared with."""
_STOP = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
_ARBITER_METHODS = {
    "manage_workers": ["self"],
    "reload": ["self"],
    "spawn_worker": ["self"],
    "kill_worker": ["self", "pid", "sig"],
    "handle_chld": ["self"],
}
_WORKER_METHODS = {"run": ["self"], "notify": ["self"], "handle_exit": ["self", "sig", "frame"]}
_ARBITER_ATTRIBUTES = ("WORKERS", "num_workers", "worker_age", "SIG_QUEUE", "systemd", "cfg")


class UnsupportedGunicorn(PRouterError):
    """The installed gunicorn is not one that the router was written for."""

    code = "unsupported_gunicorn"


def check(version: str = gunicorn.__version__, arbiter: type = Arbiter, worker: type = GeventWorker) -> None:
    """Make sure that this gunicorn has the parts that the router uses.

    Raises:
        UnsupportedGunicorn: the version is out of bounds, or a part is missing or takes other arguments.
    """
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if not OLDEST <= found < BEFORE:
        raise UnsupportedGunicorn(
            f"gunicorn {version} is installed, but the router replaces parts of gunicorn that differ between versions; "
            f"{_install()}"
        )
    for owner, methods in ((arbiter, _ARBITER_METHODS), (worker, _WORKER_METHODS)):
        for name, expected in methods.items():
            method = getattr(owner, name, None)
            if method is None or list(inspect.signature(method).parameters) != expected:
                raise _missing(version, f"{owner.__name__}.{name}({', '.join(expected[1:])})")


def _install() -> str:
    """What to install in place of an unsupported gunicorn."""
    oldest, before = (".".join(map(str, bound)) for bound in (OLDEST, BEFORE))
    return f"install a version that it knows: pip install 'gunicorn[gevent]>={oldest},<{before}'"


def _missing(version: str, part: str) -> UnsupportedGunicorn:
    return UnsupportedGunicorn(f"gunicorn {version} has no {part}, which the router needs; {_install()}")


class ArbiterAdapter:
    """gunicorn's parent process, as the router sees it.

    Args:
        arbiter: gunicorn's `Arbiter`.

    Raises:
        UnsupportedGunicorn: it lacks an attribute that the router needs.
    """

    def __init__(self, arbiter: Any) -> None:
        for name in _ARBITER_ATTRIBUTES:
            if not hasattr(arbiter, name):
                raise _missing(gunicorn.__version__, f"Arbiter.{name}")
        self._arbiter = arbiter
        self._original_reload: Callable[[], None] = arbiter.reload
        self._graceful_timeout = arbiter.cfg.graceful_timeout

    @property
    def workers(self) -> list[GunicornWorker]:
        """All worker processes that have not ended, the oldest first."""
        return sorted(self._arbiter.WORKERS.values(), key=lambda worker: worker.age)

    @property
    def wanted(self) -> int:
        """Number of workers that should serve; TTIN, TTOU and a reload change it."""
        return int(self._arbiter.num_workers)

    @property
    def youngest(self) -> int:
        """Age number of the worker that was started last."""
        return int(self._arbiter.worker_age)

    def spawn(self) -> None:
        """Start a worker."""
        self._arbiter.spawn_worker()

    def stop(self, worker: GunicornWorker) -> None:
        """Have a worker finish its requests and end."""
        self._arbiter.kill_worker(worker.pid, signal.SIGTERM)

    def manage_with(self, manage: Callable[[], None]) -> None:
        """Have `manage` keep the number of workers: called once a second and after every signal."""
        self._arbiter.manage_workers = manage
        self._arbiter.reload = self._reload

    def keep_sockets(self) -> None:
        """Have gunicorn leave its unix sockets in the file system when it ends: somebody else made them."""
        self._arbiter.systemd = True

    def do_not_wait(self) -> None:
        """Have the reload under way wait for no worker. To be called from the hook ``on_reload``.

        At that moment the new settings are read, and the new workers are not started.
        """
        self._graceful_timeout = self._arbiter.cfg.graceful_timeout
        self._arbiter.cfg.set("graceful_timeout", 0)

    def _reload(self) -> None:
        """Reload as gunicorn does, then put back the timeout that `do_not_wait` took away."""
        self._graceful_timeout = self._arbiter.cfg.graceful_timeout
        try:
            self._original_reload()
        finally:
            self._arbiter.cfg.set("graceful_timeout", self._graceful_timeout)

    def forked(self) -> None:
        """Take the parent's signal handling off a new worker. To be called in the worker, from the hook ``post_fork``.

        Until gunicorn sets a worker's own handlers, the worker has its parent's, which would queue a stop for nobody.

        Raises:
            SystemExit: a stop was queued already.
        """
        for number in _STOP:
            signal.signal(number, signal.SIG_DFL)
        queue = self._arbiter.SIG_QUEUE
        while not queue.empty():
            if queue.get_nowait() in _STOP:
                raise SystemExit(0)


class GunicornWorker(GeventWorker):  # type: ignore[misc]
    """gunicorn's gevent worker, with what it inherits declared."""

    age: int
    """Number of the worker: each has a higher one than those before."""
    alive: bool
    """False once a stop was asked for."""
    max_requests: int
    pid: int
    ppid: int
    sockets: list[Any]
    tmp: Any
    wsgi: Any

    def heartbeat(self) -> None:
        """Tell gunicorn that the worker is alive; after ``timeout`` seconds without, gunicorn kills it."""
        self.tmp.notify()

    @property
    def orphaned(self) -> bool:
        """Whether gunicorn's parent process died."""
        return os.getppid() != self.ppid

    def wake_arbiter(self) -> None:
        """Have gunicorn look after its workers at once, as it does whenever one ends."""
        if not self.orphaned:
            os.kill(self.ppid, signal.SIGCHLD)
