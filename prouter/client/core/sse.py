"""Server-sent events, read piece by piece (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["EventParser", "ServerEvent"]

MOST = 16 << 20
"""Bytes of one event, at most."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        name: ``message`` if it has none.
        data: its lines.
        id: of this event or of the last one that had any; None if none had.
    """

    name: str
    data: str
    id: str | None

    def json(self) -> dict[str, Any]:
        """Return its data as a map; empty if it is none."""
        try:
            data = json.loads(self.data)
        except ValueError:
            return {}
        return data if isinstance(data, dict) else {}


class EventParser:
    """Makes events of bytes, however these are cut."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._id: str | None = None
        self._begun = False

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Return the events that these bytes complete.

        Raises:
            ValueError: an event is too long.
        """
        self._rest += data
        events = []
        while (line := self._line()) is not None:
            event = self._take(line)
            if event is not None:
                events.append(event)
        if len(self._rest) + self._size > MOST:
            raise ValueError(f"an event has more than {MOST} bytes")
        return events

    def _line(self) -> bytes | None:
        """Return the next line without its end: CR, LF or both."""
        rest = self._rest
        end = rest.find(b"\n")
        carriage = rest.find(b"\r", 0, end if end >= 0 else len(rest))
        end = carriage if carriage >= 0 else end
        if end < 0:
            return None
        if rest[end] == 0x0D and end + 1 == len(rest):
            return None  # A LF may follow.
        line = bytes(rest[:end])
        del rest[: end + (2 if rest[end : end + 2] == b"\r\n" else 1)]
        return line

    def _take(self, line: bytes) -> ServerEvent | None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"event":
            self._name = text
        elif name == b"data":
            self._data.append(text)
            self._size += len(text)
        elif name == b"id" and "\0" not in text:
            self._id = text
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], "", 0
        return ServerEvent(name or "message", "\n".join(data), self._id) if data else None
