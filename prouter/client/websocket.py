"""WebSockets of jobs, with the router's token in the handshake."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.asyncio.client import connect as AsyncConnect
    from websockets.exceptions import InvalidHandshake, InvalidStatus
    from websockets.sync.client import ClientConnection

__all__ = ["connect", "connect_async"]

_MAX_MESSAGE = 64 << 20
"""Bytes of a message, at most, unless the caller says otherwise."""


def _options(credentials: Mapping[str, str], tls: ssl.SSLContext | None, given: Mapping[str, Any]) -> dict[str, Any]:
    own = {} if tls is None else {"ssl": tls}
    headers = [*credentials.items(), *dict(given.get("additional_headers") or {}).items()]
    return {"max_size": _MAX_MESSAGE, **own, **given, "additional_headers": headers}


def connect(
    url: str, credentials: Mapping[str, str], tls: ssl.SSLContext | None, options: Mapping[str, Any]
) -> ClientConnection:
    """Open a WebSocket. Redirects are not followed: a hostile job could send the token elsewhere.

    Raises:
        websockets.exceptions.InvalidStatus: the job, or the router, refused it.
        OSError: the router cannot be reached.
    """
    from websockets.exceptions import InvalidStatus
    from websockets.sync import client

    class Staying(client.ClientConnection):
        def handshake(self, *args: Any, **kwargs: Any) -> None:
            try:
                super().handshake(*args, **kwargs)
            except InvalidStatus as error:
                raise _refused(error) from error

    own: dict[str, Any] = {"create_connection": Staying}
    if "legacy" in signature(client.connect).parameters:
        own["legacy"] = True  # from 17.1 on: return the connection itself
    opened: ClientConnection = client.connect(url, **own, **_options(credentials, tls, options))
    return opened


def connect_async(
    url: str, credentials: Mapping[str, str], tls: ssl.SSLContext | None, options: Mapping[str, Any]
) -> AsyncConnect:
    """Return what opens a WebSocket once it is awaited or entered; see `connect`."""
    from websockets.asyncio import client
    from websockets.exceptions import InvalidStatus

    class Staying(client.ClientConnection):
        async def handshake(self, *args: Any, **kwargs: Any) -> None:
            try:
                await super().handshake(*args, **kwargs)
            except InvalidStatus as error:
                raise _refused(error) from error

    return client.connect(url, create_connection=Staying, **_options(credentials, tls, options))


def _refused(error: InvalidStatus) -> InvalidHandshake:
    from websockets.exceptions import InvalidHandshake

    status = error.response.status_code
    if not 300 <= status < 400:
        return error
    return InvalidHandshake(f"the job's server answered {status}, a redirect, which is not followed")
