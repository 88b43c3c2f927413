"""The broker dies or stands still under load of every kind: nobody notices more than a pause."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

from tests.faults.load import Load
from tests.faults.pattern import Pattern
from tests.faults.stand import MIB, Amount, Stand
from tests.support.processes import wait_until
from tests.support.raw_http import Raw

PAUSE = 3.0
"""Seconds."""


def test_everything_in_flight_finishes_once_when_the_broker_is_killed_again_and_again(
    stand: Callable[..., Stand], load: Load
) -> None:
    amount = Amount()
    it = stand()
    it.everything(load, amount)
    load.started()
    for _ in range(3):
        load.watch()
        it.kill_broker()
        it.linked_again()
        load.started()
        pauses = load.pauses()
        assert max(pauses.values()) <= PAUSE, pauses
    it.end_waits(amount.waits)
    load.finish()
    rounds = load.rounds()
    assert all(rounds[kind] for kind in ("create", "small", "websocket")), rounds
    it.assert_nothing_left()


def test_an_upload_that_begins_while_the_broker_stands_still_goes_on_with_it(stand: Callable[..., Stand]) -> None:
    it = stand()
    broker = it.router.child("broker")
    os.kill(broker, signal.SIGSTOP)
    try:
        with Raw(it.router.url, 20) as raw:
            raw.request("POST", f"{it.bytes_job}/http/check/5", f"Content-Length: {4 * MIB}\r\n")
            body = b"".join(Pattern(5).blocks(4 * MIB))
            raw.sock.settimeout(0.3)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < len(body):
                    sent += raw.sock.send(body[sent : sent + 65536])
            os.kill(broker, signal.SIGCONT)
            raw.sock.settimeout(20)
            raw.send(body[sent:])
            assert b'"bytes": %d, "error": null' % (4 * MIB) in raw.read_until(b"}")
    finally:
        os.kill(broker, signal.SIGCONT)


def test_a_wait_with_a_time_limit_ends_on_time_although_the_broker_is_killed(stand: Callable[..., Stand]) -> None:
    it = stand()
    limit, began = 3.0, time.monotonic()
    answers: list[int] = []
    wait = f"{it.bytes_job}/wait?timeout={limit:g}"
    client = threading.Thread(target=lambda: answers.append(it.router.post(wait).status_code))
    client.start()
    wait_until(lambda: it.metric("waits") == 1)
    it.kill_broker()
    it.linked_again()
    client.join(20)
    assert answers == [202]
    assert time.monotonic() - began < 2 * limit, "the limit was counted anew by the second broker"
