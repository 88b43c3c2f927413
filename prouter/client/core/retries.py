"""Which requests are sent again, when, and for how long."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prouter.client.core.errors import ConnectionFailed, RouterError, from_response
from prouter.client.core.flow import Flow, Lost, Request, Response, now, open_, read, send, sleep

__all__ = ["LEAST", "Attempts", "Context", "call", "call_json", "opened"]

ACCEPTED = 10.0
"""Seconds for which a router that never answered is tried at least if it accepts connections: they may be cut."""
BASE_PAUSE = 0.1
"""Seconds of the first pause at most; each one after it may be twice as long."""
LEAST = 4
"""Attempts that a request with an idempotency key has at least: with silent connections each may take a timeout."""
LONGEST_PAUSE = 5.0
_MOST_ERROR = 64 * 1024
"""Bytes of an error's body that are read, at most."""


def _new_key() -> str:
    return secrets.token_hex(16)


@dataclass(slots=True)
class Context:
    """What all flows of one client share.

    Attributes:
        url: of the router, for error texts.
        timeout: seconds without a byte from the router after which an attempt counts as lost.
        retry_for: seconds for which a request is tried again after its first failure.
        random: returns a number from 0 to 1, for jitter.
        first_contact: seconds for which a router that never answered is tried: its URL may be wrong.
        new_key: returns a new idempotency key.
        reached: whether the router ever answered.
    """

    url: str
    timeout: float = 30.0
    retry_for: float = 60.0
    first_contact: float = 10.0
    random: Callable[[], float] = field(default=random.random)
    new_key: Callable[[], str] = field(default=_new_key)
    reached: bool = False


class Attempts:
    """The failures in a row of one request: whether to try again, and after which pause (full jitter).

    Args:
        context: of the client.
        patience: seconds from the first failure on; None for ever.
        least: attempts that are made at least once one of them may have been carried out: to give up then means that
            nobody knows what it made.
    """

    def __init__(self, context: Context, patience: float | None, *, least: int = 1) -> None:
        self._context = context
        self._patience = patience
        self._first: float | None = None
        self._count = 0
        self._least = least
        self.ambiguous = False
        """Whether an earlier attempt may have been carried out."""
        self.running = False
        """Whether an attempt runs, or was interrupted."""

    def progressed(self) -> None:
        """Begin anew: the last attempt brought something."""
        self._first = None
        self._count = 0

    def endure(self) -> None:
        """From now on try for ever: the request has worked once."""
        self._patience = None

    def after_loss(self, lost: Lost, moment: float, *, safe: bool) -> float:
        """Return the pause before the next attempt.

        Raises:
            ConnectionFailed: there is none.
        """
        self.ambiguous = self.ambiguous or lost.sent
        if lost.hopeless:
            raise ConnectionFailed(f"{self._context.url} cannot be used: {lost.reason}", sent=lost.sent) from lost
        if lost.sent and not safe:
            detail = (
                f"the connection to {self._context.url} was lost: {lost.reason}; the request may have been carried out"
            )
            raise ConnectionFailed(detail, sent=True) from lost
        first = max(self._context.first_contact, ACCEPTED) if self.ambiguous else self._context.first_contact
        pause = self._pause(moment, None if self._context.reached else first)
        if pause is None and self.ambiguous and self._count + 1 < self._least:
            self._count += 1
            return self._context.random()
        if pause is None:
            raise ConnectionFailed(self._gave_up(lost), sent=self.ambiguous) from lost
        return pause

    def after_error(self, error: RouterError, moment: float, *, safe: bool) -> float:
        """Return the pause before the next attempt.

        Raises:
            RouterError: there is none; `error` itself.
        """
        if not _passing(error, safe=safe):
            raise error
        pause = self._pause(moment)
        wait = error.retry_after or 0.0
        if pause is None:
            raise error
        if self._patience is None or self._first is None:
            return wait + pause
        left = self._first + self._patience - moment
        if wait > left:
            raise error
        return min(wait + pause, left)

    def _pause(self, moment: float, bound: float | None = None) -> float | None:
        if self._first is None:
            self._first = moment
        patience = (
            self._patience if bound is None else min(bound, self._patience if self._patience is not None else bound)
        )
        if patience is not None and moment - self._first >= patience:
            return None
        longest = min(LONGEST_PAUSE, BASE_PAUSE * (1 << self._count))
        self._count = min(self._count + 1, 30)
        pause = self._context.random() * longest
        return pause if patience is None else min(pause, max(0.0, self._first + patience - moment))

    def _gave_up(self, lost: Lost) -> str:
        return self._no_answer(lost) + (
            "; the request may have been carried out" if self.ambiguous and self._least > 1 else ""
        )

    def _no_answer(self, lost: Lost) -> str:
        url = self._context.url
        if not self._context.reached:
            return (
                f"no router answers at {url} ({lost.reason}); start it there with 'prouter up', or correct the URL "
                "(PROUTER_URL)"
            )
        return f"the router at {url} does not answer any more ({lost.reason}); see whether it still runs"


def _passing(error: RouterError, *, safe: bool) -> bool:
    """Whether an error may pass by itself, so that the same request can be sent again."""
    if error.status == 429:
        return error.retry_after is not None
    if not safe or error.status not in (502, 503, 504):
        return False
    return error.retry_after is not None or error.code == "gateway"


def call(
    context: Context,
    request: Request,
    *,
    safe: bool = True,
    gone: bool = False,
    placing: bool = False,
    patience: float | None = None,
    attempts: Attempts | None = None,
) -> Flow[Response]:
    """Send a request until it is answered; return the answer.

    Args:
        safe: whether it may be carried out twice: it changes nothing, changes nothing more, or has a key.
        gone: whether 404 is a success once an earlier attempt may have been carried out.
        placing: whether it creates a job.
        patience: seconds for which it is tried again; `Context.retry_for` by default.
        attempts: of this request, if the caller wants to know about them; they have their own patience.

    Raises:
        RouterError: the router refused it.
        ConnectionFailed: no answer came in time.
    """
    least = LEAST if "Idempotency-Key" in request.headers else 1
    attempts = attempts or Attempts(context, context.retry_for if patience is None else patience, least=least)
    while True:
        try:
            attempts.running = True
            response = yield from send(request)
        except Lost as lost:
            pause = attempts.after_loss(lost, (yield from now()), safe=safe)
            attempts.running = False
        else:
            context.reached = True
            attempts.running = False
            if response.status < 300 or (response.status == 404 and gone and attempts.ambiguous):
                return response
            error = from_response(response.status, response.headers, response.content, placing=placing)
            pause = attempts.after_error(error, (yield from now()), safe=safe)
        yield from sleep(pause)


def call_json(context: Context, request: Request, **how: Any) -> Flow[dict[str, Any]]:
    """Like `call`, for answers that are JSON objects."""
    response = yield from call(context, request, **how)
    try:
        answer = json.loads(response.content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise from_response(response.status, {}, b"")
    return answer


def opened(context: Context, request: Request, attempts: Attempts) -> Flow[Response]:
    """Open a request until the router answers it with success; return the head.

    Raises:
        RouterError: the router refused it.
        ConnectionFailed: no answer came in time.
    """
    while True:
        try:
            response = yield from open_(request)
            context.reached = True
            if response.status < 300:
                return response
            content = b""
            while len(content) < _MOST_ERROR and (data := (yield from read())):
                content += data
            error = from_response(response.status, response.headers, content)
            pause = attempts.after_error(error, (yield from now()), safe=True)
        except Lost as lost:
            pause = attempts.after_loss(lost, (yield from now()), safe=True)
        yield from sleep(pause)
