"""Errors as HTTP responses: problem documents (RFC 9457) for the router's own errors, Falcon's and unforeseen ones."""

from __future__ import annotations

import json
import logging
import math
import re
from typing import Any

import falcon

from prouter.access.credentials import CHALLENGE
from prouter.errors import MadeBefore, PreconditionFailed, PRouterError, Unsupported
from prouter.web.admin.pages.own_pages import SIGN_IN_FAILED, OwnPages
from prouter.web.admin.requests.context import ApiRequest
from prouter.web.metrics import counters
from prouter.web.proxy.own_responses.pages import page, prefers_html

__all__ = ["MethodNotAllowed", "PreconditionFailed", "add_error_handlers", "problem"]

log = logging.getLogger("prouter.web")

_RETRY_STATUSES = (429, 503)
_JOB_PAGE = re.compile(r"/jobs/[^/]{1,200}/[^/]{1,200}/http(?:/|\Z)")
_SHOWN_PATH = 200
"""Characters of a path that an error text repeats."""
_FOR_PEOPLE = frozenset(
    {
        "needs_own_origin",
        "no_role",
        "outside_prefix",
        "role_needed",
        "share_needs_own_origin",
        "too_many_requests",
        "unknown_host",
        "unusable_user",
    }
)
"""Codes of errors that people meet in a browser: they get a page."""
_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported"}


class MethodNotAllowed(PRouterError):
    """The path exists but does not take the method."""

    code = "method_not_allowed"
    status = 405
    level = logging.INFO


def problem(error: PRouterError, request_id: str) -> dict[str, Any]:
    """Return the problem document (RFC 9457) for an error."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": falcon.code_to_http_status(error.status).partition(" ")[2],
        "status": error.status,
        "detail": error.told,
        "code": error.code,
        "request_id": request_id,
    }
    if error.job is not None:
        document["job"] = error.job
    if error.state is not None:
        document["state"] = error.state
    if error.limit is not None:
        document["limit"] = error.limit._asdict()
    if isinstance(error, MadeBefore) and error.made is not None:
        document["made"] = error.made
    return document


def add_error_handlers(app: falcon.App[Any, Any], pages: OwnPages) -> None:
    """Have `app` turn every error into a problem document, or a page for people, and a log line."""
    errors = _Errors(pages)
    app.add_error_handler(Exception, errors.on_unforeseen)
    app.add_error_handler(falcon.HTTPError, errors.on_falcon_error)
    app.add_error_handler(PRouterError, errors.on_error)


class _Errors:
    """Responds to errors.

    Args:
        pages: for people without credentials.
    """

    def __init__(self, pages: OwnPages) -> None:
        self._pages = pages

    def on_error(self, req: ApiRequest, resp: falcon.Response, error: PRouterError, _params: dict[str, Any]) -> None:
        """Respond to one of the router's own errors."""
        self._respond(req, resp, error)

    def on_falcon_error(
        self, req: ApiRequest, resp: falcon.Response, error: falcon.HTTPError, _params: dict[str, Any]
    ) -> None:
        """Respond to one of Falcon's."""
        status = error.status_code
        path = req.raw_path if len(req.raw_path) <= _SHOWN_PATH else req.raw_path[: _SHOWN_PATH - 1] + "…"
        detail = error.description or error.title or "the request failed"
        headers = error.headers
        if headers is not None:
            resp.set_headers(headers)
        code = _CODES.get(status, "http_error")
        if status in (404, 405) and (job := _asking_job(req)) is not None:
            detail, code = _outside(path, job), "outside_prefix"
        elif status == 404:
            detail = f"there is nothing at '{path}'"
        elif status == 405:
            allowed = dict(headers or {}).get("Allow", "")
            detail = f"'{path}' does not take {req.method}" + (f", only {allowed}" if allowed else "")
        elif status == 400:
            detail = f"Invalid request: {detail}"
        known = type("HttpError", (PRouterError,), {"status": status, "level": logging.INFO})
        self._respond(req, resp, known(detail, code=code))

    def on_unforeseen(self, req: ApiRequest, resp: falcon.Response, error: Exception, _params: dict[str, Any]) -> None:
        """Turn an unforeseen error into a 500, with a traceback in the log."""
        if isinstance(error, ConnectionError):
            raise error
        log.error(
            "event=request_crashed request=%s method=%s path=%s", req.id, req.method, req.raw_path, exc_info=error
        )
        text = "the request failed in the router: its log has the reason under the request id"
        self._respond(req, resp, PRouterError(text))

    def _respond(self, req: ApiRequest, resp: falcon.Response, error: PRouterError) -> None:
        log.log(
            error.level,
            "event=request_failed code=%s status=%d request=%s method=%s path=%s job=%s detail=%r",
            error.code,
            error.status,
            req.id,
            req.method,
            req.raw_path,
            error.job,
            error.logged,
        )
        if error.limit is not None:
            counters.current().count_refusal(error.limit.name)
        resp.status = error.status
        resp.stream = None
        for_people = prefers_html(req.get_header("Accept", default="").encode("latin-1"))
        if error.status == 401:
            resp.set_header("WWW-Authenticate", CHALLENGE)
        if for_people and error.status == 401:
            self._pages.refuse(req, resp, error.told if error.code == SIGN_IN_FAILED else "")
        elif for_people and error.code in _FOR_PEOPLE:
            resp.data = page(error, "", req.id)
            resp.content_type = "text/html; charset=utf-8"
        else:
            resp.data = json.dumps(problem(error, req.id)).encode("ascii")
            resp.content_type = "application/problem+json"
        resp.set_header("X-PRouter-Error", error.code)
        if isinstance(error, Unsupported):
            resp.set_header("Accept-Encoding", "identity")  # RFC 9110 section 12.5.3
        if error.status in _RETRY_STATUSES:
            resp.set_header("Retry-After", str(max(1, math.ceil(error.retry_after or 1))))


def _asking_job(req: ApiRequest) -> str | None:
    """Return the path of the job whose page sent the request, by Referer; None if no job's page did."""
    match = _JOB_PAGE.search(req.get_header("Referer", default="").partition("?")[0])
    return match[0].rstrip("/") if match is not None else None


def _outside(path: str, job: str) -> str:
    return (
        f"there is nothing at '{path}', which a page below {job}/ requested: its application links outside its prefix. "
        "Start its job with a preset (expose.preset), or with expose.path 'keep' if it can be told its prefix, "
        "{base_url}; or give jobs host names of their own with control.job_domain in the router's configuration"
    )
