"""Carries out flows on an asyncio event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

import httpx

from prouter.client.core.flow import Body, Command, Flow, Give, Now, Open, Read, Request, Response, Send, Sleep, Work
from prouter.client.core.retries import Context
from prouter.client.settings import Settings, fields_of, head_of, lost, note_redirect, timeouts

__all__ = ["AsyncDriver", "finish"]

T = TypeVar("T")
_Opened = list[tuple[httpx.Response, AsyncIterator[bytes]]]


class _Result:
    """The last item of `_steps`: the flow's result, which an asynchronous generator cannot return."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class AsyncDriver:
    """Carries out flows over one `httpx.AsyncClient`. Work on local files runs in threads.

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
        self._client = httpx.AsyncClient(
            base_url=settings.url, headers=settings.fields, **settings.client_options(timeout)
        )

    async def run(self, flow: Flow[T]) -> T:
        """Return a flow's result."""
        result: T
        async for item in self._steps(flow):
            if isinstance(item, _Result):
                result = item.value
        return result

    async def iterate(self, flow: Flow[None]) -> AsyncIterator[Any]:
        """Return the items that a flow gives; closing the iterator closes the flow."""
        steps = self._steps(flow)
        try:
            async for item in steps:
                if not isinstance(item, _Result):
                    yield item
        finally:
            await steps.aclose()

    def job_client(self, path: str, own_url: Callable[[], str | None]) -> httpx.AsyncClient:
        """Return a client whose base URL is that of a job's server.

        Args:
            own_url: returns the job's URL under its own host name, None without one.
        """
        settings = self.settings

        async def direct(request: httpx.Request) -> None:
            settings.direct(request, path, own_url())

        async def noted(response: httpx.Response) -> None:
            note_redirect(response)

        return httpx.AsyncClient(
            base_url=settings.job_server(path),
            event_hooks={"request": [direct], "response": [noted]},
            **settings.client_options(self._timeout),
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _steps(self, flow: Flow[T]) -> Any:
        opened: _Opened = []
        reply: Any = None
        failure: BaseException | None = None
        try:
            while True:
                try:
                    command = flow.send(reply) if failure is None else flow.throw(failure)
                except StopIteration as stop:
                    yield _Result(stop.value)
                    return
                reply, failure = None, None
                if isinstance(command, Give):
                    yield command.item
                    continue
                try:
                    reply = await self._carry_out(command, opened)
                except httpx.TransportError as error:
                    failure = lost(error)
                except Exception as error:
                    failure = error
        finally:
            flow.close()
            await _close(opened)

    async def _carry_out(self, command: Command, opened: _Opened) -> Any:
        if isinstance(command, Send):
            response = await self._client.send(self._request(command.request))
            return Response(response.status_code, head_of(response).headers, response.content)
        if isinstance(command, Open):
            await _close(opened)
            response = await self._client.send(self._request(command.request), stream=True)
            opened.append((response, response.aiter_bytes()))
            return head_of(response)
        if isinstance(command, Read):
            return await anext(opened[0][1], b"")
        if isinstance(command, Sleep):
            return await asyncio.sleep(command.seconds)
        if isinstance(command, Now):
            return time.monotonic()
        assert isinstance(command, Work)
        return await _in_thread(command.call)

    def _request(self, request: Request) -> httpx.Request:
        body = _sent(request.body) if isinstance(request.body, Body) else request.body
        return self._client.build_request(
            request.method,
            request.path,
            headers=fields_of(request),
            content=body,
            timeout=timeouts(request, self._timeout),
        )


async def _sent(body: Body) -> AsyncIterator[bytes]:
    chunks = body.chunks()
    while chunk := await _in_thread(lambda: next(chunks, b"")):
        yield chunk
        body.on_sent(len(chunk))


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns; it goes on to its end even if this task is cancelled.

    Cancelled scopes of anyio (FastAPI's, for example) interrupt every await, until one is shielded from them. A second
    plain cancellation ends the waiting, not the coroutine.
    """
    from anyio import CancelScope

    task = asyncio.ensure_future(work)
    with CancelScope(shield=True):
        await asyncio.shield(task)
    return task.result()


async def _in_thread(call: Callable[[], T]) -> T:
    """Return what a function that blocks returns.

    A cancellation waits until it has returned: otherwise it would go on with local files that the flow cleans up.
    """
    running = asyncio.get_running_loop().run_in_executor(None, copy_context().run, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await finish(_end_of(running))
        running.exception()
        raise


async def _end_of(running: asyncio.Future[T]) -> None:
    await asyncio.wait([running])


async def _close(opened: _Opened) -> None:
    while opened:
        await opened.pop()[0].aclose()
