"""Log output of every process: one event per line, as ``key=value`` text or JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

from prouter.config import Log
from prouter.texts import without_credentials

__all__ = ["configure_logging"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that end a line, control a terminal, or change the direction of writing."""
_LONGEST = 8192
"""Characters of an event, at most: it may hold texts of clients, and a path may have 64 KiB."""
_LEVELS = {"fatal": logging.CRITICAL}


def _escaped(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


def _bounded(text: str) -> str:
    """Return the text, or its beginning if it is too long for a line."""
    left_out = len(text) - _LONGEST
    return text if left_out <= 0 else f"{text[:_LONGEST]}… ({left_out} more characters)"


def _indented(text: str) -> str:
    return "\n".join("    " + _CONTROL.sub(_escaped, line) for line in without_credentials(text).split("\n"))


class _TextFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s")
        self._second = -1
        self._text = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Write the time, its date and hour once per second: a broker logs thousands of links in a few seconds."""
        second = int(record.created)
        if second != self._second:
            self._text = time.strftime(self.default_time_format, self.converter(second))
            self._second = second
        return self.default_msec_format % (self._text, record.msecs)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Put the event on one line, so that no text in it can look like an event of its own."""
        return _CONTROL.sub(_escaped, without_credentials(_bounded(super().formatMessage(record))))

    def formatException(self, ei: Any) -> str:
        """Indent each line of a traceback: an error's text may hold anything, but no line that looks like an event."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Indent each line of a stack, for the same reason."""
        return _indented(super().formatStack(stack_info))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": without_credentials(_bounded(record.getMessage())),
        }
        if record.exc_info:
            entry["exception"] = without_credentials(self.formatException(record.exc_info))
        return json.dumps(entry)


def configure_logging(settings: Log, *, connection_debug: bool = False) -> None:
    """Send this process's log to stderr.

    Args:
        settings: level and format.
        connection_debug: log everything about connections between the processes, whatever the level.
    """
    # No line has any of this, and it takes a while to find out (docs.python.org, "Logging HOWTO", "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS.get(settings.level, settings.level.upper()))
    logging.getLogger("websockets").setLevel(logging.WARNING)
    if connection_debug:
        logging.getLogger("prouter.transport").setLevel(logging.DEBUG)
