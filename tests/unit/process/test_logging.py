"""Log lines: one event each, whatever texts they contain."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from prouter.config import Log
from prouter.process.logging import configure_logging

FORGED = "x\r\n2026-01-01T00:00:00.000Z CRITICAL prouter.broker[1] event=forged \x1b[2J\x85\u2028y"


@pytest.fixture(autouse=True)
def restored() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    optional = logging._srcfile, logging.logThreads, logging.logMultiprocessing
    yield
    logging._srcfile, logging.logThreads, logging.logMultiprocessing = optional
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("event", ["event=told name=%s", "event=told name=%r"])
def test_a_text_with_line_breaks_begins_no_new_line(capsys: pytest.CaptureFixture[str], event: str) -> None:
    configure_logging(Log(level="info"))
    logging.getLogger("prouter.x").info(event, FORGED)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.isascii()
    assert "\x1b" not in written
    assert "event=told" in written


def test_the_text_of_an_exception_begins_no_line_that_looks_like_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(level="info"))
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("prouter.x").exception("event=broke", stack_info=True)
    first, *others = capsys.readouterr().err.splitlines()
    assert "event=broke" in first
    assert others
    assert all(line.startswith("    ") for line in others)


def test_json_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(level="info", format="json"))
    logging.getLogger("prouter.x").info("event=told name=%s", FORGED)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == f"event=told name={FORGED}"


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_is_bounded_whatever_a_client_sends(capsys: pytest.CaptureFixture[str], form: Any) -> None:
    configure_logging(Log(level="info", format=form))
    logging.getLogger("prouter.x").info("event=told path=%s", "x" * 60_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert "event=told path=xxx" in line
    assert "more characters)" in line
    assert len(line) < 9000


def test_each_line_has_the_time_of_its_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(level="info"))
    formatter = logging.getLogger().handlers[0].formatter
    assert formatter is not None
    times = []
    for created in (1_700_000_000.25, 1_700_000_000.75, 1_700_003_661.5, 1_700_000_000.0):
        record = logging.makeLogRecord({"created": created, "msecs": created % 1 * 1000, "msg": "event=told"})
        times.append(formatter.format(record).split()[0])
    assert times == [
        "2023-11-14T22:13:20.250Z",
        "2023-11-14T22:13:20.750Z",
        "2023-11-14T23:14:21.500Z",
        "2023-11-14T22:13:20.000Z",
    ]
