"""Refusal of requests for host names that are not this router's, which protects the API from DNS rebinding."""

from __future__ import annotations

import logging

import falcon

from prouter.config import RouterConfig
from prouter.config.exposure import is_loopback
from prouter.errors import PRouterError
from prouter.host_names import HostNames

__all__ = ["KnownHosts", "UnknownHost"]

_SHOWN = 100
"""Characters of a refused name that the error text repeats."""


class UnknownHost(PRouterError):
    """The request is for a host name that is not this router's (RFC 9110 section 15.5.20)."""

    code = "unknown_host"
    status = 421
    level = logging.WARNING


class KnownHosts:
    """Falcon middleware that refuses requests for other hosts, by the rules of `prouter.host_names`.

    Requests for jobs do not pass here: the proxy forwards them under any name.

    Args:
        config: the router's configuration.
        resolve: whether to ask the resolver for the machine's full name, which may block. Without it that name is
            unknown.
    """

    def __init__(self, config: RouterConfig, *, resolve: bool = True) -> None:
        control = config.control
        domain = control.job_domain
        self._names = HostNames(
            (*control.hosts, *([domain.strip(".")] if domain else [])),
            any_address=not is_loopback(control.interface),
            resolve=resolve,
        )

    def accept(self, host: str) -> bool:
        """Whether this is a host name of the router."""
        return self._names.accept(host)

    def process_request(self, req: falcon.Request, _resp: falcon.Response) -> None:
        """Check the host names; run before the resource (Falcon).

        Raises:
            UnknownHost: a name that the client used, or that a trusted proxy says it used, is not the router's.
        """
        hosts: tuple[str, ...] = req.env.get("prouter.hosts") or (req.env.get("HTTP_HOST", "localhost"),)
        for host in hosts:
            if not self._names.accept(host):
                shown = ascii(host[:_SHOWN])
                raise UnknownHost(
                    f"{shown} is not a host name of this router; if it is to be one, add it to control.hosts in the "
                    "router's configuration"
                )
