"""How a client reaches its router: URL, token, certificates, and the request that a flow's becomes."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from prouter import __version__
from prouter.client.core.flow import Lost, Request, Response

__all__ = ["DEFAULT_URL", "Settings", "header_map", "lost", "note_redirect", "own_url"]

DEFAULT_URL = "http://127.0.0.1:8888"
CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

_RELATIVE = "prouter.relative_redirect"
"""Extension of a request that follows a relative redirect of the job."""

Verify = bool | str | ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the router is and how to speak to it.

    Attributes:
        url: without user information and without a slash at its end.
        token: an access token, or None.
        verify: whether to check certificates; a file or directory of authorities, or a context.
        headers: fields of every request.
    """

    url: str
    token: str | None = field(repr=False)
    verify: Verify
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, url: str | None, token: str | None, verify: Verify, headers: Mapping[str, str] | None) -> Settings:
        """Return settings; what is not given comes from PROUTER_URL and PROUTER_TOKEN.

        The variable's token is for the variable's router: it is not sent to another one that the caller names.

        Raises:
            ValueError: the URL is none.
        """
        known = os.environ.get("PROUTER_URL")
        parts = urlsplit(url or known or DEFAULT_URL)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the router's URL begins with http:// or https:// and a host, such as " + DEFAULT_URL)
        if token is None and parts.password:
            token = unquote(parts.password)
        host = parts.netloc.rpartition("@")[2]
        plain = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        if token is None and (not url or not known or _origin(known) == _origin(plain)):
            token = os.environ.get("PROUTER_TOKEN")
        return cls(plain, (token or "").strip() or None, verify, dict(headers or {}))

    @property
    def fields(self) -> dict[str, str]:
        """Header fields of every request to the router."""
        fields = {
            "User-Agent": f"prouter-client/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a proxy that compresses would hold back events, and change lengths
            **self.headers,
        }
        return {**fields, **self.credentials}

    @property
    def credentials(self) -> dict[str, str]:
        """The header field that shows the token."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context; None for http."""
        if not self.url.startswith("https:"):
            return None
        if isinstance(self.verify, ssl.SSLContext):
            return self.verify
        if isinstance(self.verify, bool):
            return httpx.create_ssl_context(verify=self.verify)
        if os.path.isdir(self.verify):
            return ssl.create_default_context(capath=self.verify)
        return ssl.create_default_context(cafile=self.verify)

    def client_options(self, timeout: float) -> dict[str, Any]:
        """Return the options of an `httpx.Client` or `httpx.AsyncClient`."""
        tls = self.tls()
        return {
            "timeout": httpx.Timeout(timeout, connect=min(CONNECT_TIMEOUT, timeout)),
            "verify": True if tls is None else tls,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
        }

    def job_server(self, path: str) -> str:
        """Return the URL of a job's server."""
        return f"{self.url}{path}/http/"

    def web_socket(self, path: str, target: str) -> str:
        """Return the URL of a job's WebSocket."""
        return f"ws{self.url.removeprefix('http')}{path}/http/{target.lstrip('/')}"

    def direct(self, request: httpx.Request, path: str, own_url: str | None = None) -> None:
        """Let a request to the job's server be sent, with the token.

        A hostile job may redirect a client to the API or elsewhere, so other requests get no token. Requests under the
        job's own host name go to the router, too: here that name may lead nowhere, or past a tunnel.

        Args:
            path: the job's.
            own_url: of the job under its own host name; None if it has none (`own_url`).

        Raises:
            ValueError: the request is for the router, but not for this job's server.
        """
        root, url = httpx.URL(self.url), request.url
        own = httpx.URL(own_url) if own_url is not None else None
        name = b"" if own is None else own.netloc
        if own is not None and _same_origin(url, own):
            request.url = root.copy_with(raw_path=url.raw_path)
        elif not _same_origin(url, root):
            if request.headers.get("Authorization") == self.credentials.get("Authorization"):
                request.headers.pop("Authorization", None)
            return
        elif own is None or not request.extensions.get(_RELATIVE):
            prefix = httpx.URL(self.job_server(path)).raw_path
            if not (url.raw_path + b"/").startswith(prefix) and not url.raw_path.startswith(prefix[:-1] + b"?"):
                raise ValueError(f"{url} is not below the job's own address: the job's client asks only the job")
            if own is not None:
                request.url = root.copy_with(raw_path=url.raw_path[len(root.raw_path.rstrip(b"/")) :])
        if own is not None:
            request.headers["Host"] = name.decode("ascii")
        for field_, value in self.credentials.items():
            request.headers.setdefault(field_, value)


def note_redirect(response: httpx.Response) -> None:
    """Note whether a redirect is relative: to the job itself, whatever name the request came by."""
    response.request.extensions[_RELATIVE] = not urlsplit(response.headers.get("Location", "")).netloc


def own_url(uid: str, url: str | None) -> str | None:
    """Return the URL of a job if it is under a host name of the job's own (``control.job_domain``), else None."""
    host = urlsplit(url or "").hostname or ""
    return url if host.startswith(f"{uid.lower()}.") else None


def _same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def timeouts(request: Request, default: float) -> httpx.Timeout:
    """Return the time limits of one request."""
    silence = request.silence or default
    return httpx.Timeout(silence, connect=min(CONNECT_TIMEOUT, silence))


def fields_of(request: Request) -> dict[str, str]:
    """Return the header fields of one request."""
    fields = dict(request.headers)
    size = getattr(request.body, "size", None)
    if size is not None:
        fields["Content-Length"] = str(size)
    return fields


def header_map(headers: httpx.Headers) -> dict[str, str]:
    """Return header fields with names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def head_of(response: httpx.Response) -> Response:
    """Return an answer without its body."""
    return Response(response.status_code, header_map(response.headers))


def lost(error: httpx.TransportError) -> Lost:
    """Return what an error of httpx means for a flow."""
    early = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError))
    text = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    if isinstance(error, httpx.ReadTimeout):
        text = "no byte came in time"
    hopeless = "CERTIFICATE_VERIFY_FAILED" in text or "WRONG_VERSION_NUMBER" in text
    if "WRONG_VERSION_NUMBER" in text:
        text = "it does not speak TLS: use http:// instead of https://"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        text += " (verify= takes the file of the authority that signed the router's certificate)"
    return Lost(text, sent=not early, hopeless=hopeless)
