"""The routers that an agent knows, in a private file: their addresses, public keys and tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prouter.config.errors import ConfigError
from prouter.key_pairs import is_key
from prouter.keys.files import write_private
from prouter.keys.join_url import JoinUrl

__all__ = ["KnownRouter", "KnownRouters"]


@dataclass(frozen=True, slots=True)
class KnownRouter:
    """A router and what it takes to link to it.

    Attributes:
        address: ``HOST:PORT`` or ``ipc://PATH``.
        keys: public keys that it may have, in the order in which they are tried; none for a link without encryption.
        token: to present to it.
        joined: whether the agent joined it, so that it is dialled although no configuration names it.
    """

    address: str
    keys: tuple[str, ...] = ()
    token: str = field(default="", repr=False)
    joined: bool = False


class KnownRouters:
    """The routers known, by address.

    A router that the agent joins is written to the file when the router has accepted the agent: an invitation that was
    used or has expired leaves nothing behind.

    Args:
        path: of the file; it need not exist.

    Raises:
        ConfigError: the file cannot be read, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored = _read(path)
        self._joining: dict[str, KnownRouter] = {}

    def __iter__(self) -> Iterator[KnownRouter]:
        """Every router that is stored or being joined."""
        return iter({**self._stored, **self._joining}.values())

    def get(self, address: str) -> KnownRouter | None:
        """The router at this address."""
        return self._joining.get(address) or self._stored.get(address)

    def is_joining(self, address: str) -> bool:
        """Whether the router at this address has not accepted the agent's invitation yet."""
        return address in self._joining

    def join(self, url: JoinUrl) -> None:
        """Know the router of an invitation; stored by `accepted`."""
        self._joining[url.address] = KnownRouter(url.address, url.keys, url.token, joined=True)

    def accepted(self, address: str, keys: Sequence[str] = ()) -> None:
        """The router at this address has accepted the agent, and told its keys, if it has any.

        Raises:
            ConfigError: the file cannot be written.
        """
        joining = self._joining.get(address)
        known = joining or self._stored.get(address) or KnownRouter(address)
        told = tuple(key for key in keys if is_key(key))
        learnt = replace(known, keys=told or known.keys)
        if learnt != self._stored.get(address) and (joining is not None or told):
            self._store({**self._stored, address: learnt})
        self._joining.pop(address, None)

    def _store(self, routers: dict[str, KnownRouter]) -> None:
        body = {"routers": [asdict(router) for router in routers.values()]}
        write_private(self._path, json.dumps(body, indent=2) + "\n")
        self._stored = routers


def _read(path: Path) -> dict[str, KnownRouter]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        routers = [_router(entry) for entry in json.loads(text)["routers"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} is damaged; delete it and join the routers again with 'prouter agent --join'"
        ) from None
    return {router.address: router for router in routers}


def _router(entry: dict[str, Any]) -> KnownRouter:
    keys = tuple(str(key) for key in entry["keys"])
    if not all(is_key(key) for key in keys):
        raise ValueError("a key is damaged")
    return KnownRouter(str(entry["address"]), keys, str(entry["token"]), joined=entry["joined"] is True)
