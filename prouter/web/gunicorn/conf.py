"""gunicorn's settings for the HTTP side of a router; ``gunicorn -c`` with this file needs nothing else.

The router's configuration comes from ``PROUTER_CONFIG`` and ``PROUTER_SECTION__KEY``. Under the supervisor the
listening sockets come as inherited descriptors (``PROUTER_LISTEN_FDS``), so that they outlive every gunicorn.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from math import ceil
from pathlib import Path
from typing import Any

from prouter.config import ConfigError, RouterConfig, check_exposure
from prouter.config.directories import load_from_environment
from prouter.process.logging import configure_logging
from prouter.web.gunicorn.balance import enter
from prouter.web.gunicorn.roster import Roster
from prouter.web.metrics import counters


def _load() -> RouterConfig:
    try:
        found = load_from_environment()
        check_exposure(found)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"prouter: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    return found


_config = _load()
_STOP = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)
_inherited = os.environ.get("PROUTER_LISTEN_FDS", "")


def _bind() -> list[str]:
    if _inherited:
        return [f"fd://{number}" for number in _inherited.split(",")]
    host = _config.control.interface
    found = [f"[{host}]:{_config.control.port}" if ":" in host else f"{host}:{_config.control.port}"]
    if _config.control.unix:
        found.append(f"unix:{_config.control.unix}")
    return found


bind = _bind()
wsgi_app = "prouter.web.admin.app:application"
worker_class = "prouter.web.gunicorn.worker.ProxyWorker"
workers = _config.control.workers
worker_connections = _config.control.max_connections
max_requests = _config.control.max_requests
max_requests_jitter = _config.control.max_requests // 10  # lest all workers are replaced at once
backlog = 4096
keepalive = 5
timeout = 60
graceful_timeout = ceil(_config.control.drain_timeout) + 5  # workers end by themselves, and need a moment to say so
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 (gunicorn's heartbeat file, made safely)
control_socket_disable = True
proc_name = "prouter-api"
umask = 0o117
"""Of the unix socket, as the supervisor makes it: for owner and group."""


def _log() -> None:
    configure_logging(_config.log, connection_debug="PROUTER_CONNECTION_DEBUG" in os.environ)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True


def _forget() -> None:
    """Named as ``python:prouter.web.gunicorn.conf`` these settings are imported; a reload must find them anew."""
    sys.modules.pop(__name__, None)


def on_starting(server: Any) -> None:
    """gunicorn's own lines join ours; inherited sockets are not gunicorn's to remove from the file system."""
    _log()
    _forget()
    if _inherited:
        server.systemd = True
    counters.setup(Path(_config.state.run_dir or ".") / "figures")
    server.roster = Roster(server)
    server.roster.install()


def on_reload(server: Any) -> None:
    """A changed log level counts from now on."""
    _log()
    _forget()
    server.roster.do_not_wait()


def pre_fork(_server: Any, worker: Any) -> None:
    """Numbers are used again after a while."""
    enter(worker.age)
    counters.enter(worker.age)


def child_exit(_server: Any, worker: Any) -> None:
    """What the worker counted stays, what it had is gone."""
    counters.leave(worker.age)


def post_fork(server: Any, worker: Any) -> None:
    """Each worker logs like every other process of the router, and can be stopped from its first moment.

    Until gunicorn sets a worker's own signal handlers it has its parent's, which would swallow a stop.
    """
    for number in _STOP:
        signal.signal(number, signal.SIG_DFL)
    while not server.SIG_QUEUE.empty():
        if server.SIG_QUEUE.get_nowait() in _STOP:
            raise SystemExit(0)
    _log()
    os.umask(0o077)
