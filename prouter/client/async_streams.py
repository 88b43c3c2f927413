"""Logs and events as asynchronous iterators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from prouter.client.async_driver import AsyncDriver
from prouter.client.core.feeds import OPENED, EventsFeed, LogFeed, follow
from prouter.client.core.lines import LineSplitter
from prouter.client.core.models import Event

__all__ = ["AsyncEventStream", "AsyncLogStream"]


class AsyncLogStream(AsyncIterator[bytes]):
    """A job's stdout or stderr, like `LogStream`: ``async for piece in job.logs(follow=True)``."""

    def __init__(self, driver: AsyncDriver, feed: LogFeed) -> None:
        self._feed = feed
        self._items: Any = driver.iterate(follow(driver.context, feed))

    @property
    def offset(self) -> int | None:
        """Position of the next byte in the log; None until the first piece if the stream begins with `tail`."""
        return self._feed.position

    @property
    def dropped(self) -> int:
        """Bytes that the agent dropped (``jobs.log_limit``) before they could be read, so far."""
        return self._feed.dropped

    async def __anext__(self) -> bytes:
        piece = await anext(self._items)
        assert isinstance(piece, bytes)
        return piece

    async def read(self) -> bytes:
        """Return everything until the stream ends; with ``follow`` that is when the job ends."""
        return b"".join([piece async for piece in self])

    async def text(self) -> str:
        """Return everything as text; bytes that are not UTF-8 become U+FFFD."""
        return (await self.read()).decode("utf-8", "replace")

    async def lines(self) -> AsyncIterator[str]:
        """Iterate over lines, without their ends."""
        splitter = LineSplitter()
        async for piece in self:
            for line in splitter.feed(piece):
                yield line
        for line in splitter.finish():
            yield line

    async def close(self) -> None:
        """End the stream and its connection."""
        await self._items.aclose()

    async def __aenter__(self) -> AsyncLogStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncEventStream(AsyncIterator[Event]):
    """Changes of jobs and agents, like `EventStream`.

    ``async with router.events() as events:`` connects at once, ``async for event in router.events():`` when the
    iteration begins.
    """

    def __init__(self, driver: AsyncDriver, after: int | None) -> None:
        self._feed = EventsFeed(after)
        self._items: Any = driver.iterate(follow(driver.context, self._feed, announce=True))
        self._opened = False

    @property
    def last(self) -> int | None:
        """Id of the last event; ``events(after=last)`` continues after it, also in another process."""
        return self._feed.last

    async def open(self) -> None:
        """Connect, so that the stream has every event from now on. Idempotent."""
        if not self._opened:
            self._opened = True
            opened = await anext(self._items)
            assert opened is OPENED

    async def __anext__(self) -> Event:
        await self.open()
        event = await anext(self._items)
        assert isinstance(event, Event)
        return event

    async def close(self) -> None:
        """End the stream and its connection."""
        await self._items.aclose()

    async def __aenter__(self) -> AsyncEventStream:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
