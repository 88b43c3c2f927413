"""Requests and responses through the whole chain, compared byte by byte at socket level."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Agent, Router, wait_until
from tests.support.raw_http import Raw, exchange

Ask = Callable[..., tuple[bytes, bool]]


@pytest.fixture(scope="module")
def corner(router: Router, agent: Agent, jobs: Path) -> str:
    """A job that plays scripted misbehaviour; its path."""
    return router.serve(agent.uid, jobs / "corner_server.py") + "/http"


@pytest.fixture(scope="module")
def fast(router: Router, agent: Agent, jobs: Path) -> str:
    """A well-behaved job; its path."""
    return router.serve(agent.uid, jobs / "fast_server.py") + "/http"


def seen_by(router: Router, corner: str) -> bytes:
    """The raw bytes of the last request that reached the corner server."""
    return exchange(router.url, "GET", corner + "/last")[0].partition(b"\r\n\r\n")[2]


def head_of(answer: bytes) -> list[bytes]:
    return answer.partition(b"\r\n\r\n")[0].split(b"\r\n")


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "target",
    [
        "/record/a//b",
        "/record/?q=1&q=2&&x",
        "/record/%2e%2E/%zz",
        "/record/%C3%A4/+/a;b=c",
        "/record/a/../b/./c",
        "/record/~!$'()*",
        "/record/caf\xe9?\xff",
    ],
)
def test_the_target_reaches_the_job_as_sent(router: Router, corner: str, target: str) -> None:
    exchange(router.url, "GET", corner + target)
    assert seen_by(router, corner).startswith(f"GET {target} HTTP/1.1\r\n".encode("latin-1"))


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "BREW", "SETUP"])
def test_every_method_reaches_the_job(router: Router, corner: str, method: str) -> None:
    answer, _ = exchange(router.url, method, corner + "/record/m", "Content-Length: 2\r\n", b"ok")
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    seen = seen_by(router, corner)
    assert seen.startswith(f"{method} /record/m HTTP/1.1\r\n".encode())
    assert seen.endswith(b"\r\n\r\nok")


def test_request_headers_pass_with_bytes_order_and_repetition(router: Router, corner: str) -> None:
    lines = "X_Under: 1\r\nA: 1\r\na: 2\r\nX-Obs: caf\xe9\xff\r\nCookie: a=1\r\nCookie: b=2\r\nX-Empty: \r\n"
    exchange(router.url, "GET", corner + "/record/h", lines)
    assert lines.encode("latin-1") in seen_by(router, corner)


def test_a_chunked_request_arrives_chunked_without_its_trailers(router: Router, corner: str) -> None:
    body = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: 1\r\n\r\n"
    exchange(router.url, "POST", corner + "/record/c", "Transfer-Encoding: chunked\r\n", body)
    head, _, sent = seen_by(router, corner).partition(b"\r\n\r\n")
    assert head.lower().count(b"transfer-encoding: chunked") == 1
    assert b"content-length" not in head.lower()
    assert b"Trailer" not in sent
    assert b"hello" in sent
    assert b" world" in sent


def test_answer_headers_pass_with_bytes_order_and_repetition(router: Router, corner: str) -> None:
    answer, cut = exchange(router.url, "GET", corner + "/set-cookies")
    assert not cut
    assert [line.partition(b"=")[0] for line in head_of(answer) if line.lower().startswith(b"set-cookie")] == [
        b"Set-Cookie: a",
        b"Set-Cookie: b",
        b"set-cookie: c",
    ]
    odd = head_of(exchange(router.url, "GET", corner + "/odd-headers")[0])
    assert b"X-Obs: caf\xe9" in odd
    assert b"x_under_score: 1" in odd


def test_early_hints_and_other_interim_answers_pass(router: Router, corner: str) -> None:
    answer, _ = exchange(router.url, "GET", corner + "/informational")
    assert [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1")] == [
        b"HTTP/1.1 102 Processing",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 103 Early Hints",
        b"HTTP/1.1 200 OK",
    ]
    old, _ = exchange(router.url, "GET", corner + "/informational", version="1.0")
    assert old.count(b"HTTP/1.1") == 1


def test_answers_without_a_body_have_none(router: Router, corner: str) -> None:
    assert body_of(exchange(router.url, "GET", corner + "/no-content")[0]) == b""
    unchanged, _ = exchange(router.url, "GET", corner + "/not-modified")
    assert b"Content-Length: 1234" in head_of(unchanged)
    assert body_of(unchanged) == b""
    head, _ = exchange(router.url, "HEAD", corner + "/head")
    assert b"Content-Length: 12345" in head_of(head)
    assert body_of(head) == b""


def test_the_connection_lives_on_after_answers_without_a_body(router: Router, corner: str) -> None:
    with Raw(router.url) as raw:
        for method, path in (("GET", "/no-content"), ("GET", "/not-modified"), ("HEAD", "/head"), ("GET", "/record/x")):
            raw.request(method, corner + path)
            raw.read_until(b"\r\n\r\n")
        assert raw.read_exactly(8) == b"recorded"


def test_pipelined_requests_are_answered_in_order(router: Router, fast: str) -> None:
    with Raw(router.url) as raw:
        raw.send(b"".join(f"GET {fast}/bytes/{size} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for size in (3, 1, 2)))
        for size in (3, 1, 2):
            raw.read_until(b"\r\n\r\n")
            raw.read_exactly(size)


def send_until_stuck(sock: socket.socket, data: bytes) -> int:
    """Send until the other side takes no more for as long as the socket's timeout; how many bytes were sent."""
    sent = 0
    while sent < len(data):
        try:
            sent += sock.send(data[sent : sent + 65536])
        except TimeoutError:
            break
    return sent


