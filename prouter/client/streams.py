"""Logs and events as iterators that block."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from prouter.client.core.feeds import OPENED, EventsFeed, LogFeed, follow
from prouter.client.core.lines import LineSplitter
from prouter.client.core.models import Event
from prouter.client.sync_driver import SyncDriver

__all__ = ["EventStream", "LogStream"]


class LogStream(Iterator[bytes]):
    """A job's stdout or stderr: an iterator of pieces of it, which joined are the log, each byte once.

    It continues after every loss of the connection. A part of the log that the agent dropped
    (``jobs.log_limit``) is one line ``[prouter: N bytes dropped]``.
    """

    def __init__(self, driver: SyncDriver, feed: LogFeed) -> None:
        self._feed = feed
        self._items = driver.iterate(follow(driver.context, feed))

    @property
    def offset(self) -> int | None:
        """Position of the next byte in the log; None until the first piece if the stream begins with `tail`."""
        return self._feed.position

    @property
    def dropped(self) -> int:
        """Bytes that the agent dropped (``jobs.log_limit``) before they could be read, so far."""
        return self._feed.dropped

    def __next__(self) -> bytes:
        piece = next(self._items)
        assert isinstance(piece, bytes)
        return piece

    def read(self) -> bytes:
        """Return everything until the stream ends; with ``follow`` that is when the job ends."""
        return b"".join(self)

    def text(self) -> str:
        """Return everything as text; bytes that are not UTF-8 become U+FFFD."""
        return self.read().decode("utf-8", "replace")

    def lines(self) -> Iterator[str]:
        """Iterate over lines, without their ends."""
        splitter = LineSplitter()
        for piece in self:
            yield from splitter.feed(piece)
        yield from splitter.finish()

    def close(self) -> None:
        """End the stream and its connection."""
        self._items.close()  # type: ignore[attr-defined]

    def __enter__(self) -> LogStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EventStream(Iterator[Event]):
    """Changes of jobs and agents: an iterator without an end, in order and each once, over every loss.

    It is connected when it is made, so it has every event from then on.
    """

    def __init__(self, driver: SyncDriver, after: int | None) -> None:
        self._feed = EventsFeed(after)
        self._items = driver.iterate(follow(driver.context, self._feed, announce=True))
        opened = next(self._items)
        assert opened is OPENED

    @property
    def last(self) -> int | None:
        """Id of the last event; ``events(after=last)`` continues after it, also in another process."""
        return self._feed.last

    def __next__(self) -> Event:
        event = next(self._items)
        assert isinstance(event, Event)
        return event

    def close(self) -> None:
        """End the stream and its connection."""
        self._items.close()  # type: ignore[attr-defined]

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
