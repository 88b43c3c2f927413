"""The router's own key pair, and its rotation: agents learn the next key before the router uses it.

::

    ONE KEY --begin_rotation--> TWO KEYS (agents are told both, the router uses the first) --finish_rotation--> ONE KEY

The router finishes a rotation when its time has come. Links live on in both steps. An agent that was not linked between
the two steps does not know the new key and has to be invited again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from prouter.config.directories import make_private
from prouter.config.errors import ConfigError
from prouter.key_pairs import KeyPair
from prouter.keys.files import PUBLIC, SECRET, load_or_make, load_pair, make_pair, store_pair, write_private

__all__ = ["RouterKeys", "begin_rotation", "finish_rotation", "keys_directory", "load_router_keys", "rotation_stamp"]

_CURRENT, _NEXT = "router", "next"
_ROTATION = "rotation.json"


@dataclass(frozen=True, slots=True)
class RouterKeys:
    """The keys of a router.

    Attributes:
        current: the pair that the router uses.
        next: the pair that it will use, while a rotation is under way.
        switch_at: when it will, seconds since the epoch.
    """

    current: KeyPair
    next: KeyPair | None = None
    switch_at: float = 0.0

    @property
    def public(self) -> tuple[str, ...]:
        """The public keys that agents accept of this router, the one in use first."""
        return (self.current.public, *([self.next.public] if self.next is not None else ()))


def keys_directory(state: Path) -> Path:
    """The folder of a state directory that holds its owner's key pair."""
    return state / "keys"


def load_router_keys(state: Path) -> RouterKeys:
    """Read the keys of the router with this state directory; make a pair when there is none.

    Raises:
        ConfigError: they can neither be read nor be made.
    """
    directory = keys_directory(state)
    current = load_or_make(directory, _CURRENT)
    following = directory / f"{_NEXT}{SECRET}"
    if not following.exists():
        return RouterKeys(current)
    return RouterKeys(current, load_pair(following), _switch_time(directory / _ROTATION))


def rotation_stamp(state: Path) -> tuple[int, ...]:
    """Numbers that change when one of the router's key files does."""
    stamp: list[int] = []
    for name in (f"{_CURRENT}{SECRET}", f"{_NEXT}{SECRET}", _ROTATION):
        try:
            info = (keys_directory(state) / name).stat()
        except FileNotFoundError:
            stamp += (0, 0)
        else:
            stamp += (info.st_ino, info.st_mtime_ns)
    return tuple(stamp)


def begin_rotation(state: Path, switch_at: float) -> RouterKeys:
    """Make the pair that the router uses from `switch_at` on, in seconds since the epoch.

    Raises:
        ConfigError: a rotation is under way, or the files cannot be written.
    """
    keys = load_router_keys(state)
    if keys.next is not None:
        raise ConfigError(f"a rotation is under way: the next key is {keys.next.public}; wait until the router uses it")
    directory = make_private(keys_directory(state))
    write_private(directory / _ROTATION, json.dumps({"switch_at": switch_at}) + "\n")
    pair = make_pair()
    store_pair(directory, _NEXT, pair)
    return RouterKeys(keys.current, pair, switch_at)


def finish_rotation(state: Path) -> RouterKeys:
    """Make the next pair the current one. The secret file decides, so that a crash in between leaves a whole pair.

    Raises:
        ConfigError: the files cannot be moved.
    """
    directory = keys_directory(state)
    try:
        (directory / f"{_NEXT}{SECRET}").replace(directory / f"{_CURRENT}{SECRET}")
        (directory / f"{_NEXT}{PUBLIC}").replace(directory / f"{_CURRENT}{PUBLIC}")
        (directory / _ROTATION).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: the router's keys cannot be rotated: {error.strerror or error}") from error
    return load_router_keys(state)


def _switch_time(path: Path) -> float:
    """When a rotation ends; a file that was damaged or deleted means at once."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["switch_at"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    return float(value) if isinstance(value, (int, float)) else 0.0
