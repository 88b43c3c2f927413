"""Directories for state and sockets: as configured, or by the conventions of systemd or XDG. They have mode 0700.

Routers of one user do not share directories. Each takes the first free *instance* (``router-8888``, ``router-8888.2``,
…) and locks it for as long as it runs.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from prouter.config import AgentConfig, ConfigError, RouterConfig, load_router

__all__ = [
    "Lock",
    "access_dir",
    "agent_state_dir",
    "agents_socket",
    "broker_endpoint",
    "claim_broker",
    "claim_router",
    "connections_version",
    "load_from_environment",
    "locate_router",
    "make_private",
    "router_state_dir",
]

_MAX_INSTANCES = 64
_MAX_SOCKET_PATH = 100
"""Bytes of a socket's path, at most. Linux allows 107 (unix(7)); the rest is for longer names of sockets to come."""


class Lock:
    """An exclusive lock file; the kernel releases the lock when the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


Locks = tuple[Lock, ...]
"""Locks that a process holds for as long as it uses its directories."""


def make_private(path: Path, *, follow: bool = True) -> Path:
    """Make a directory that only its owner can enter, with its parents.

    Args:
        follow: whether the path may be a symbolic link. It must not be where other users can make one.

    Raises:
        ConfigError: the directory cannot be made, or belongs to another user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat(follow_symlinks=follow)
        if not stat.S_ISDIR(info.st_mode):
            raise ConfigError(f"{path} is not a directory; remove it or choose another path")
        if info.st_uid != os.geteuid():
            raise ConfigError(f"{path} belongs to another user; choose a directory of your own")
        if info.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{path} cannot be used: {error.strerror}") from error
    return path


def _state_home() -> Path:
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    xdg = os.environ.get("XDG_STATE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".local" / "state") / "prouter"


def _runtime_home() -> Path:
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg:
        return Path(xdg) / "prouter"
    return make_private(Path(tempfile.gettempdir()) / f"prouter-{os.geteuid()}", follow=False)


def _located(config: RouterConfig, state: Path, run: Path) -> RouterConfig:
    if len(os.fsencode(run / "broker.ipc")) > _MAX_SOCKET_PATH:
        raise ConfigError(f"state.run_dir: the path {run} is too long for unix sockets; choose a shorter one")
    return config.model_copy(update={"state": config.state.model_copy(update={"dir": str(state), "run_dir": str(run)})})


def locate_router(config: RouterConfig) -> RouterConfig:
    """Return the configuration with its directories filled in; both exist afterwards.

    Nothing is locked: services of one router, started on their own, find each other in this way.

    Raises:
        ConfigError: one of the directories cannot be used.
    """
    run = Path(config.state.run_dir).expanduser() if config.state.run_dir else _runtime_home() / _instance(config)
    return _located(config, router_state_dir(config), make_private(run.absolute()))


def router_state_dir(config: RouterConfig) -> Path:
    """The router's state directory, for commands that need nothing else of it; it exists afterwards.

    Raises:
        ConfigError: it cannot be used.
    """
    directory = Path(config.state.dir).expanduser() if config.state.dir else _state_home() / _instance(config)
    return make_private(directory.absolute())


def access_dir(config: RouterConfig) -> Path:
    """The directory of tokens, sessions and share links, perhaps of several routers; it exists afterwards.

    Raises:
        ConfigError: it cannot be used.
    """
    given = config.state.access_dir
    return make_private(Path(given).expanduser().absolute()) if given else router_state_dir(config)


def _instance(config: RouterConfig) -> str:
    return f"router-{config.control.port}"


def claim_broker(config: RouterConfig) -> tuple[RouterConfig, Lock]:
    """Do the same as `locate_router` for a broker that runs as a service of its own, and lock its state directory.

    Raises:
        ConfigError: another router or broker runs there.
    """
    located = locate_router(config)
    try:
        return located, Lock(Path(located.state.dir or "") / "dir.lock")
    except BlockingIOError:
        raise ConfigError(f"state.dir: {located.state.dir} is in use by another router; give each its own") from None


def claim_router(config: RouterConfig) -> tuple[RouterConfig, Locks]:
    """Return the configuration with directories that no other router uses, and their locks.

    Raises:
        ConfigError: a configured directory is in use by another router.
    """
    state, state_lock = _claim("state.dir", config.state.dir, _state_home, config.control.port)
    try:
        run, run_lock = _claim("state.run_dir", config.state.run_dir, _runtime_home, config.control.port)
    except ConfigError:
        state_lock.release()
        raise
    locks = (state_lock, run_lock)
    try:
        return _located(config, state, run), locks
    except ConfigError:
        for lock in locks:
            lock.release()
        raise


def _claim(key: str, configured: str | None, home: Callable[[], Path], port: int) -> tuple[Path, Lock]:
    """Return the configured directory, or else that of the first free instance, with its lock."""
    name = f"{key.rpartition('.')[2]}.lock"
    if configured:
        directory = make_private(Path(configured).expanduser().absolute())
        try:
            return directory, Lock(directory / name)
        except BlockingIOError:
            raise ConfigError(f"{key}: {directory} is in use by another router; give each its own") from None
    for number in range(1, _MAX_INSTANCES + 1):
        directory = make_private(home().absolute() / f"router-{port}{f'.{number}' if number > 1 else ''}")
        try:
            return directory, Lock(directory / name)
        except BlockingIOError:
            continue
    raise ConfigError(f"{key}: {_MAX_INSTANCES} routers of this user run already; set this key to a directory")


def load_from_environment() -> RouterConfig:
    """Load the configuration of a router for one of its services or child processes: PROUTER_CONFIG names the file.

    Raises:
        ConfigError: it is wrong, or its directories cannot be used.
    """
    return locate_router(load_router(os.environ.get("PROUTER_CONFIG"), (), os.environ))


def broker_endpoint(config: RouterConfig) -> str:
    """Return the ipc endpoint of the broker for its workers; the configuration has its directories filled in."""
    return f"ipc://{config.state.run_dir}/broker.ipc"


def connections_version(config: RouterConfig) -> Path:
    """Return the file in which the broker shows its workers the version of the list of connections."""
    return Path(config.state.run_dir or ".") / "connections.version"


def agents_socket(config: RouterConfig) -> Path | None:
    """Where agents of this machine link, for a configuration with its directories filled in; None for nowhere."""
    if config.server.socket is None:
        return Path(config.state.run_dir or ".") / "agents.sock"
    return Path(config.server.socket).expanduser().absolute() if config.server.socket else None


def agent_state_dir(config: AgentConfig) -> Path:
    """Return the agent's own directory, as configured or by the usual conventions; it exists afterwards."""
    if config.state.dir:
        return make_private(Path(config.state.dir).expanduser().absolute())
    name = f"agent-{config.identity.uid}" if config.identity.uid else "agent"
    return make_private(_state_home() / name.replace("/", "_"))