@pytest.mark.parametrize("of", ["job", "api"])
def test_who_does_not_read_answers_gets_no_more_requests_carried_out(router: Router, fast: str, of: str) -> None:
    """The worker keeps little for such a client; once it reads it gets all it asked for."""
    target, count = f"{fast}/bytes/2000" if of == "job" else "/info", 5000
    asked = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nX-Filler: {'x' * 4000}\r\n\r\n".encode() * count
    with Raw(router.url, 3) as raw:
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sent = send_until_stuck(raw.sock, asked)
        assert sent < len(asked)
        raw.sock.settimeout(120)  # for all that sendall sends
        rest = threading.Thread(target=raw.sock.sendall, args=(memoryview(asked)[sent:],), daemon=True)
        rest.start()
        with raw.sock.makefile("rb") as answers:
            for _ in range(count):
                assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
                head = b"".join(iter(answers.readline, b"\r\n"))
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length is not None
                assert len(answers.read(int(length[1]))) == int(length[1])
        rest.join(10)
        assert not rest.is_alive()


def test_a_pipelined_request_after_a_chunked_body_is_its_own(router: Router, fast: str) -> None:
    with Raw(router.url) as raw:
        raw.request(
            "POST",
            fast + "/sink",
            "Transfer-Encoding: chunked\r\n",
            b"3\r\nabc\r\n0\r\n\r\nGET /info HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        assert raw.read_exactly(1) == b"3"
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_trailers_are_dropped_and_chunks_end_properly(router: Router, corner: str) -> None:
    answer, cut = exchange(router.url, "GET", corner + "/trailers")
    assert not cut
    assert body_of(answer) == b"2\r\nok\r\n0\r\n\r\n"


def test_an_old_client_gets_no_chunks(router: Router, corner: str) -> None:
    answer, cut = exchange(router.url, "GET", corner + "/trailers", version="1.0")
    assert not cut
    assert body_of(answer) == b"ok"
    assert b"chunked" not in answer.lower()


def test_an_answer_until_close_is_complete(router: Router, corner: str) -> None:
    for path in ("/http10", "/close-delimited"):
        answer, cut = exchange(router.url, "GET", corner + path)
        assert not cut
        assert body_of(answer) == b"b\r\nuntil close\r\n0\r\n\r\n"


def test_the_job_decides_about_100_continue(router: Router, corner: str) -> None:
    with Raw(router.url) as raw:
        raw.request("POST", corner + "/expect", "Expect: 100-continue\r\nContent-Length: 3\r\n")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        raw.send(b"abc")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    refused, _ = exchange(
        router.url, "POST", corner + "/expect-refuse", "Expect: 100-continue\r\nContent-Length: 3\r\n"
    )
    assert refused.startswith(b"HTTP/1.1 417 ")
    assert b" 100 " not in refused


def test_a_job_may_answer_before_it_reads_the_request(router: Router, corner: str) -> None:
    early, _ = exchange(router.url, "POST", corner + "/early-answer", "Content-Length: 300000\r\n", b"x" * 300000)
    assert early.startswith(b"HTTP/1.1 200 ")
    assert body_of(early) == b"early"
    with Raw(router.url) as raw:
        raw.request("POST", corner + "/early-close", "Content-Length: 30000000\r\n", b"x" * 100000)
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["/close", "/reset", "/cut-head"])
def test_a_job_that_gives_no_answer_is_a_502(router: Router, corner: str, path: str) -> None:
    answer, cut = exchange(router.url, "GET", corner + path)
    assert not cut
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"X-PRouter-Error: job_unreachable" in head_of(answer)
    problem = json.loads(body_of(answer))
    assert problem["status"] == 502
    assert problem["code"] == "job_unreachable"


