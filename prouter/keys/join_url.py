"""The URL by which an agent joins a router: ``prouter://HOST:PORT/?key=KEY&token=TOKEN``."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, urlsplit

from prouter.addresses import split_address
from prouter.config.errors import ConfigError
from prouter.key_pairs import from_bytes, is_key, to_bytes

__all__ = ["JoinUrl", "format_join_url", "parse_join_url"]

_SCHEME = "prouter"
_KNOWN = ("key", "token")


@dataclass(frozen=True, slots=True)
class JoinUrl:
    """What a router's invitation tells an agent.

    Attributes:
        address: ``HOST:PORT`` of the router.
        keys: public keys that the router has, or is about to have, in Z85; none when it does not encrypt.
        token: to present to the router.
    """

    address: str
    keys: tuple[str, ...]
    token: str = field(repr=False)


def format_join_url(url: JoinUrl) -> str:
    """Write the URL. A key is in base64url, since Z85 has characters that shells and URLs give a meaning to."""
    keys = [f"key={base64.urlsafe_b64encode(to_bytes(key)).decode().rstrip('=')}&" for key in url.keys]
    return f"{_SCHEME}://{url.address}/?{''.join(keys)}token={quote(url.token, safe='')}"


def parse_join_url(text: str) -> JoinUrl:
    """Read the URL; the key may be in base64url or in Z85 with percent-encoding.

    Raises:
        ConfigError: it is another kind of text; the message repeats neither key nor token.
    """
    text = text.strip()
    if not text.startswith(f"{_SCHEME}://"):
        raise ConfigError(
            "--join: a URL like prouter://HOST:PORT/?key=…&token=… is expected, as 'prouter invite' prints it"
        )
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ConfigError("--join: the router's address must be 'host:port'; copy the URL whole, in quotes") from None
    try:
        split_address(parts.netloc)
    except ValueError as error:
        raise ConfigError(f"--join: the router's address {parts.netloc!r} {error}") from None
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    fields = dict(pairs)
    unknown = sorted(set(fields) - set(_KNOWN))
    if unknown or parts.path not in ("", "/") or parts.fragment:
        what = f"the field {unknown[0]!r:.32}" if unknown else "a path or fragment"
        raise ConfigError(f"--join: the URL has {what}, which is not expected; copy it whole, in quotes")
    token = fields.get("token", "")
    if not token:
        raise ConfigError("--join: the URL has no token; copy it whole, in quotes, since '&' means something to shells")
    return JoinUrl(parts.netloc, tuple(_key(value) for name, value in pairs if name == "key" and value), token)


def _key(text: str) -> str:
    if is_key(text):
        return text
    try:
        return from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except ValueError:
        raise ConfigError("--join: the URL's key is damaged; copy the URL whole, in quotes") from None
