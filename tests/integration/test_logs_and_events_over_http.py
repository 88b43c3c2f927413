"""Followers of logs and events: every byte once, resumption, an end, bounded memory."""

from __future__ import annotations

import io
import os
import re
import selectors
import signal
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.event_streams import log_bytes, read_events
from tests.support.peak_memory import PeakMemory, descendants
from tests.support.processes import Agent, Router, start_agent, start_router, wait_until

NO_PORT = {"port_expected_count": 0}
EVENTS = {"Accept": "text/event-stream"}
COUNTER = "import time\nfor i in range({count}):\n print(i, flush=True)\n i % 20 or time.sleep(0.02)"
"""Prints numbers for ``count`` milliseconds or longer."""


def counted(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(count))


def connect(router: Router) -> socket.socket:
    url = urlsplit(router.url)
    return socket.create_connection((url.hostname or "", url.port or 0), timeout=60)


@pytest.fixture
def path(router: Router, agent: Agent) -> Iterator[str]:
    """A new job's path; removed afterwards."""
    path = router.create(agent.uid)
    yield path
    router.post(path + "/remove")


# -- logs -------------------------------------------------------------------------------------------------------


def test_five_hundred_followers_of_one_log_get_every_byte(router: Router, agent: Agent, path: str) -> None:
    memory = PeakMemory(descendants(router.pid) + descendants(agent.pid))
    router.start(path, ["sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; seq 100000"], **NO_PORT)
    request = f"GET {path}/logs/stdout?follow=1 HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    answers: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(500):
            client = connect(router)
            client.sendall(request)
            answers[client] = bytearray()
            selector.register(client, selectors.EVENT_READ)
        heads = 0
        began = False
        while selector.get_map():
            ready = selector.select(30)
            assert ready, "followers were left without an end"
            for key, _mask in ready:
                client = key.fileobj  # type: ignore[assignment]
                some = client.recv(262144)
                heads += not answers[client]
                answers[client] += some
                if not some:
                    selector.unregister(client)
                    client.close()
            if heads == 500 and not began:
                began = True
                assert requests.post(f"{router.url}{path}/file/go", data=b"", timeout=30).status_code == 200
    whole = "".join(f"{number}\n" for number in range(1, 100001)).encode()
    assert [bytes(one).partition(b"\r\n\r\n")[2] == whole for one in answers.values()] == [True] * 500
    assert max(memory.growth().values()) < (500 + 64) << 20, "more than a stream's window per follower"


def test_a_follower_of_a_silent_log_has_the_head_at_once(router: Router, path: str) -> None:
    router.start(path, ["sleep", "60"], **NO_PORT)
    with router.get(path + "/logs/stdout?follow=1", stream=True, timeout=10) as answer:
        assert (answer.status_code, answer.headers["X-PRouter-Log-Offset"]) == (200, "0")


def test_tail_and_offset_meet(router: Router, path: str) -> None:
    router.start(path, ["sh", "-c", "seq 1000; printf end"], **NO_PORT)
    router.post(path + "/wait")
    whole = router.get(path + "/logs/stdout").content
    assert whole == b"".join(b"%d\n" % number for number in range(1, 1001)) + b"end"
    for lines in (1, 2, 1001, 5000):
        answer = router.get(path + f"/logs/stdout?tail={lines}")
        assert answer.content == b"".join(whole.splitlines(keepends=True)[-lines:])
        assert int(answer.headers["X-PRouter-Log-Offset"]) == len(whole) - len(answer.content)
    for offset in (0, 1, len(whole) - 1, len(whole)):
        assert router.get(path + f"/logs/stdout?offset={offset}").content == whole[offset:]
    assert router.get(path + f"/logs/stdout?offset={len(whole) + 1}").status_code == 416
    assert router.get(path + "/logs/stdout?tail=0").content == b""


def test_events_of_a_log_resume_anywhere_and_keep_bytes_that_are_no_text(router: Router, path: str) -> None:
    code = "import os\nfor i in range(400): os.write(1, bytes([i % 256]) * 3 + 'ж€\\n'.encode())"
    router.start(path, ["python3", "-c", code], **NO_PORT)
    whole = b"".join(bytes([number % 256]) * 3 + "ж€\n".encode() for number in range(400))
    got = b""
    last = None
    for _ in range(500):
        headers = {**EVENTS, **({"Last-Event-ID": last} if last is not None else {})}
        query = "?follow=1" + (f"&offset={len(got) // 2}" if last is None else "")
        with router.get(f"{path}/logs/stdout{query}", headers=headers, stream=True) as answer:
            event = next(read_events(answer))
        if event["event"] == "end":
            break
        got += log_bytes(event)
        last = event["id"]
        assert int(last) == len(got)
    assert got == whole
    assert (event["data"]["state"], event["data"]["exit_code"], event["data"]["offset"]) == ("FINISHED", 0, len(whole))
    over = router.get(path + "/logs/stdout?follow=1", headers={**EVENTS, "Last-Event-ID": event["id"]})
    assert over.status_code == 204
    for number in (0, 1, 1000, len(whole) - 1):
        answer = router.get(path + "/logs/stdout", headers={**EVENTS, "Last-Event-ID": str(number)}, stream=True)
        events = list(read_events(answer))
        assert b"".join(log_bytes(one) for one in events[:-1]) == whole[number:]
        assert events[-1]["event"] == "end"


