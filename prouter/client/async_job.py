"""A job, for programs on an asyncio event loop."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from prouter.client.async_driver import AsyncDriver, finish
from prouter.client.async_job_files import AsyncJobFiles
from prouter.client.async_streams import AsyncLogStream
from prouter.client.core import creating, jobs, sharing
from prouter.client.core.errors import NotFound
from prouter.client.core.feeds import LogFeed
from prouter.client.core.models import Bridge, Explanation, JobInfo, Share
from prouter.client.core.uploads import Local
from prouter.client.settings import own_url
from prouter.client.websocket import connect_async

if TYPE_CHECKING:
    from websockets.asyncio.client import connect as AsyncConnect

__all__ = ["AsyncJob"]


class AsyncJob(AsyncJobFiles):
    """One job of a router.

    An asynchronous context manager: the job is removed (its processes ended, its files deleted) at the end of the
    ``async with`` block, unless it was made with ``keep=True`` or `keep` was called. Jobs that were found rather than
    made are kept.

    All methods raise `RouterError` (docs/http-api.md, "Errors") if the router refuses the request, and
    `ConnectionFailed` if it does not answer in time. Paths in the sandbox are relative to its root.

    Attributes:
        latest: the job's info as the router last told it; `info` asks for the current one.
        kept: whether the ``async with`` block leaves the job alone.
    """

    def __init__(self, driver: AsyncDriver, info: JobInfo, *, keep: bool) -> None:
        self._driver = driver
        self._http: httpx.AsyncClient | None = None
        self._removed = False
        self._maker = os.getpid()
        self.latest = info
        self.kept = keep

    def __repr__(self) -> str:
        return f"<AsyncJob {self.uid} {self.name!r} {self.state}>"

    async def __aenter__(self) -> AsyncJob:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await finish(self.close())
        if self.kept or self._removed or self._maker != os.getpid():  # in a forked child the job is its parent's
            return
        if error is None:
            with suppress(NotFound):
                await self.remove()
        else:
            await finish(self.discard())

    async def close(self) -> None:
        """Close the connections of `http`; the job goes on."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    # -- what it is -----------------------------------------------------------------------------------------------

    @property
    def uid(self) -> str:
        """The job's uid."""
        return self.latest.uid

    @property
    def path(self) -> str:
        """``/jobs/<connection uid>/<job uid>``; `AsyncRouter.job` finds the job by it."""
        return self.latest.path

    @property
    def name(self) -> str:
        """The job's name."""
        return self.latest.name

    @property
    def state(self) -> str:
        """``NEW``, ``PENDING``, ``RUNNING``, ``FINISHED`` or ``CLOSED``, as the router last told it."""
        return self.latest.state

    @property
    def url(self) -> str | None:
        """The address at which a person opens the job's server; None without one."""
        return self.latest.url

    def keep(self) -> AsyncJob:
        """Have the ``async with`` block leave the job alone; return the job."""
        self.kept = True
        return self

    async def info(self, *, usage: bool = False) -> JobInfo:
        """Return the job's current info; with `usage` its CPU time and memory as they are now."""
        self.latest = await self._driver.run(jobs.info(self._driver.context, self.path, usage=usage))
        return self.latest

    async def refresh(self) -> AsyncJob:
        """Ask for the current info; return the job."""
        await self.info()
        return self

    # -- its life -------------------------------------------------------------------------------------------------

    async def start(
        self,
        args: Sequence[Local] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        expose: str | Mapping[str, Any] | None = None,
        preset: str | None = None,
        limits: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        wait: float | None = None,
    ) -> AsyncJob:
        """Start the job, once, however often the connection breaks; return it when its server is ready.

        Args:
            args: program and arguments. None for a job that was created by a template; see `Router.run`.
            env: variables, which override all others.
            cwd: working directory in the sandbox.
            expose: how its server is found: ``assign``, ``detect``, ``unix``, ``notify``, or a map (docs/jobs.md).
                Without `expose` and `preset` the job has no server.
            preset: the kind of server, such as ``jupyterlab``.
            limits: ``timeout`` (seconds), ``memory`` (bytes), ``cpu_seconds``, ``processes`` … (docs/jobs.md).
            options: further keys of the request, such as ``home``.
            wait: seconds after which to return the job though it is still queued or starting (`phase`).

        Raises:
            StartFailed: it did not start; the text has the end of its stderr.
            Conflict: it was started before.
        """
        own = None if args else self.latest.template
        body = creating.start_body(
            args, template=own, env=env, cwd=cwd, expose=expose, preset=preset, limits=limits, options=options
        )
        self.latest = await self._driver.run(jobs.start(self._driver.context, self.path, body, wait))
        return self

    async def wait_for_agent(self, timeout: float | None = None) -> JobInfo:
        """Wait until an agent has the job, which waits in the router's queue (``create(queue=…)``); return its info.

        Args:
            timeout: seconds; None for as long as it may wait there.

        Raises:
            NoAgent: no agent had space for it in time.
            TimedOut: it still waits.
        """
        self.latest = await self._driver.run(jobs.wait_for_agent(self._driver.context, self.latest, timeout))
        return self.latest

    async def explain(self) -> Explanation:
        """Return in words why the job waits, has ended or cannot be reached."""
        return await self._driver.run(jobs.explain(self._driver.context, self.path))

    async def wait(self, timeout: float | None = None) -> JobInfo:
        """Return how the job ended (`exit_code`, `signal`, `reason`), once it has; at once if it was not started.

        Restarts of the router and lost connections do not end the wait.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            TimedOut: the job still runs.
            NotFound: the job was removed.
        """
        self.latest = await self._driver.run(jobs.wait(self._driver.context, self.path, timeout))
        return self.latest

    async def stop(self, grace: float | None = None) -> JobInfo:
        """End the job: SIGTERM to all its processes, SIGKILL `grace` (10) seconds later; return how it ended."""
        self.latest = await self._driver.run(jobs.stop(self._driver.context, self.path, grace))
        return self.latest

    async def signal(self, name: str) -> JobInfo:
        """Send a signal (``TERM``, ``SIGUSR1``, ``RTMIN+3``) to its first process, at most once.

        Raises:
            ConnectionFailed: the connection was lost; `sent` tells whether the signal may have been sent.
        """
        self.latest = await self._driver.run(jobs.send_signal(self._driver.context, self.path, name))
        return self.latest

    async def remove(self) -> JobInfo:
        """End the job and delete its sandbox; return its info as it was before."""
        removed = await self._driver.run(jobs.remove(self._driver.context, self.path))
        self._removed = True
        self.latest = removed or self.latest
        return self.latest

    async def discard(self) -> None:
        """Remove the job if that is possible soon; for programs that have another error to raise."""
        self._removed = await self._driver.run(jobs.discard(self._driver.context, self.path))

    # -- its output -----------------------------------------------------------------------------------------------

    def logs(
        self,
        stream: str = "stdout",
        *,
        follow: bool = False,
        offset: int | None = None,
        tail: int | None = None,
        since: datetime | timedelta | None = None,
    ) -> AsyncLogStream:
        """Return what the job writes, as an asynchronous iterator of bytes that continues over every loss.

        Args:
            stream: ``stdout`` or ``stderr``.
            follow: continue until the job has ended and everything was read; otherwise until what there is now.
            offset: begin at this byte.
            tail: begin this many lines before the end.
            since: begin with what came at this time or later, or for so long.
        """
        feed = LogFeed(self.path, stream, follow=follow, offset=offset, tail=tail, since=since)
        return AsyncLogStream(self._driver, feed)

    # -- its server -----------------------------------------------------------------------------------------------

    @property
    def http(self) -> httpx.AsyncClient:
        """An HTTP client whose base URL is the job's server: ``await job.http.get("api/status")``.

        It follows no redirects unless told to, and none to the router's API; its cookies are its own.
        """
        if self._http is None:
            self._http = self._driver.job_client(self.path, lambda: own_url(self.uid, self.url))
        return self._http

    def ws(self, path: str = "", **options: Any) -> AsyncConnect:
        """Open a WebSocket of the job's server: ``async with job.ws("api") as ws``, or ``await job.ws("api")``.

        Args:
            path: below the job's root, with its query.
            options: of `websockets.asyncio.client.connect`, such as ``subprotocols``.
        """
        settings = self._driver.settings
        return connect_async(settings.web_socket(self.path, path), settings.credentials, settings.tls(), options)

    async def open_url(self, page: str = "") -> str:
        """Return a URL by which a browser without a token opens the job's server, within a minute.

        Unlike `url` it is a secret: whoever has it uses the job as the holder of this client's token.

        Args:
            page: path and query below the job's address, at which to begin.
        """
        return await self._driver.run(sharing.open_url(self._driver.context, self.path, page))

    async def bridge(self, url: str, path: str = "") -> str:
        """Connect the job's WebSocket at `path` with another server's; return the bridge's uid.

        Args:
            url: of the other server's WebSocket: ws, wss, http or https.

        Raises:
            ConnectionFailed: the connection was lost; `bridges` tells whether the bridge was made.
        """
        return await self._driver.run(sharing.bridge(self._driver.context, self.path, url, path))

    async def bridges(self) -> list[Bridge]:
        """Return the job's bridges."""
        return await self._driver.run(sharing.bridges(self._driver.context, self.path))

    async def unbridge(self, uid: str) -> None:
        """End a bridge."""
        await self._driver.run(sharing.unbridge(self._driver.context, self.path, uid))

    async def share(self, expires: float | None = None, *, name: str | None = None, methods: str = "all") -> Share:
        """Make a link by which people without a token use the job's server.

        Args:
            expires: seconds.
            name: for people, in `shares`.
            methods: ``all``, or ``read`` for GET and HEAD only.
        """
        return await self._driver.run(
            sharing.share(self._driver.context, self.path, expires=expires, name=name, methods=methods)
        )

    async def shares(self) -> list[Share]:
        """Return the job's share links, without their URLs."""
        return await self._driver.run(sharing.shares(self._driver.context, self.path))

    async def unshare(self, identifier: str) -> None:
        """End a share link and its open connections."""
        await self._driver.run(sharing.unshare(self._driver.context, self.path, identifier))
