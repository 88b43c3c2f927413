"""Carries out flows with blocking calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from prouter.client.core.flow import Body, Command, Flow, Give, Now, Open, Read, Request, Response, Send, Sleep, Work
from prouter.client.core.retries import Context
from prouter.client.per_process import PerProcess
from prouter.client.settings import Settings, fields_of, head_of, lost, note_redirect, timeouts

__all__ = ["SyncDriver"]

T = TypeVar("T")
_CHUNK = 64 * 1024


class SyncDriver:
    """Carries out flows over one `httpx.Client`. Threads may share it.

    Attributes:
        settings: where the router is.
        context: what its flows share.

    Args:
        timeout: seconds without a byte from the router after which a request counts as lost.
        retry_for: seconds for which a request is tried again.
        first_contact: the same until the router has answered once.
    """

    def __init__(self, settings: Settings, timeout: float, retry_for: float, first_contact: float) -> None:
        self.settings = settings
        self.context = Context(settings.url, timeout, retry_for, first_contact)
        self._timeout = timeout
        self._client = PerProcess(
            lambda: httpx.Client(base_url=settings.url, headers=settings.fields, **settings.client_options(timeout))
        )

    def run(self, flow: Flow[T]) -> T:
        """Return a flow's result."""
        items = self._steps(flow)
        while True:
            try:
                next(items)
            except StopIteration as stop:
                result: T = stop.value
                return result

    def iterate(self, flow: Flow[None]) -> Iterator[Any]:
        """Return the items that a flow gives; closing the iterator closes the flow."""
        yield from self._steps(flow)

    def job_client(self, path: str, own_url: Callable[[], str | None]) -> PerProcess[httpx.Client]:
        """Return a client whose base URL is that of a job's server.

        Args:
            own_url: returns the job's URL under its own host name, None without one.
        """
        settings = self.settings
        return PerProcess(
            lambda: httpx.Client(
                base_url=settings.job_server(path),
                event_hooks={
                    "request": [lambda request: settings.direct(request, path, own_url())],
                    "response": [note_redirect],
                },
                **settings.client_options(self._timeout),
            )
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.get().close()

    def _steps(self, flow: Flow[T]) -> Any:
        opened: list[tuple[httpx.Response, Iterator[bytes]]] = []
        reply: Any = None
        failure: BaseException | None = None
        try:
            while True:
                try:
                    command = flow.send(reply) if failure is None else flow.throw(failure)
                except StopIteration as stop:
                    return stop.value
                reply, failure = None, None
                if isinstance(command, Give):
                    yield command.item
                    continue
                try:
                    reply = self._carry_out(command, opened)
                except httpx.TransportError as error:
                    failure = lost(error)
                except Exception as error:
                    failure = error
        finally:
            flow.close()
            _close(opened)

    def _carry_out(self, command: Command, opened: list[tuple[httpx.Response, Iterator[bytes]]]) -> Any:
        if isinstance(command, Send):
            response = self._client.get().send(self._request(command.request))
            return Response(response.status_code, head_of(response).headers, response.content)
        if isinstance(command, Open):
            _close(opened)
            response = self._client.get().send(self._request(command.request), stream=True)
            opened.append((response, response.iter_bytes()))
            return head_of(response)
        if isinstance(command, Read):
            return next(opened[0][1], b"")
        if isinstance(command, Sleep):
            return time.sleep(command.seconds)
        if isinstance(command, Now):
            return time.monotonic()
        assert isinstance(command, Work)
        return command.call()

    def _request(self, request: Request) -> httpx.Request:
        body = _sent(request.body) if isinstance(request.body, Body) else request.body
        return self._client.get().build_request(
            request.method,
            request.path,
            headers=fields_of(request),
            content=body,
            timeout=timeouts(request, self._timeout),
        )


def _sent(body: Body) -> Iterator[bytes]:
    for chunk in body.chunks():
        yield chunk
        body.on_sent(len(chunk))


def _close(opened: list[tuple[httpx.Response, Iterator[bytes]]]) -> None:
    while opened:
        opened.pop()[0].close()