def test_a_follower_gets_every_byte_once_while_the_broker_is_killed(launch: Callable[..., Any]) -> None:
    router: Router = launch(start_router)
    agent: Agent = launch(start_agent, router)
    path = router.create(agent.uid)
    router.start(path, ["python3", "-c", COUNTER.format(count=4000)], **NO_PORT)
    whole = counted(4000)
    seen = threading.Event()

    def as_text(_number: int) -> bytes:
        with router.get(path + "/logs/stdout?follow=1", stream=True) as answer:
            found = b""
            for piece in answer.iter_content(4096):
                found += piece
                seen.set()
            return found

    def as_events(_number: int) -> tuple[bytes, dict[str, Any]]:
        with router.get(path + "/logs/stdout?follow=1", stream=True, headers=EVENTS) as answer:
            events = list(read_events(answer))
        return b"".join(log_bytes(event) for event in events[:-1]), events[-1]

    with ThreadPoolExecutor(10) as pool:
        texts, streams = pool.map(as_text, range(5)), pool.map(as_events, range(5))
        assert seen.wait(20)
        for _ in range(2):
            old = router.child("broker")
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: router.child("broker") != old)  # noqa: B023
            wait_until(lambda: router.get("/readyz").status_code == 200)
        assert [text == whole for text in texts] == [True] * 5
        for found, end in streams:
            assert found == whole
            assert (end["event"], end["data"]["exit_code"], end["data"]["reason"]) == ("end", 0, "exited")


def test_a_log_over_its_limit_says_what_is_missing(router: Router, launch: Callable[..., Any]) -> None:
    agent: Agent = launch(start_agent, router, jobs__log_limit=100_000)
    path = router.create(agent.uid)
    router.start(path, ["sh", "-c", "seq 100000"], **NO_PORT)
    assert router.post(path + "/wait").json()["exit_code"] == 0
    whole = "".join(f"{number}\n" for number in range(1, 100001)).encode()

    def cut() -> re.Match[bytes] | None:
        return re.match(rb"\[prouter: (\d+) bytes dropped\]\n", router.get(path + "/logs/stdout").content)

    mark = wait_until(cut)
    assert mark is not None
    dropped = int(mark[1])
    assert router.get(path + "/logs/stdout").content == mark[0] + whole[dropped:]
    assert len(whole) - dropped <= 100_000
    assert router.get(path + f"/logs/stdout?offset={dropped}").content == whole[dropped:]
    assert router.get(path + "/logs/stdout?tail=2").content == b"99999\n100000\n"
    as_file = re.match(
        rb"\[prouter: (\d+) bytes dropped\]\n(.*)", router.get(path + "/file/.pagent.stdout").content, re.S
    )
    assert as_file is not None
    assert as_file[2] == whole[int(as_file[1]) :]
    router.post(path + "/remove")


def test_outputs_that_are_opened_anew_and_files_that_are_replaced_cost_readers_nothing(
    router: Router, path: str
) -> None:
    script = (
        "step() { until [ -e $1 ]; do sleep 0.01; done; }; "
        "echo one; step a; echo two >/dev/stdout; rm .pagent.stdout; echo mine >.pagent.stdout; "
        "step b; : >.pagent.stdout; ln -f /etc/passwd .pagent.stderr || ln -sf /etc/passwd .pagent.stderr; echo three"
    )
    router.start(path, ["sh", "-c", script], **NO_PORT)

    def listed() -> dict[str, int]:
        return {entry["name"]: entry["size"] for entry in router.get(path + "/file/").json()["entries"]}

    with ThreadPoolExecutor(2) as pool:
        text = pool.submit(lambda: router.get(path + "/logs/stdout?follow=1").content)
        events = pool.submit(
            lambda: list(read_events(router.get(path + "/logs/stdout?follow=1", headers=EVENTS, stream=True)))
        )
        for step, so_far in (("a", b"one\n"), ("b", b"one\ntwo\n"), ("", b"one\ntwo\nthree\n")):
            wait_until(lambda: router.get(path + "/file/.pagent.stdout").content == so_far)  # noqa: B023
            assert listed()[".pagent.stdout"] == len(so_far)
            if step:
                assert requests.put(f"{router.url}{path}/file/{step}", data=b"", timeout=30).status_code in (200, 201)
        assert text.result(30) == b"one\ntwo\nthree\n"
        *told, end = events.result(30)
        assert b"".join(map(log_bytes, told)) == b"one\ntwo\nthree\n"
        assert (end["event"], end["data"]["offset"]) == ("end", 14)
    assert router.get(path + "/file/.pagent.stderr").content == router.get(path + "/logs/stderr").content == b""
    with tarfile.open(fileobj=io.BytesIO(router.get(path + "/archive").content)) as tar:
        members = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        found = members[".pagent.stdout"]
        assert found is not None
        assert found.read() == b"one\ntwo\nthree\n"
    refused = requests.put(f"{router.url}{path}/file/.pagent.stdout", data=b"x", timeout=30)
    assert (refused.status_code, "is the job's log" in refused.text) == (409, True)
    assert router.get(path + "/file/.pagent.stdout?remove=1").content == b"one\ntwo\nthree\n"
    wait_until(lambda: router.get(path + "/file/.pagent.stdout").status_code == 404)
    assert ".pagent.stdout" not in listed()
    assert router.get(path + "/logs/stdout").content == b"one\ntwo\nthree\n"