MALFORMED = ["garbage", "version", "status", "header", "fold", "nul", "bare-cr", "encoding"]


@pytest.mark.parametrize(
    "path", [f"/malformed/{name}" for name in MALFORMED] + ["/both-framings", "/two-lengths", "/bad-length"]
)
def test_a_malformed_answer_is_a_502(router: Router, corner: str, path: str) -> None:
    answer, cut = exchange(router.url, "GET", corner + path)
    assert not cut
    assert answer.startswith(b"HTTP/1.1 502 ")
    assert b"X-PRouter-Error: bad_response" in head_of(answer)


def scripted(router: Router, corner: str, answer: bytes) -> bytes:
    """What a client gets when the job sends exactly these bytes and closes."""
    return exchange(router.url, "GET", corner + "/raw?b64=" + base64.urlsafe_b64encode(answer).decode())[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\nX-A\t: b\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\nX-A: b\n\nok",
        b"HTTP/1.1 200 OK\r\nX-A: b\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nX-A: b\n\n2\nok\n0\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nX-A: b\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok",
    ],
)
def test_an_answer_that_browsers_accept_passes(router: Router, corner: str, answer: bytes) -> None:
    got = scripted(router, corner, answer)
    assert got.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"X-A: b" in head_of(got)
    assert body_of(got) in (b"ok", b"2\r\nok\r\n0\r\n\r\n")


def test_refused_answers_say_why(router: Router, corner: str) -> None:
    for answer, why in {
        b"HTTP/1.1 200 " + b"x" * 20_000 + b"\r\n\r\n": b"status line",
        b"HTTP/1.1 103 Soon\r\nA: b\r\n\r\n" * 11 + b"HTTP/1.1 200 OK\r\n\r\n": b"interim responses",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n": b"Transfer-Encoding is 'gzip'",
    }.items():
        got = scripted(router, corner, answer).replace(b"HTTP/1.1 103 Soon\r\nA: b\r\n\r\n", b"")
        assert got.startswith(b"HTTP/1.1 502 ")
        assert why in body_of(got)


