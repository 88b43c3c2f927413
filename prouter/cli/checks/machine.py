"""What `prouter doctor` looks at on this machine: versions, limits, and permissions of files with secrets."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import stat
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prouter import __version__
from prouter.cli.checks.findings import Check, error, ok, warning
from prouter.cli.remote import contexts
from prouter.cli.remote.durations import size
from prouter.cli.remote.failures import Failure

__all__ = ["machine_checks"]

_FILES = 4096
"""Open files that a router or an agent should be allowed, at least: each connection is one, or two."""
_SPACE = 1 << 30
_PACKAGES = {
    "client": ("httpx", "websockets", "rich"),
    "server": ("gevent", "gunicorn", "falcon", "pyzmq", "pynacl", "pydantic"),
}


def machine_checks(token_file: str | None = None) -> list[Check]:
    """Return what was found on this machine.

    Args:
        token_file: the file that the access token is read from, or None.
    """
    return [*_versions(), _limits(), *_contexts(), *_token_file(token_file), *_states()]


def _token_file(name: str | None) -> Iterator[Check]:
    if name in (None, "-"):
        return
    assert name is not None
    path = Path(name).expanduser()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield error("permissions", f"{path} has mode {mode:04o}: others can use your token", f"chmod 600 '{path}'")


def _versions() -> Iterator[Check]:
    missing = {extra: [name for name in names if not _installed(name)] for extra, names in _PACKAGES.items()}
    here = f"prouter {__version__}, Python {platform.python_version()}, {platform.system()} {platform.release()}"
    if missing["client"]:
        yield error("version", f"{here}; {', '.join(missing['client'])} is missing", "pip install 'prouter[client]'")
    elif missing["server"]:
        yield ok("version", f"{here}; the client alone ('prouter[server]' has router and agent)")
    else:
        yield ok("version", here)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _limits() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        todo = f"'ulimit -n {_FILES}' before 'prouter up' or 'prouter agent', or LimitNOFILE= in the systemd unit"
        return warning("limits", f"a process may open {soft} files (at most {highest}), few for a router", todo)
    return ok("limits", f"a process may open {soft if soft != resource.RLIM_INFINITY else 'any number of'} files")


def _contexts() -> Iterator[Check]:
    path = contexts.contexts_file()
    if not path.exists():
        yield ok("contexts", "none are stored ('prouter context add')")
        return
    try:
        known = contexts.load()
    except Failure as failure:
        yield error("contexts", failure.message, f"chmod 600 '{path}', or remove it")
        return
    if stat.S_IMODE(path.parent.stat().st_mode) & 0o077:
        yield warning("contexts", f"others can enter {path.parent}", f"chmod 700 '{path.parent}'")
    yield ok("contexts", f"{len(known.known)} stored in {path}; current: {known.current or 'none'}")


def _states() -> Iterator[Check]:
    """Look at the state directories of routers and agents of this user, with keys and tokens in them."""
    home = os.environ.get("XDG_STATE_HOME")
    root = (Path(home) if home else Path.home() / ".local" / "state") / "prouter"
    if not root.is_dir():
        return
    wrong = [(path, mode) for path, mode in _private(root)]
    for path, mode in wrong[:5]:
        wanted = "700" if path.is_dir() else "600"
        yield error("permissions", f"{path} has mode {mode:04o}: others can use it", f"chmod {wanted} '{path}'")
    if not wrong:
        yield ok("permissions", f"state, keys and tokens below {root} are private")
    free = shutil.disk_usage(root).free
    if free < _SPACE:
        yield warning("disk", f"{size(free)} are free below {root}", "make room: the job table and logs are there")


def _private(root: Path) -> Iterator[tuple[Path, int]]:
    for instance in sorted(root.iterdir()):
        if not instance.is_dir() or instance.is_symlink():
            continue
        try:
            shut = not stat.S_IMODE(instance.stat().st_mode) & 0o077
            if not shut:
                yield instance, stat.S_IMODE(instance.stat().st_mode)
            secrets = [*instance.glob("*.json"), *instance.glob("*.key_secret"), *instance.glob("keys/*.key_secret")]
            for path in secrets:
                mode = stat.S_IMODE(path.stat().st_mode)
                if mode & 0o077 and (path.suffix == ".key_secret" or not shut):
                    yield path, mode
        except OSError:
            continue
