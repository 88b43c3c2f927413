"""The operations of the HTTP API that concern the router itself, and access to it."""

from __future__ import annotations

from prouter.access.requests import TokenRequest
from prouter.web.admin import responses
from prouter.web.admin.operation import (
    FORM,
    IDEMPOTENCY_KEY,
    JOB_ERRORS,
    JSON,
    LAST_EVENT_ID,
    SSE,
    TEXT,
    TEXT_SCHEMA,
    Operation,
    Parameter,
)

__all__ = ["about_access", "about_the_router"]


def about_the_router() -> list[Operation]:
    """Return the operations of the router and its agents."""
    connection = responses.Connection
    status = {200: responses.Status}
    return [
        Operation(
            "get", "/", "dashboard", "A page that shows agents and jobs, live.", {200: ("text/html",)}, errors=()
        ),
        Operation("get", "/info", "info", "Name, uid and platform of this router.", {200: responses.Info}),
        Operation(
            "get",
            "/connections",
            "connections",
            "All connections to agents, or a page of them; polling with If-None-Match is cheap.",
            {200: responses.Connections, 304: None},
            (
                Parameter(
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": 1000},
                    "Connections in a page; without it all.",
                ),
                Parameter("cursor", TEXT_SCHEMA, "`next` of the previous page."),
                Parameter("If-None-Match", TEXT_SCHEMA, "The ETag of the last response.", "header"),
            ),
            errors=(400, 503),
        ),
        Operation(
            "get", "/connections/{connection}", "connection", "One connection.", {200: connection}, errors=(404, 503)
        ),
        Operation(
            "post",
            "/connections/{connection}/drain",
            "drain",
            "Stop placing new jobs on the agent.",
            {200: connection},
            errors=JOB_ERRORS,
        ),
        Operation(
            "post",
            "/connections/{connection}/resume",
            "resume",
            "Place new jobs on the agent again.",
            {200: connection},
            errors=JOB_ERRORS,
        ),
        Operation("post", "/shutdown", "shutdown", "Drain the router and end it.", {200: None}),
        Operation(
            "get",
            "/events",
            "events",
            "Changes of jobs and agents as server-sent events: job, job.removed, agent; dropped if events were missed.",
            {200: (SSE,)},
            (
                LAST_EVENT_ID,
                Parameter("after", TEXT_SCHEMA, "The same as Last-Event-ID, for clients that cannot set headers."),
            ),
            errors=(400, 503),
        ),
        Operation("get", "/healthz", "healthz", "Whether this process responds.", status, errors=()),
        Operation("get", "/readyz", "readyz", "Whether the router takes new requests.", status),
        Operation("get", "/metrics", "metrics", "Metrics for Prometheus.", {200: (TEXT,)}, errors=()),
        Operation("get", "/openapi.json", "openapi", "This document.", {200: (JSON,)}, errors=()),
    ]


def about_access() -> list[Operation]:
    """Return the operations of access: who one is, signing in and out, tokens."""
    return [
        Operation(
            "get",
            "/sign-in",
            "signInPage",
            "A form to sign in with an access token.",
            {200: ("text/html",), 303: None},
            (Parameter("next", TEXT_SCHEMA, "Path on this host to go to then."),),
            errors=(),
        ),
        Operation(
            "post",
            "/sign-in",
            "signIn",
            "Begin a session; a cookie holds it, and the browser goes on to `next`.",
            {303: None},
            (),
            (FORM,),
            errors=(400, 401, 429, 503),
        ),
        Operation("post", "/sign-out", "signOut", "End the session of this request.", {204: None}, errors=(409, 503)),
        Operation("get", "/whoami", "whoami", "Whom the credentials let in.", {200: responses.WhoAmI}, errors=()),
        Operation(
            "get",
            "/.well-known/jwks.json",
            "publicKeys",
            "Public keys (JWK Set) with which a job's server verifies X-PRouter-Assertion.",
            {200: responses.PublicKeys},
        ),
        Operation("get", "/tokens", "tokens", "All access tokens, without their texts.", {200: responses.Tokens}),
        Operation(
            "post",
            "/tokens",
            "createToken",
            "A new access token; its text is shown this once.",
            {201: responses.NewToken},
            (IDEMPOTENCY_KEY,),
            TokenRequest,
            errors=(400, 409, 503),
        ),
        Operation(
            "delete",
            "/tokens/{token}",
            "revokeToken",
            "Revoke a token; answers once no worker accepts it.",
            {204: None},
            errors=(404, 409, 503),
        ),
    ]
