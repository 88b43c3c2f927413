"""The public keys of agents that listen (``client.agent_keys``), by which the router knows them when it dials."""

from __future__ import annotations

from collections.abc import Mapping

from prouter.addresses import split_address
from prouter.config import is_loopback
from prouter.keys.destinations import load_keys

__all__ = ["AgentKeys"]


class AgentKeys:
    """The key of each agent that is dialled.

    Args:
        configured: ``client.agent_keys``: keys in Z85 or paths of files, by address.
        insecure: ``client.insecure``: whether agents on other machines are dialled without encryption, too.

    Raises:
        ConfigError: a file cannot be read or holds no key.
    """

    def __init__(self, configured: Mapping[str, str], *, insecure: bool) -> None:
        self._insecure = insecure
        self._keys = {
            split_address(address): key
            for address, given in configured.items()
            for key in load_keys(given, f"client.agent_keys: {address}")
        }

    def of(self, address: str) -> str | None:
        """The public key of the agent at ``HOST:PORT``; None for a link without encryption."""
        return self._keys.get(split_address(address))

    def why_not(self, address: str) -> str:
        """Why the agent at ``HOST:PORT`` is not dialled; empty when it is."""
        if self._insecure or self.of(address) is not None or is_loopback(split_address(address)[0]):
            return ""
        return (
            f"the agent at {address} is on another machine, and the router does not know its key; set it in "
            "the router's client.agent_keys, or allow links without encryption with client.insecure"
        )
