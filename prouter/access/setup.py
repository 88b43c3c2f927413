"""Access as a router's configuration has it."""

from __future__ import annotations

import time
from pathlib import Path

from prouter.access.gate import AccessGate
from prouter.access.token_file import TokenFile
from prouter.access.tokens import Token, configured
from prouter.config import ConfigError, RouterConfig, check_exposure, is_loopback
from prouter.config.directories import access_dir

__all__ = ["check_access", "gate_for"]


def gate_for(config: RouterConfig) -> AccessGate:
    """Return the gate of a worker.

    Raises:
        ConfigError: ``control.tokens`` is wrong.
    """
    control = config.control
    exposed = not is_loopback(control.interface) and not control.allow_open
    always = exposed or control.user_header is not None
    return AccessGate(access_dir(config), _configured(config), always=always)


def check_access(config: RouterConfig) -> None:
    """Refuse to serve other machines when nobody could be let in, or everybody would be.

    Raises:
        ConfigError: an interface beyond loopback is not protected; ``control.tokens`` is wrong, or the file of tokens.
    """
    check_exposure(config, has_tokens=bool(_configured(config)) or _has_tokens(access_dir(config)))


def _configured(config: RouterConfig) -> list[Token]:
    try:
        return configured(config.control.tokens)
    except ValueError as error:
        raise ConfigError(f"control.tokens: {error}") from None


def _has_tokens(directory: Path) -> bool:
    now = time.time()
    return any(token.valid(now) for token in TokenFile(directory).all())
