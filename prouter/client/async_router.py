"""A router, for programs on an asyncio event loop."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from prouter.client.async_driver import AsyncDriver, finish
from prouter.client.async_job import AsyncJob
from prouter.client.async_streams import AsyncEventStream
from prouter.client.core import creating, jobs, router
from prouter.client.core.creating import AgentChoice
from prouter.client.core.errors import RouterError
from prouter.client.core.models import Connection, RouterInfo, Token, WhoAmI
from prouter.client.core.uploads import Local, Uploads, uploads_of
from prouter.client.settings import Settings, Verify

__all__ = ["AsyncRouter", "Making"]


Connections = list[Connection]
Tokens = list[Token]


class Making(Awaitable[AsyncJob]):
    """A job that is being made: ``job = await router.run(…)``, or ``async with router.run(…) as job:``."""

    def __init__(self, making: Coroutine[Any, Any, AsyncJob]) -> None:
        self._making = making
        self._job: AsyncJob | None = None

    def __await__(self) -> Generator[Any, Any, AsyncJob]:
        return self._making.__await__()

    async def __aenter__(self) -> AsyncJob:
        self._job = await self._making
        return self._job

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._job is not None
        await self._job.__aexit__(kind, error, trace)


class AsyncRouter:
    """A client of one router. Close it, or use it as an asynchronous context manager.

    All methods raise `RouterError` (docs/http-api.md, "Errors") if the router refuses a request, and `ConnectionFailed`
    if it does not answer. Requests are sent again where that is safe: those that read, those that lead to the same when
    repeated, and those that create, which carry an idempotency key.

    Args:
        url: of the router; by default PROUTER_URL, else ``http://127.0.0.1:8888``.
        token: an access token; by default PROUTER_TOKEN.
        timeout: seconds without a byte from the router after which an attempt counts as lost.
        retry_for: seconds for which a request is tried again after it failed first.
        first_contact: the same until the router has answered once: its URL may be wrong.
        verify: for https: True, the path of a file with authorities, an `ssl.SSLContext`, or False.
        headers: fields of every request to the API.

    Raises:
        ValueError: the URL is none.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retry_for: float = 60.0,
        first_contact: float = 10.0,
        verify: Verify = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._driver = AsyncDriver(Settings.of(url, token, verify, headers), timeout, retry_for, first_contact)

    def __repr__(self) -> str:
        return f"<AsyncRouter {self.url}>"

    async def __aenter__(self) -> AsyncRouter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Jobs go on."""
        await self._driver.close()

    @property
    def url(self) -> str:
        """The router's URL."""
        return self._driver.settings.url

    # -- jobs -----------------------------------------------------------------------------------------------------

    def run(
        self,
        args: Sequence[Local] = (),
        *,
        template: str | None = None,
        name: str | None = None,
        agent: AgentChoice = None,
        where: Mapping[str, Any] | None = None,
        require: Mapping[str, Any] | None = None,
        resources: Mapping[str, float] | None = None,
        strategy: str | None = None,
        queue: float | None = None,
        upload: Uploads = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        expose: str | Mapping[str, Any] | None = None,
        preset: str | None = None,
        limits: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        wait: float | None = None,
        keep: bool = False,
    ) -> Making:
        """Create a job, upload its files, and start it; exactly one, however often the connection breaks.

        Args:
            args: program and arguments.
            template: name of a template that agents have (``jobs.pool``), instead of `args` and all that says how the
                job is started; of `limits` only ``timeout`` is left. If a job of it is ready, it is given at once.
            name: for people; by default the program's, or the template's.
            agent: uid of the agent; several of them; or the API's map. By default any.
            where: properties that the agent must have, instead of `agent`.
            require: conditions on its properties, such as ``{"gpus": {">=": 2}, "zone": {"in": ["a", "b"]}}``.
            resources: what the job takes of the agent's resources, such as ``{"cpus": 4, "memory": 8e9}``.
            strategy: ``spread`` for the emptiest agent, ``pack`` for the fullest one that has space.
            queue: seconds for which to wait until an agent has space; without it, that is `NoAgent`.
            upload: a file, a directory whose contents go into the sandbox, or a map from paths in the sandbox to local
                ones.
            env: variables, which override all others.
            cwd: working directory in the sandbox.
            expose: how the job's server is found; see `AsyncJob.start`. Without `expose` and `preset` it has none.
            preset: the kind of server, such as ``jupyterlab``.
            limits: see `AsyncJob.start`.
            options: further keys of the start, such as ``home``.
            wait: seconds after which to return the job though it is still queued or starting (`phase`). Files to
                upload wait for an agent all the same.
            keep: leave the job alone at the end of a ``async with`` block, and if it does not start.

        Raises:
            NoAgent: no agent can take it, or none had space while it waited in the queue.
            StartFailed: it did not start; the text has the end of its stderr. It is removed unless `keep`.
            OSError: something local cannot be read.
        """
        body = creating.start_body(
            args, template=template, env=env, cwd=cwd, expose=expose, preset=preset, limits=limits, options=options
        )
        making = self.create(
            name or template or os.path.basename(body["args"][0]),
            agent=agent,
            where=where,
            require=require,
            resources=resources,
            strategy=strategy,
            template=template,
            queue=queue,
            keep=keep,
        )
        return Making(self._started(making, uploads_of(upload), body, wait))

    def create(
        self,
        name: str | None = None,
        *,
        agent: AgentChoice = None,
        where: Mapping[str, Any] | None = None,
        require: Mapping[str, Any] | None = None,
        resources: Mapping[str, float] | None = None,
        strategy: str | None = None,
        template: str | None = None,
        queue: float | None = None,
        keep: bool = False,
    ) -> Making:
        """Create a job that is not started yet: files may be uploaded. See `run` for the arguments.

        With a template of which a job is ready, that is given, and runs already. Either way `AsyncJob.start` goes on.
        With `queue` the job may be queued: `AsyncJob.wait_for_agent` waits until files can be uploaded.
        """
        choice = creating.choice(agent, where, require, resources, strategy)
        return Making(self._created(creating.Creation(self._driver.context, name, choice, template, queue), keep))

    async def _created(self, creation: creating.Creation, keep: bool) -> AsyncJob:
        try:
            return AsyncJob(self._driver, await self._driver.run(creation.carry_out()), keep=keep)
        except RouterError:
            raise
        except BaseException:  # a cancellation above all: there may be a job by now
            await finish(self._driver.run(creation.undo()))
            raise

    async def _started(
        self, making: Making, uploads: Sequence[tuple[str, str]], body: Mapping[str, Any], wait: float | None
    ) -> AsyncJob:
        job, context = await making, self._driver.context
        try:
            job.latest, wait = await self._driver.run(jobs.wait_to_start(context, job.latest, wait, bool(uploads)))
            for remote, local in uploads:
                await job.upload(local, remote)
            job.latest = await self._driver.run(jobs.start(context, job.path, body, wait))
        except BaseException:
            if not job.kept:
                await finish(job.discard())
            raise
        return job

    async def job(self, path_or_uid: str) -> AsyncJob:
        """Return a job by its path, its URL, its uid, or the beginning of its uid. A ``async with`` block keeps it.

        Raises:
            NotFound: there is none.
            ValueError: several uids begin so.
        """
        return AsyncJob(self._driver, await self._driver.run(jobs.find(self._driver.context, path_or_uid)), keep=True)

    async def list(
        self,
        *,
        state: str | Iterable[str] | None = None,
        agent: str | None = None,
        name: str | None = None,
        owner: str | None = None,
    ) -> AsyncIterator[AsyncJob]:
        """Iterate over all jobs that fit, newest first; `AsyncJob.latest` has their infos.

        Args:
            state: ``NEW``, ``RUNNING`` …, or several. Removed jobs are listed with ``CLOSED`` only.
            agent: uid of their agent.
            owner: name of the token that created them.
        """
        flow = jobs.list_jobs(self._driver.context, state=state, agent=agent, name=name, owner=owner)
        async for info in self._driver.iterate(flow):
            yield AsyncJob(self._driver, info, keep=True)

    def events(self, after: int | None = None) -> AsyncEventStream:
        """Return changes of jobs and agents, as an iterator without an end that continues over every loss.

        Args:
            after: begin after the event with this id; by default now.
        """
        return AsyncEventStream(self._driver, after)

    # -- the router and its agents --------------------------------------------------------------------------------

    async def info(self) -> RouterInfo:
        """Return who the router is."""
        return await self._driver.run(router.router_info(self._driver.context))

    async def connections(self) -> Connections:
        """Return the agents that the router is connected with."""
        return await self._driver.run(router.connections(self._driver.context))

    async def drain(self, agent: str) -> None:
        """Have an agent take no new jobs; running ones go on.

        Args:
            agent: uid of the agent, or of its connection.
        """
        await self._driver.run(router.drain(self._driver.context, agent))

    async def resume(self, agent: str) -> None:
        """Have an agent take new jobs again."""
        await self._driver.run(router.drain(self._driver.context, agent, resume=True))

    async def shutdown(self) -> None:
        """Have the router drain and exit."""
        await self._driver.run(router.shutdown(self._driver.context))

    # -- access ---------------------------------------------------------------------------------------------------

    async def whoami(self) -> WhoAmI:
        """Return whom the router takes this client for."""
        return await self._driver.run(router.who_am_i(self._driver.context))

    async def tokens(self) -> Tokens:
        """Return all access tokens, without their texts."""
        return await self._driver.run(router.tokens(self._driver.context))

    async def create_token(self, name: str, role: str = "user", expires: float | None = None) -> Token:
        """Make an access token; `Token.token` is its text, which is shown this once.

        Args:
            name: its holder's, who owns the jobs created with it.
            role: ``viewer``, ``user``, ``operator`` or ``admin``.
            expires: seconds; None for never.
        """
        return await self._driver.run(router.create_token(self._driver.context, name, role, expires))

    async def revoke_token(self, identifier: str) -> None:
        """Revoke a token; when this returns, the router refuses it."""
        await self._driver.run(router.revoke_token(self._driver.context, identifier))
