"""Errors of the router's own in place of a response: logged, counted, and as bytes for the client."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from prouter.access.roles import Principal, Role
from prouter.errors import PRouterError
from prouter.web.metrics import counters
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.own_responses.pages import error_response, request_id

__all__ = ["Asker", "failure_response"]

log = logging.getLogger("prouter.proxy")


class Asker(NamedTuple):
    """Whose request has failed.

    Attributes:
        address: of the client.
        principal: as whom it asked; None if that is not known.
        recipient: whom the request was for, by its number in the counters.
        began: monotonic time at which the request began.
    """

    address: str
    principal: Principal | None
    recipient: int
    began: float


def failure_response(error: PRouterError, head: RequestHead | None, asker: Asker, *, close: bool) -> bytes:
    """Log and count the error of a request, and return the response.

    Args:
        head: the request's head; None if it could not be parsed.
        close: whether the connection serves no other request.
    """
    if asker.principal is not None and asker.principal.role < Role.USER:
        error = error.without_output()  # a visitor of a share link may not read the job's logs
    headers = head.headers if head is not None else []
    name_of_request = request_id(headers)
    accept = b",".join(value for name, value in headers if name.lower() == b"accept")
    log.log(
        error.level,
        "event=request_failed code=%s status=%d request=%s client=%s job=%s detail=%r",
        error.code,
        error.status,
        name_of_request,
        asker.address,
        error.job,
        error.logged,
    )
    head_only = head is not None and head.method == b"HEAD"
    method, seconds = (head.method, time.monotonic() - asker.began) if head is not None else (b"", 0.0)
    counters.current().count_response(asker.recipient, method, error.status, seconds)
    if error.limit is not None:
        counters.current().count_refusal(error.limit.name)
    return error_response(error, accept=accept, head_only=head_only, request_id=name_of_request, close=close)
