"""URLs of the servers that bridges connect to: checked, and masked where they may hold secrets."""

from __future__ import annotations

from urllib.parse import urlsplit

from websockets.exceptions import InvalidURI, WebSocketException
from websockets.uri import parse_uri

from prouter.errors import InvalidRequest

__all__ = ["masked", "server_of", "websocket_url"]

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_HIDDEN = "***"


def websocket_url(url: str) -> str:
    """Return `url` as a ``ws`` or ``wss`` URL; ``http`` and ``https`` stand for these.

    Raises:
        InvalidRequest: no WebSocket client can use the URL. The text does not repeat it: it may hold a password.
    """
    if any(character.isspace() or not character.isprintable() for character in url):
        raise _wrong("it holds a space, a line break or another control character")
    scheme, separator, rest = url.partition("://")
    known = _SCHEMES.get(scheme.lower()) if separator else None
    if known is None:
        raise _wrong("it does not begin with one of these")
    found = f"{known}://{rest}"
    try:
        parse_uri(found)
    except InvalidURI as error:
        raise _wrong(error.msg) from None
    except (ValueError, WebSocketException):  # its text may repeat a part of the URL
        raise _wrong("its host or port is malformed") from None
    return found


def server_of(url: str) -> tuple[str, int]:
    """Return host and port of a URL that `websocket_url` returned, as the WebSocket client reads them."""
    parsed = parse_uri(url)
    return parsed.host, parsed.port


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: url must be a whole ws://, wss://, http:// or https:// URL: {why}")


def masked(url: str) -> str:
    """Return a URL or path for logs, lists and error texts, without user information and query: they may be secrets."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    shown = parts._replace(netloc=f"{_HIDDEN}{at}{host}" if user or at else host, query="", fragment="").geturl()
    return f"{shown}?{_HIDDEN}" if parts.query else shown
