"""Protection of endpoints that listen beyond loopback: access control, and encryption unless it is switched off."""

from __future__ import annotations

import ipaddress

from prouter.config.agent import AgentConfig, AgentServer
from prouter.config.errors import ConfigError
from prouter.config.router import RouterConfig, RouterServer
from prouter.tokens import SHORTEST

__all__ = ["check_exposure", "is_loopback", "uses_curve"]


def is_loopback(interface: str) -> bool:
    """Whether only this machine can reach `interface`."""
    if interface == "localhost":
        return True
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return False


def uses_curve(server: RouterServer | AgentServer) -> bool:
    """Whether links to this endpoint are encrypted: always beyond loopback, except with ``server.insecure``."""
    if not is_loopback(server.interface):
        return not server.insecure
    return server.curve or server.accept_keys is not None


def check_exposure(config: RouterConfig | AgentConfig, *, has_tokens: bool = False) -> None:
    """Refuse to serve other machines without access control.

    Args:
        has_tokens: whether there is an access token with which somebody can use a router's HTTP API.

    Raises:
        ConfigError: an interface beyond loopback is not protected.
    """
    _check_control(config, has_tokens)
    if config.server.enabled:
        _check_server(config)


def _check_control(config: RouterConfig | AgentConfig, has_tokens: bool) -> None:
    control = config.control
    if is_loopback(control.interface) or control.allow_open:
        return
    reached = f"control.interface: {control.interface} can be reached from other machines"
    if isinstance(config, RouterConfig):
        if not has_tokens and config.control.user_header is None:
            raise ConfigError(
                f"{reached}, and no access token exists; make one and start again, with the same --config and --set:\n"
                "  prouter token create --role admin NAME\n"
                "  prouter up\n"
                "or set control.allow_open if a proxy in front checks access"
            )
    elif config.control.enabled:
        raise ConfigError(
            f"{reached}; listen on 127.0.0.1 behind a proxy that checks access, or set control.allow_open"
        )


def _check_server(config: RouterConfig | AgentConfig) -> None:
    server = config.server
    if server.insecure and (server.curve or server.accept_keys is not None):
        other = "server.curve" if server.curve else "server.accept_keys"
        raise ConfigError(f"server.insecure: without encryption {other} has no effect; remove one of the two")
    if is_loopback(server.interface):
        return
    reached = f"{server.interface} can be reached from other machines"
    if not server.accept_tokens and not uses_curve(server):
        raise ConfigError(
            f"server.interface: {reached}, server.insecure is set and server.accept_tokens is empty; "
            "set the tokens to accept, remove server.insecure, or listen on 127.0.0.1"
        )
    if not server.accept_tokens and isinstance(config, AgentConfig) and server.accept_keys is None:
        raise ConfigError(
            f"server.interface: {reached}, and no router could link, since both server.accept_tokens is empty and "
            "server.accept_keys is not set; set one of them, or listen on 127.0.0.1"
        )
    tokens = server.accept_tokens
    shortest = min(map(len, tokens.values() if isinstance(tokens, dict) else tokens), default=SHORTEST)
    if shortest < SHORTEST:
        raise ConfigError(
            f"server.accept_tokens: {reached} and one of the tokens has {shortest} characters; "
            f"make it {SHORTEST} or more, random ones, for example with 'openssl rand -hex 16'"
        )
