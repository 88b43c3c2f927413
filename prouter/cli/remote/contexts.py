"""Contexts: routers by name, with their URLs and tokens, in ``~/.config/prouter/contexts.yaml``.

The directory has mode 0700 and the file 0600, because tokens are in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prouter.cli.remote.failures import Failure

__all__ = ["Context", "Contexts", "contexts_file"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class Context:
    """One router.

    Attributes:
        url: of the router.
        token: an access token, or None.
        ca: file of the authority that signed the router's certificate, or None.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    ca: str | None = None


@dataclass
class Contexts:
    """All contexts, and which is used where nothing else is said."""

    current: str | None = None
    known: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str) -> Context:
        """Return a context. Raises `Failure` if there is none of this name."""
        if name not in self.known:
            known = ", ".join(self.known) or "none"
            raise Failure(f"there is no context '{name}'; known: {known}; 'prouter context add' stores one", 3)
        return self.known[name]


def contexts_file() -> Path:
    """Return where the contexts are: in XDG_CONFIG_HOME, or ``~/.config``."""
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "prouter" / "contexts.yaml"


def check_name(name: str) -> str:
    """Return a name that is fit for a context. Raises `Failure` if it is not."""
    if not _NAME.fullmatch(name):
        raise Failure(f"{name!r} is no name for a context: up to 64 letters, digits and . _ @ + -, no sign first", 2)
    return name


def load() -> Contexts:
    """Read the contexts; none if there is no file.

    Raises:
        Failure: the file is damaged, or others can read or write it.
    """
    path = contexts_file()
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return Contexts()
    return _parsed(path, content)


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise Failure(f"{path} belongs to another user: remove it, and store your contexts again")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise Failure(f"{path} has mode {mode:04o}, so that others can use its tokens: chmod 600 '{path}'")


def _parsed(path: Path, content: bytes) -> Contexts:
    import yaml

    try:
        found = yaml.safe_load(content) or {}
        contexts = {str(name): _context(one) for name, one in (found.get("contexts") or {}).items()}
        current = found.get("current")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, yaml.YAMLError) else "it is no list of contexts"
        raise Failure(f"{path} is damaged ({reason}): mend it, or remove it and store your contexts again") from error
    return Contexts(current if isinstance(current, str) and current in contexts else None, contexts)


def _context(one: dict[str, Any]) -> Context:
    token, ca = one.get("token"), one.get("ca")
    return Context(str(one["url"]), None if token is None else str(token), None if ca is None else str(ca))


@contextmanager
def changed() -> Iterator[Contexts]:
    """Give the contexts to change, and store them; two commands at once both count.

    Raises:
        Failure: directory or file cannot be used.
    """
    path = contexts_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"{path.parent} cannot be used: {error.strerror}") from error
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid():
            raise Failure(f"{path.parent} belongs to another user: set XDG_CONFIG_HOME to a directory of your own")
        if found.st_mode & 0o077:
            os.fchmod(directory, 0o700)
        fcntl.flock(directory, fcntl.LOCK_EX)
        contexts = load()
        yield contexts
        _store(path, contexts)
    finally:
        os.close(directory)


def _store(path: Path, contexts: Contexts) -> None:
    import yaml

    known = {name: _stored(one) for name, one in contexts.known.items()}
    text = yaml.safe_dump({"current": contexts.current, "contexts": known}, sort_keys=False, allow_unicode=True)
    target = path.resolve()
    handle, name = tempfile.mkstemp(prefix=".contexts-", dir=target.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _stored(context: Context) -> dict[str, str]:
    fields = {"url": context.url, "token": context.token, "ca": context.ca}
    return {name: value for name, value in fields.items() if value is not None}
