"""gunicorn's settings for the HTTP side of a router: ``gunicorn -c`` with this file needs no others.

The router's configuration comes from ``PROUTER_CONFIG`` and ``PROUTER_SECTION__KEY``. The supervisor passes the
listening sockets as inherited descriptors (``PROUTER_LISTEN_FDS``), so that they outlive every gunicorn.
"""

from __future__ import annotations

import logging
import os
import sys
from math import ceil
from pathlib import Path
from typing import Any

from prouter.access.setup import check_access
from prouter.addresses import join_address
from prouter.config import ConfigError, RouterConfig
from prouter.config.directories import load_from_environment
from prouter.config.proxy_users import loopback_among
from prouter.limits import requests as request_limits
from prouter.process.cores import forbid_core_dumps
from prouter.process.logging import configure_logging
from prouter.web.gunicorn.balance import enter
from prouter.web.gunicorn.internals import ArbiterAdapter, UnsupportedGunicorn, check
from prouter.web.gunicorn.roster import Roster
from prouter.web.metrics import counters


def _load() -> RouterConfig:
    """Load the configuration, or end with status 2, after which the supervisor does not start gunicorn again."""
    forbid_core_dumps()
    try:
        check()
        found = load_from_environment()
        check_access(found)
    except (ConfigError, UnsupportedGunicorn) as error:
        for line in str(error).splitlines():
            print(f"prouter: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    return found


_config = _load()
_inherited = os.environ.get("PROUTER_LISTEN_FDS", "")


def _bind() -> list[str]:
    if _inherited:
        return [f"fd://{number}" for number in _inherited.split(",")]
    found = [join_address(_config.control.interface, _config.control.port)]
    if _config.control.unix:
        found.append(f"unix:{_config.control.unix}")
    return found


bind = _bind()
wsgi_app = "prouter.web.admin.app:application"
worker_class = "prouter.web.gunicorn.worker.ProxyWorker"
workers = _config.control.workers
worker_connections = _config.control.max_connections
max_requests = _config.control.max_requests
max_requests_jitter = _config.control.max_requests // 10  # so that workers are not all replaced at once
backlog = 4096
keepalive = 5
timeout = 60
graceful_timeout = ceil(_config.control.drain_timeout) + 5  # workers end by themselves; gunicorn kills others
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 (gunicorn's heartbeat file, made safely)
control_socket_disable = True
proc_name = "prouter-api"
umask = 0o117
"""Of the unix socket: it is for owner and group, as when the supervisor makes it."""


def _log() -> None:
    """Send gunicorn's log lines through the router's log."""
    configure_logging(_config.log, connection_debug="PROUTER_CONNECTION_DEBUG" in os.environ)
    for name in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True


def _warn() -> None:
    """Say in the log what weakens access control."""
    control = _config.control
    network = loopback_among(control.trusted_proxies) if control.user_header is not None else None
    if network is not None:
        text = (
            f"every user and job of this machine can connect from {network} and claim to be any user: use control.unix"
        )
        logging.getLogger("prouter.web").warning("event=users_not_protected text=%r", text)


def _forget() -> None:
    """Have a reload read this file again even if gunicorn was told to import it (``python:MODULE``)."""
    sys.modules.pop(__name__, None)


def on_starting(server: Any) -> None:
    """Put the router's own parts into gunicorn's parent process, before it makes a worker."""
    _log()
    _warn()
    _forget()
    counters.setup(Path(_config.state.run_dir or ".") / "figures")
    request_limits.setup()
    server.adapter = ArbiterAdapter(server)
    if _inherited:
        server.adapter.keep_sockets()
    server.roster = Roster(server.adapter)
    server.roster.install()


def on_reload(server: Any) -> None:
    """Apply a changed log level, and have all workers replaced."""
    _log()
    _warn()
    _forget()
    server.roster.reloaded()


def pre_fork(_server: Any, worker: Any) -> None:
    """Reset what a former worker of the same slot left in shared memory."""
    enter(worker.age)
    counters.enter(worker.age)


def child_exit(_server: Any, worker: Any) -> None:
    """Keep the counters of a worker that ended, and drop its gauges."""
    counters.leave(worker.age)


def post_fork(server: Any, worker: Any) -> None:
    """Make a new worker log like every process of the router, and stop from its first moment on."""
    server.adapter.forked()
    _log()
    os.umask(0o077)
