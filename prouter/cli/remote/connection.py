"""Which router a command uses: options, then PROUTER_URL and PROUTER_TOKEN, then the current context, then loopback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from prouter.cli.remote import contexts
from prouter.cli.remote.failures import Failure
from prouter.client import Router
from prouter.client.settings import DEFAULT_URL

__all__ = ["LONG", "META_KEY", "SHORT", "Chosen", "check_url", "chosen", "connect", "read_token"]

SHORT = 5.0
"""Seconds for which commands that people wait for try a router that does not answer."""
LONG = 60.0
"""The same for commands that work for long, such as `run`."""
_FIRST_CONTACT = 1.5
"""The same until the router has answered once: most often it does not run, or its URL is wrong."""
META_KEY = "prouter.cli.router"
"""Where a command's context has the values of the options that choose a router."""


@dataclass(frozen=True)
class Chosen:
    """The router that a command uses.

    Attributes:
        url: of the router.
        token: an access token, or None.
        ca: file of an authority, or None.
        source: where the URL is from, for people.
    """

    url: str
    token: str | None = field(repr=False)
    ca: str | None
    source: str


def read_token(file: str) -> str:
    """Return the token in a file, - for stdin.

    Raises:
        Failure: there is none, or more than a token.
    """
    if file == "-":
        if sys.stdin.isatty():
            text: str = click.prompt("Token", hide_input=True, err=True)
        else:
            text = sys.stdin.readline(4097)
    else:
        try:
            with Path(file).expanduser().open(encoding="utf-8", errors="replace") as stream:
                text = stream.read(4097)
        except OSError as error:
            raise Failure(f"--token-file: {file}: {error.strerror}") from error
    token = text.strip()
    if not token or len(token) > 4096 or not token.isascii() or not token.isprintable() or " " in token:
        where = "stdin" if file == "-" else f"'{file}'"
        raise Failure(f"--token-file: {where} holds no token: it is one line, as 'prouter token create' prints it", 2)
    return token


def check_url(url: str) -> str:
    """Return a router's URL. Raises `Failure` if it is none, or holds a password."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(f"{url!r} is no router's URL: it begins with http:// or https:// and a host, as {DEFAULT_URL}", 2)
    if parts.password or parts.username:
        raise Failure("the URL holds a user or a token, which everybody on this machine can read: use --token-file", 2)
    return url.rstrip("/")


def chosen(given: dict[str, str | None] | None = None) -> Chosen:
    """Return the router of the command that runs.

    Args:
        given: values of ``--url``, ``--token-file`` and ``--context``; by default those of the command.

    Raises:
        Failure: options contradict each other, or name nothing.
    """
    options = given if given is not None else click.get_current_context().meta.get(META_KEY, {})
    file = options.get("token_file")
    token = read_token(file) if file else None
    url, name = options.get("url"), options.get("context")
    if url and name:
        raise Failure("--url and --context exclude each other: each of them names a router", 2)
    if url:
        return Chosen(check_url(url), token if token is not None else _variable_for(url), None, "--url")
    known = os.environ.get("PROUTER_URL")
    if not name and known:
        return Chosen(known, token or _variable(), None, "PROUTER_URL")
    stored = contexts.load()
    explicit = name or os.environ.get("PROUTER_CONTEXT")
    if name or explicit or stored.current:
        name = explicit or stored.current
        assert name is not None
        context = stored.get(name)
        variable = None if explicit else _variable()
        return Chosen(context.url, token or variable or context.token, context.ca, f"context '{name}'")
    return Chosen(DEFAULT_URL, token or _variable(), None, "the default")


def _variable() -> str | None:
    return os.environ.get("PROUTER_TOKEN") or None


def _variable_for(url: str) -> str | None:
    """The variable's token, unless PROUTER_URL says that it is for another router."""
    known = os.environ.get("PROUTER_URL")
    return _variable() if not known or _origin(known) == _origin(url) else None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def connect(retry_for: float = SHORT, choice: Chosen | None = None, make: Callable[..., Router] = Router) -> Router:
    """Return a client of the command's router. No connection is made yet.

    Args:
        retry_for: seconds for which a router that does not answer is tried.
    """
    choice = choice or chosen()
    verify: Any = choice.ca if choice.ca is not None else True
    try:
        token = choice.token or ""
        return make(choice.url, token=token, retry_for=retry_for, first_contact=_FIRST_CONTACT, verify=verify)
    except ValueError as error:
        raise Failure(f"{choice.source}: {error}", 2) from error