@pytest.mark.parametrize("path", ["/short-body", "/short-reset", "/cut-chunk", "/cut-between", "/malformed/chunk"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_torn_answer_never_looks_whole(router: Router, corner: str, path: str, version: str) -> None:
    answer, cut = exchange(router.url, "GET", corner + path, version=version)
    assert cut
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not answer.endswith(b"0\r\n\r\n")


def test_what_a_job_sends_beyond_its_length_is_not_passed_on(router: Router, corner: str) -> None:
    answer, _ = exchange(router.url, "GET", corner + "/long-body")
    assert body_of(answer) == b"0123456789"


def test_an_idle_connection_that_died_is_replaced_unnoticed(router: Router, corner: str) -> None:
    for _ in range(6):
        assert body_of(exchange(router.url, "GET", corner + "/once")[0]) == b"once"


def test_any_protocol_can_be_upgraded_to(router: Router, corner: str) -> None:
    with Raw(router.url) as raw:
        raw.request("GET", corner + "/upgrade", "Connection: Upgrade\r\nUpgrade: talk/1\r\n", b"early ")
        head = raw.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nConnection: Upgrade\r\n" in head
        assert raw.read_exactly(len(b"firstearly ")) == b"firstearly "
        raw.send(b"\x00\xff" * 50000)
        assert raw.read_exactly(100000) == b"\x00\xff" * 50000


def test_a_refused_upgrade_is_an_ordinary_answer(router: Router, corner: str) -> None:
    with Raw(router.url) as raw:
        raw.request("GET", corner + "/upgrade-refuse", "Connection: Upgrade\r\nUpgrade: talk/1\r\n")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 426 ")
        assert raw.read_exactly(2) == b"no"
        raw.request("GET", corner + "/record/after")
        assert raw.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_large_bodies_pass_both_ways(router: Router, fast: str) -> None:
    size = 20_000_000
    for path in ("bytes", "chunked"):
        assert len(router.get(f"{fast}/{path}/{size}").content) == size
    data = bytes(range(256)) * (size // 256)
    assert router.post(fast + "/sink", data=data).text == str(len(data))
    pieces = (data[start : start + 100_000] for start in range(0, len(data), 100_000))
    assert router.post(fast + "/sink", data=pieces).text == str(len(data))


def seen_counts(router: Router, corner: str) -> dict[str, Any]:
    counts: dict[str, Any] = router.get(corner + "/seen").json()
    return counts


def test_a_client_that_leaves_before_the_answer_closes_the_jobs_connection(router: Router, corner: str) -> None:
    before = seen_counts(router, corner)
    waiting = []
    for _ in range(5):
        raw = Raw(router.url)
        raw.request("GET", corner + "/silent")
        waiting.append(raw)
    asked = before["requests"].get("/silent", 0)
    wait_until(lambda: seen_counts(router, corner)["requests"].get("/silent", 0) == asked + 5)
    for raw in waiting:
        raw.sock.close()
    dropped = before["dropped"].count("/silent")
    wait_until(lambda: seen_counts(router, corner)["dropped"].count("/silent") == dropped + 5, 3)


def test_a_client_that_leaves_in_the_middle_closes_the_jobs_connection(router: Router, corner: str) -> None:
    dropped = seen_counts(router, corner)["dropped"].count("/flood")
    with Raw(router.url) as raw:
        raw.request("GET", corner + "/flood")
        raw.read_exactly(100_000)
    wait_until(lambda: seen_counts(router, corner)["dropped"].count("/flood") == dropped + 1, 3)


SMUGGLING = [
    b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x",
    b"POST %s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    b"POST %s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST %s HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nabcde",
    b"GET %s HTTP/1.1\r\nHost: h\r\nX: a\r\n\tContent-Length: 5\r\n\r\n",
    b"GET %s HTTP/1.1\nHost: h\n\n",
    b"GET %s HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
    b"GET %s HTTP/1.1\r\n\r\n",
    b"GET %s HTTP/1.1\r\nHost: h\r\nBad\x00: x\r\n\r\n",
    b"GET %s HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"GET %s RTSP/1.0\r\nHost: h\r\n\r\n",
]


@pytest.mark.parametrize("request_bytes", SMUGGLING)
def test_ambiguous_requests_are_refused_and_never_reach_the_job(
    router: Router, corner: str, request_bytes: bytes
) -> None:
    before = seen_counts(router, corner)
    with Raw(router.url) as raw:
        raw.send(request_bytes % (corner + "/record/smuggled").encode())
        answer = raw.read_to_end()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1
    assert seen_counts(router, corner)["accepted"] - before["accepted"] <= 2


def test_connection_options_cannot_turn_a_body_into_a_request(router: Router, corner: str) -> None:
    hidden = f"GET {corner}/record/hidden HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    lines = f"Connection: content-length\r\nContent-Length: {len(hidden)}\r\n"
    answer, _ = exchange(router.url, "POST", corner + "/record/outer", lines, hidden)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert seen_by(router, corner).startswith(b"POST /record/outer ")
    assert "/record/hidden" not in seen_counts(router, corner)["requests"]


@pytest.mark.parametrize("target", ["%s/record/x", "router.localhost:80", "http://router.localhost%s/record/x"])
def test_connect_goes_nowhere(router: Router, corner: str, target: str) -> None:
    before = seen_counts(router, corner)["requests"]
    answer, _ = exchange(router.url, "CONNECT", target.replace("%s", corner))
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"X-PRouter-Error: not_implemented" in head_of(answer)
    assert seen_counts(router, corner)["requests"].get("/record/x") == before.get("/record/x")


BODIES = ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_the_api_does_not_want_is_not_the_next_request(router: Router, body: str) -> None:
    asking = f"GET /info HTTP/1.1\r\nHost: localhost\r\n{body}"
    with Raw(router.url) as raw:
        raw.send((asking * 3 + "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").encode())
        assert raw.read_to_end().count(b"HTTP/1.1 200 ") == 4
    with Raw(router.url) as raw:
        raw.send(asking[:-4].encode())
        assert b"\r\nConnection: close\r\n" in raw.read_until(b"\r\n\r\n")


@pytest.mark.parametrize("target", ["/info", "%s/record/x"])
def test_a_client_that_ends_its_side_after_its_requests_is_answered(router: Router, corner: str, target: str) -> None:
    with Raw(router.url) as raw:
        for _ in range(3):
            raw.request("GET", target.replace("%s", corner))
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.read_to_end().count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    "path", ["/", "/info", "/connections", "/jobs", "/healthz", "/readyz", "/metrics", "/openapi.json", "%s/info"]
)
def test_head_is_get_without_the_body(router: Router, corner: str, path: str) -> None:
    path = path.replace("%s", corner.removesuffix("/http"))
    answer, _ = exchange(router.url, "HEAD", path)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert body_of(answer) == b""


def test_options_of_all_is_answered_by_the_router(router: Router) -> None:
    answer, _ = exchange(router.url, "OPTIONS", "*")
    assert answer.startswith(b"HTTP/1.1 204 ")
    assert any(line.lower().startswith(b"allow: ") for line in head_of(answer))


def test_a_request_head_over_the_limit_is_a_431(router: Router, corner: str) -> None:
    with Raw(router.url) as raw:
        raw.request("GET", corner + "/record/x", "X-Long: " + "x" * 70000 + "\r\n")
        assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 431 ")


def test_unknown_jobs_and_connections_are_404(router: Router, agent: Agent, fast: str) -> None:
    connection = fast.split("/")[2]
    unknown_job, _ = exchange(router.url, "GET", f"/jobs/{connection}/{'0' * 32}/http/")
    assert unknown_job.startswith(b"HTTP/1.1 404 ")
    assert f"job '{'0' * 32}' is not found" in json.loads(body_of(unknown_job))["detail"]
    unknown, _ = exchange(router.url, "GET", "/jobs/nobody/x/http/")
    assert "connection 'nobody' is not found" in json.loads(body_of(unknown))["detail"]


def test_clients_that_trickle_or_do_not_read_hold_up_nobody(router: Router, corner: str, fast: str) -> None:
    slow = [Raw(router.url) for _ in range(60)]
    try:
        for number, raw in enumerate(slow):
            if number % 3 == 0:
                raw.request("GET", corner + "/flood")
            else:
                framing = "Content-Length: 100000" if number % 3 == 1 else "Transfer-Encoding: chunked"
                raw.request("POST", corner + "/silent", framing + "\r\n")
        for _ in range(20):
            for number, raw in enumerate(slow):
                if number % 3:
                    raw.send(b"x" if number % 3 == 1 else b"1\r\nx\r\n")
            assert body_of(exchange(router.url, "GET", fast + "/bytes/10")[0])
            assert exchange(router.url, "POST", fast + "/sink", "Content-Length: 3\r\n", b"abc")[0].endswith(b"3")
    finally:
        for raw in slow:
            raw.__exit__(None, None, None)
