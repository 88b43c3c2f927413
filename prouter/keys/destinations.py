"""The routers that an agent dials, each with its keys and token: those of the configuration and those it joined."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prouter.addresses import LOCAL, split_address
from prouter.config import AgentConfig, ConfigError, is_loopback
from prouter.key_pairs import KeyPair, is_key
from prouter.keys.files import load_or_make, load_pair, load_public
from prouter.keys.known_routers import KnownRouter, KnownRouters
from prouter.keys.router_keys import keys_directory

__all__ = ["agent_pair", "destinations", "load_keys", "require_key"]


def destinations(config: AgentConfig, known: KnownRouters) -> list[KnownRouter]:
    """The routers to dial.

    An agent that joined routers dials those and the addresses of its configuration. The default of ``client.address``
    counts only for an agent that joined none.

    Raises:
        ConfigError: a router on another machine has no known key, or a key file cannot be read.
    """
    client = config.client
    joined = [router for router in known if router.joined]
    given = client.address if "address" in client.model_fields_set or not joined else ()
    configured = load_keys(client.router_key, "client.router_key")
    found: dict[str, KnownRouter] = {}
    for address in [given] if isinstance(given, str) else given:
        stored = known.get(address) or KnownRouter(address)
        keys = tuple(dict.fromkeys([*stored.keys, *configured]))
        found[address] = KnownRouter(address, keys, stored.token or client.token, joined=stored.joined)
    for router in joined:
        found.setdefault(router.address, router)
    for router in found.values():
        if not client.insecure:
            require_key(router.address, router.keys)
    return list(found.values())


def require_key(address: str, keys: Iterable[str]) -> None:
    """Refuse to link to another machine without encryption.

    Raises:
        ConfigError: `address` is of another machine, and there is no key.
    """
    if address.startswith(LOCAL) or is_loopback(split_address(address)[0]) or any(keys):
        return
    raise ConfigError(
        f"client.address: {address} is another machine, and the public key of its router is not known; join it with "
        "'prouter agent --join URL' (on the router's machine, 'prouter invite' prints the URL) or set "
        "client.router_key; client.insecure links without encryption"
    )


def load_keys(given: str | Iterable[str], setting: str) -> tuple[str, ...]:
    """Public keys as settings name them: in Z85, or as paths of files ``NAME.key``.

    Raises:
        ConfigError: a file cannot be read or holds no key.
    """
    keys = []
    for entry in [given] if isinstance(given, str) else given:
        # Z85 has the characters of paths: one of 40 characters may look like a key.
        if is_key(entry) and not Path(entry).is_file():
            keys.append(entry)
        elif entry:
            try:
                keys.append(load_public(Path(entry).expanduser()))
            except ConfigError as error:
                raise ConfigError(f"{setting}: neither a key in Z85 nor a file that holds one: {error}") from None
    return tuple(keys)


def agent_pair(config: AgentConfig, state: Path) -> KeyPair:
    """The agent's own key pair: the one that ``client.key`` names, else one made in the state directory.

    Raises:
        ConfigError: it can neither be read nor be made.
    """
    if config.client.key:
        return load_pair(Path(config.client.key).expanduser())
    return load_or_make(keys_directory(state), "agent")