# -- events -----------------------------------------------------------------------------------------------------


def follow(router: Router, name: str, after: str | None = None) -> list[dict[str, Any]]:
    """Events of the job with this name until it is removed."""
    headers = {"Last-Event-ID": after} if after is not None else {}
    found = []
    with router.get("/events", stream=True, headers=headers, timeout=60) as answer:
        for event in read_events(answer):
            if event["data"].get("job", {}).get("name") == name:
                found.append(event)
                if event["event"] == "job.removed":
                    break
    return found


def last_event(router: Router, agent: Agent) -> str:
    """The id of an event that has just happened."""
    with router.get("/events", stream=True) as answer:
        path = router.create(agent.uid, "marker")
        for event in read_events(answer):
            if event["data"].get("job", {}).get("name") == "marker":
                router.post(path + "/remove")
                return str(event["id"])
    raise AssertionError("the feed ended")


def test_every_follower_on_every_worker_gets_the_same_events(router: Router, agent: Agent) -> None:
    after = last_event(router, agent)
    with ThreadPoolExecutor(16) as pool:
        following = [pool.submit(follow, router, "seen by all", after) for _ in range(16)]
        path = router.create(agent.uid, "seen by all")
        router.start(path, ["true"], **NO_PORT)
        router.post(path + "/wait")
        router.post(path + "/remove")
        found = [one.result(60) for one in following]
    assert all(one == found[0] for one in found)
    ids = [int(event["id"]) for event in found[0]]
    assert ids == sorted(set(ids))
    states = [event["data"]["job"]["state"] for event in found[0]]
    assert (states[0], "FINISHED" in states, found[0][-1]["event"]) == ("NEW", True, "job.removed")
    for number, event in enumerate(found[0][:-1]):
        assert follow(router, "seen by all", event["id"]) == found[0][number + 1 :]


def test_a_feed_goes_on_over_a_killed_broker(launch: Callable[..., Any]) -> None:
    router: Router = launch(start_router)
    agent: Agent = launch(start_agent, router)
    after = last_event(router, agent)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow, router, "long lived", after)
        path = router.create(agent.uid, "long lived")
        router.start(path, ["sleep", "60"], **NO_PORT)
        old = router.child("broker")
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: router.child("broker") != old)
        wait_until(lambda: router.get("/readyz").status_code == 200)
        assert router.post(path + "/stop", {"grace": 5}, timeout=60).status_code == 200
        assert router.post(path + "/wait", timeout=60).json()["reason"] == "stopped"
        assert router.post(path + "/remove").status_code == 200
        found = following.result(60)
    ids = [int(event["id"]) for event in found]
    assert ids == sorted(set(ids))
    states = [event["data"]["job"]["state"] for event in found]
    assert "RUNNING" in states
    assert "FINISHED" in states[states.index("RUNNING") :]


def test_a_follower_that_does_not_read_is_dropped_and_may_resume(router: Router, agent: Agent) -> None:
    after = last_event(router, agent)
    memory = PeakMemory(descendants(router.pid))
    name = "👍" * 512  # As JSON each has twelve bytes: long events, of which the buffers on the way hold few.
    with connect(router) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(f"GET /events HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: {after}\r\n\r\n".encode())
        answer = bytearray(client.recv(100))

        def one(_number: int) -> None:
            router.post(router.create(agent.uid, name) + "/remove")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(one, range(1200)))
        while some := client.recv(262144):
            answer += some
    told = re.compile(rb"^id: (\d+)\nevent: (?!dropped)[^\n]+\ndata: [^\n]+\n\n", re.MULTILINE)
    ids = [int(one) for one in told.findall(bytes(answer))]
    assert ids == list(range(ids[0], ids[-1] + 1))
    assert len(ids) < 2400
    with router.get("/events", stream=True, headers={"Last-Event-ID": str(ids[-1])}) as resumed:
        events = read_events(resumed)
        assert [int(next(events)["id"]) for _ in range(50)] == list(range(ids[-1] + 1, ids[-1] + 51))
    assert max(memory.growth().values()) < 64 << 20, memory.growth()
