"""Log output of every process: one event per line, ``key=value`` text or JSON."""

from __future__ import annotations

import json
import logging
import sys
import time

from prouter.config import Log

__all__ = ["configure_logging"]

_LEVELS = {"fatal": logging.CRITICAL}


class _TextFormatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(settings: Log, *, connection_debug: bool = False) -> None:
    """Send this process's log to stderr.

    Args:
        settings: level and format.
        connection_debug: log everything about fabric connections, whatever the level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS.get(settings.level, settings.level.upper()))
    logging.getLogger("websockets").setLevel(logging.WARNING)
    if connection_debug:
        logging.getLogger("prouter.transport").setLevel(logging.DEBUG)
