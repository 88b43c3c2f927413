"""The WSGI app of the HTTP API: which resource handles which path.

gunicorn serves `application`, which is made at a worker's first request, when its link to the broker exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import falcon

from prouter.access.gate import AccessGate
from prouter.config import RouterConfig
from prouter.web.admin.access import AccessControl
from prouter.web.admin.audit_trail import AuditTrail
from prouter.web.admin.budgets import Budgets
from prouter.web.admin.errors import add_error_handlers
from prouter.web.admin.feeds.event_feed import EventFeed
from prouter.web.admin.middleware import EmptyResponses, HeadRequests, RequestLog, Router
from prouter.web.admin.openapi import OpenApi
from prouter.web.admin.pages.own_pages import OwnPages
from prouter.web.admin.requests.body_memory import BodyMemory
from prouter.web.admin.requests.context import ApiRequest, ApiResponse
from prouter.web.admin.requests.frequent import FrequentReads
from prouter.web.admin.requests.known_hosts import KnownHosts
from prouter.web.admin.requests.same_origin import SameOrigin
from prouter.web.admin.resources.archives import Archives
from prouter.web.admin.resources.bridges import BridgeResource
from prouter.web.admin.resources.connections import Connections
from prouter.web.admin.resources.dashboard import Dashboard
from prouter.web.admin.resources.events import Events
from prouter.web.admin.resources.files import Files
from prouter.web.admin.resources.health import Health, Metrics
from prouter.web.admin.resources.info import Info
from prouter.web.admin.resources.jobs import Job, Jobs
from prouter.web.admin.resources.logs import Logs
from prouter.web.admin.resources.passes import Enter, Passes, PassResource
from prouter.web.admin.resources.ports import JobPorts
from prouter.web.admin.resources.public_keys import PublicKeys
from prouter.web.admin.resources.shares import Shares, forget_removed_jobs
from prouter.web.admin.resources.shutdown import Shutdown
from prouter.web.admin.resources.sign_in import SignIn, SignOut
from prouter.web.admin.resources.tokens import Tokens, WhoAmI
from prouter.web.proxy.addresses.forwarded import Forwarded
from prouter.web.proxy.callers.identity import Identity
from prouter.web.proxy.interfaces import Client
from prouter.web.router_client import RouterClient, current

__all__ = ["application", "create_app"]

App = falcon.App[ApiRequest, ApiResponse]

_JOB = "/jobs/{connection}/{job}"


class Polled(NamedTuple):
    """The resources that dashboards and probes poll; who has their responses at hand need not ask the app."""

    info: Info
    connections: Connections


def create_app(
    router: RouterClient,
    config: RouterConfig,
    gate: AccessGate,
    *,
    guards: Sequence[Any] = (),
    polled: Polled | None = None,
) -> App:
    """Make the Falcon app.

    Args:
        router: the worker's connection to the broker.
        config: the router's configuration.
        gate: who may use it.
        guards: further Falcon middleware that sees every request before its resource.
        polled: resources that are used outside the app as well.
    """
    if polled is None:
        polled = Polled(Info(router), Connections(router))
    requests = RequestLog()
    app: App = falcon.App(
        request_type=ApiRequest,
        response_type=ApiResponse,
        router=Router(),
        middleware=[
            requests,
            *([AuditTrail(router.audit)] if router.audit is not None else []),
            HeadRequests(),
            EmptyResponses(),
            *([Budgets(router.limits)] if router.limits is not None else []),
            KnownHosts(config),
            SameOrigin(),
            AccessControl(router, gate),
            BodyMemory(config.control.body_memory),
            *guards,
        ],
    )
    app.req_options.auto_parse_qs_csv = False
    pages = OwnPages(Identity(gate, config.control), config.control.job_domain)
    add_error_handlers(app, pages)
    app.add_sink(_options_of_all, re.compile(r"\*\Z"))
    _add_router_routes(app, router, gate, pages, polled)
    _add_job_routes(app, router)
    _add_ways_in(app, router, config, gate, pages)
    return app


def _options_of_all(req: ApiRequest, resp: ApiResponse, **kwargs: Any) -> None:
    """Respond to ``OPTIONS *`` (RFC 9110 section 9.3.7), a kind of ping."""
    resp.status = 204
    resp.set_header("Allow", "DELETE, GET, HEAD, OPTIONS, POST, PUT")


def _add_router_routes(app: App, router: RouterClient, gate: AccessGate, pages: OwnPages, polled: Polled) -> None:
    connections, health, tokens = polled.connections, Health(router), Tokens(gate)
    app.add_route("/", Dashboard(pages))
    app.add_route("/info", polled.info)
    app.add_route("/connections", connections)
    app.add_route("/connections/{connection}", connections, suffix="one")
    app.add_route("/connections/{connection}/drain", connections, suffix="drain")
    app.add_route("/connections/{connection}/resume", connections, suffix="resume")
    app.add_route("/shutdown", Shutdown(router))
    app.add_route("/events", Events(EventFeed(router)))
    app.add_route("/healthz", health, suffix="live")
    app.add_route("/readyz", health, suffix="ready")
    app.add_route("/metrics", Metrics(router))
    app.add_route("/openapi.json", OpenApi())
    app.add_route(
        "/.well-known/jwks.json", PublicKeys(router.assertions.keys if router.assertions is not None else None)
    )
    app.add_route("/sign-in", SignIn(gate, pages, router.limits))
    app.add_route("/sign-out", SignOut(gate))
    app.add_route("/whoami", WhoAmI())
    app.add_route("/tokens", tokens)
    app.add_route("/tokens/{token}", tokens, suffix="one")


def _add_job_routes(app: App, router: RouterClient) -> None:
    jobs, job, files, archives = Jobs(router), Job(router), Files(router), Archives(router)
    bridges = BridgeResource(router)
    app.add_route("/jobs", jobs)
    app.add_route("/jobs/create", jobs, suffix="create")
    app.add_route("/jobs/run", jobs, suffix="run")
    for verb in ("info", "explain", "start", "wait", "remove", "signal", "stop"):
        app.add_route(f"{_JOB}/{verb}", job, suffix=verb)
    app.add_route(f"{_JOB}/logs/{{name}}", Logs(router))
    app.add_route(f"{_JOB}/tcp/{{port}}", JobPorts(router))
    for noun, resource in (("file", files), ("archive", archives), ("wsconnect", bridges)):
        app.add_route(f"{_JOB}/{noun}", resource)
        app.add_route(f"{_JOB}/{noun}/{{rest:path}}", resource)


def _add_ways_in(app: App, router: RouterClient, config: RouterConfig, gate: AccessGate, pages: OwnPages) -> None:
    passes = Passes(gate, config.control)
    shares = Shares(router, gate, passes, sandboxed=config.control.sandbox_shares)
    app.add_route("/enter", Enter(router, passes, pages))
    app.add_route(f"{_JOB}/pass", PassResource(router, passes))
    app.add_route(f"{_JOB}/share", shares)
    app.add_route(f"{_JOB}/share/{{share}}", shares, suffix="one")
    forget_removed_jobs(router, gate)


class Application:
    """The API of this worker process: the WSGI app, and what is sent without it."""

    def __init__(self) -> None:
        self._made: tuple[App, FrequentReads] | None = None

    def _make(self) -> tuple[App, FrequentReads]:
        router = current()
        gate = router.gate
        assert gate is not None, "the worker sets it before its first request"
        polled = Polled(Info(router), Connections(router))
        app = create_app(router, router.config, gate, polled=polled)
        self._made = made = (app, FrequentReads(router, router.config, polled._asdict()))
        return made

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve a request (PEP 3333)."""
        return (self._made or self._make())[0](environ, start_response)

    def at_once(self, client: Client, forwarded: Forwarded) -> bool:
        """Respond to a request without the app, if that is possible; return whether it was."""
        return (self._made or self._make())[1].send(client, forwarded)


application = Application()
