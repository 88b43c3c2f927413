"""What `prouter doctor` looks at from here on a router: ports, access, clock, streams, agents."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from prouter import __version__
from prouter.cli.checks.findings import Check, error, ok, warning
from prouter.cli.remote.connection import Chosen
from prouter.cli.remote.failures import describe
from prouter.client import Connection, Router, RouterError, Unauthorized
from prouter.client.settings import CONNECT_TIMEOUT, Settings, lost

__all__ = ["router_checks"]

_SOON = 3.0
"""Seconds within which the first piece of a stream has to come."""
_CLOCK = (2.0, 60.0)
"""Seconds by which clocks may differ, before a warning and before an error."""
_FAR = 250.0
"""Milliseconds of latency that are worth a word."""


def router_checks(router: Router, choice: Chosen) -> list[Check]:
    """Return what was found about a router; nothing else is looked at if it cannot be reached."""
    port = _port(choice)
    if port.level == "error":
        return [port]
    settings = Settings.of(choice.url, choice.token or "", choice.ca or True, None)
    with httpx.Client(
        base_url=settings.url, headers=settings.fields, **settings.client_options(CONNECT_TIMEOUT)
    ) as http:
        try:
            ready = http.get("/readyz")
        except httpx.TransportError as failure:
            todo = (
                "check the URL: http or https, the port (8888 by default; 8889 is for agents), and the certificate "
                "('prouter context add --ca-file')"
            )
            return [port, error("router", f"{choice.url} does not speak HTTP with us: {lost(failure).reason}", todo)]
        found = [port, _ready(ready), _clock(ready), *_access(router, choice)]
        if all(one.level != "error" or one.name == "clock" for one in found):
            found += [*_router_version(http), _stream(http), *_agents(router, choice)]
        return found


def _port(choice: Chosen) -> Check:
    parts = urlsplit(choice.url)
    host, number = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, number), CONNECT_TIMEOUT):
            return ok("port", f"{host}:{number} accepts connections (URL from {choice.source})")
    except socket.gaierror:
        todo = "check the name in the URL, or the resolver of this machine"
        return error("port", f"the host {host} is not known (URL from {choice.source})", todo)
    except OSError as failure:
        refused = isinstance(failure, ConnectionRefusedError)
        todo = "start the router there ('prouter up'), or check the port" if refused else "check firewalls on the way"
        return error("port", f"{host}:{number} does not accept connections: {failure.strerror or failure}", todo)


def _ready(response: httpx.Response) -> Check:
    if response.status_code == 200:
        return ok("router", "it is ready")
    if response.status_code == 503 and "x-prouter-error" in response.headers:
        return error("router", "it is not ready: its broker is away, or it drains", "look at the log of 'prouter up'")
    todo = "use the router's own URL: is there another server, or a proxy with another path?"
    return error("router", f"/readyz answers {response.status_code}, which no router does", todo)


def _clock(response: httpx.Response) -> Check:
    try:
        there = parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return warning("clock", "the router tells no time (Date)", "a proxy on the way may remove it")
    off = there + 0.5 - time.time()  # the field has whole seconds
    if abs(off) <= _CLOCK[0]:
        return ok("clock", "the router's clock and this one agree")
    found = warning if abs(off) <= _CLOCK[1] else error
    ahead = "ahead of" if off > 0 else "behind"
    todo = "set both by NTP (timedatectl): expiry of tokens and links, and ages, go by them"
    return found("clock", f"the router's clock is {abs(off):.0f} s {ahead} this one", todo)


def _access(router: Router, choice: Chosen) -> Iterator[Check]:
    try:
        who = router.whoami()
    except Unauthorized as failure:
        yield error("access", describe(failure), "ask an admin of the router for a token: 'prouter token create NAME'")
        return
    except RouterError as failure:
        yield error("access", describe(failure), "look at the router's log")
        return
    here = _loopback(choice.url)
    if who.name is None:
        if here:
            yield ok("access", "the router asks nobody for a token, and listens here")
        else:
            todo = "make a token: 'prouter token create NAME --role admin' on the router's machine"
            yield warning("access", f"the router asks nobody for a token: you are {who.role}", todo)
    else:
        yield ok("access", f"you are '{who.name}' with the role {who.role}, by {who.via}")
    if choice.token and choice.url.startswith("http://") and not here:
        yield warning(
            "encryption", "your token crosses the network in clear text", "use https: docs/deployment-nginx.md"
        )


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _router_version(http: httpx.Client) -> Iterator[Check]:
    try:
        version = http.get("/openapi.json").json()["info"]["version"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        yield warning("versions", "the router does not tell its version", "check that the URL is the router's")
        return
    if version == __version__:
        yield ok("versions", f"the router has version {version}, as this command has")
    else:
        todo = "install the same version on both: pip install 'prouter[client]==" + str(version) + "'"
        yield warning("versions", f"the router has version {version}, this command {__version__}", todo)


def _stream(http: httpx.Client) -> Check:
    """See whether the first bytes of a stream that does not end come at once."""
    headers = {"Accept": "text/event-stream"}
    todo = "in nginx: proxy_buffering off (docs/deployment-nginx.md); other proxies have such an option, too"
    begun = time.monotonic()
    try:
        with http.stream(
            "GET", "/events", headers=headers, timeout=httpx.Timeout(_SOON, connect=CONNECT_TIMEOUT)
        ) as response:
            if response.status_code != 200:
                return warning("streams", f"/events answers {response.status_code}", "look at the router's log")
            next(response.iter_raw(), b"")
    except httpx.ReadTimeout:
        return error(
            "streams", f"nothing of a stream arrived within {_SOON:g} s: something on the way buffers it", todo
        )
    except httpx.HTTPError as failure:
        return error("streams", f"a stream broke: {failure or type(failure).__name__}", todo)
    return ok("streams", f"they arrive piece by piece: the first after {(time.monotonic() - begun) * 1000:.0f} ms")


def _agents(router: Router, choice: Chosen) -> Iterator[Check]:
    try:
        agents = router.connections()
    except RouterError as failure:
        yield error("agents", describe(failure), "look at the router's log")
        return
    if not agents:
        yield error(
            "agents", "no agent is linked: jobs cannot run", "'prouter agent' here, 'prouter invite' for others"
        )
    for agent in agents:
        yield _agent(agent)


def _agent(agent: Connection) -> Check:
    name = agent.agent.name or agent.agent.uid
    if not agent.up:
        todo = f"look at the agent's log on its machine, and whether it reaches the router ({agent.agent.uid})"
        return error("agents", f"the link to {name} is broken; the router waits for it", todo)
    if agent.draining:
        return warning("agents", f"{name} takes no new jobs", f"'prouter resume {agent.agent.uid}'")
    if agent.version and agent.version != __version__:
        return warning("agents", f"{name} has version {agent.version}", f"install {__version__} there when it is idle")
    if agent.latency_ms is not None and agent.latency_ms > _FAR:
        return warning("agents", f"{name} is {agent.latency_ms:.0f} ms away", "check the network, or the load, between")
    jobs = "1 job" if agent.jobs == 1 else f"{agent.jobs} jobs"
    return ok("agents", f"{name} is linked, {agent.latency_ms or 0:.0f} ms away, with {jobs}")
