"""The rules by which an agent admits routers that dial it: tokens (``server.accept_tokens``) and known keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prouter.config import AgentConfig, is_loopback
from prouter.keys.accepted_keys import AcceptedKeys
from prouter.tokens import Tokens

__all__ = ["RouterGate"]


class RouterGate:
    """Which routers may link.

    Args:
        tokens: accepted ones, or the token of each router's uid.
        keys: of ``server.accept_keys``; None when it is not set.
        closed: whether a router needs a token or a known key even where neither is set.
    """

    def __init__(
        self, tokens: Sequence[str] | Mapping[str, str] = (), keys: AcceptedKeys | None = None, *, closed: bool = False
    ) -> None:
        self._asks_for_tokens = bool(tokens)
        self._tokens = Tokens(tokens)
        self._keys = keys
        self._closed = closed

    @classmethod
    def of(cls, config: AgentConfig) -> RouterGate:
        """The rules of an agent's configuration.

        Raises:
            ConfigError: the directory of keys cannot be read.
        """
        server = config.server
        keys = AcceptedKeys(Path(server.accept_keys).expanduser()) if server.accept_keys is not None else None
        return cls(server.accept_tokens, keys, closed=not is_loopback(server.interface))

    def accepts(self, public_key: str) -> bool:
        """Return whether a router with this key gets through CURVE's handshake."""
        return self._keys is None or public_key in self._keys.current()

    def refusal(self, uid: object, token: object, public_key: str) -> tuple[str, str] | None:
        """Return why a router is refused, as a code and a text; None if it is admitted.

        Args:
            public_key: that the router has proved to own, in Z85; empty without encryption.
        """
        owner = self._keys.current().get(public_key) if self._keys is not None else ""
        if owner is None:
            return "unknown_key", "the router's key is not in the agent's server.accept_keys"
        if owner not in ("", uid):
            return "unknown_key", f"the router's key is good for uid '{owner}' only (server.accept_keys)"
        if self._asks_for_tokens:
            return (
                None if self._tokens.mark(uid, token) is not None else ("bad_token", "the token is not accepted here")
            )
        if self._closed and self._keys is None:
            return (
                "bad_token",
                "the agent accepts no router: neither server.accept_tokens nor server.accept_keys is set",
            )
        return None
