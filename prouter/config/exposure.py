"""The rule that nothing listens beyond loopback unprotected by accident."""

from __future__ import annotations

import ipaddress

from prouter.config.errors import ConfigError
from prouter.config.models import AgentConfig, RouterConfig
from prouter.tokens import SHORTEST

__all__ = ["check_exposure", "is_loopback"]


def is_loopback(interface: str) -> bool:
    """Whether only this machine can reach `interface`."""
    if interface == "localhost":
        return True
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def check_exposure(config: RouterConfig | AgentConfig) -> None:
    """Refuse to serve other machines without access control.

    Raises:
        ConfigError: an interface beyond loopback is not protected, or relies on a protection that is not there.
    """
    control, server = config.control, config.server
    if isinstance(config, RouterConfig) and config.control.tokens:
        raise ConfigError(
            "control.tokens: this version does not check tokens of the HTTP API; "
            "remove them and listen on 127.0.0.1 behind a proxy that checks access"
        )
    serves = isinstance(config, RouterConfig) or config.control.enabled
    if serves and not is_loopback(control.interface) and not control.allow_open:
        raise ConfigError(
            f"control.interface: {control.interface} can be reached from other machines; "
            "listen on 127.0.0.1 behind a proxy that checks access, or set control.allow_open"
        )
    if server.enabled and not is_loopback(server.interface) and not server.accept_tokens:
        raise ConfigError(
            f"server.interface: {server.interface} can be reached from other machines "
            "and server.accept_tokens is empty; set the tokens to accept, or listen on 127.0.0.1"
        )
    tokens = server.accept_tokens
    shortest = min(map(len, tokens.values() if isinstance(tokens, dict) else tokens), default=SHORTEST)
    if server.enabled and not is_loopback(server.interface) and shortest < SHORTEST:
        raise ConfigError(
            f"server.accept_tokens: {server.interface} can be reached from other machines and one of the tokens has "
            f"{shortest} characters; make it {SHORTEST} or more, random ones, for example with 'openssl rand -hex 16'"
        )
