"""An exchange between a client's connection and both ends of a stream, events in an order of the test's choice."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import gevent
import pytest

from prouter.fabric.mux import Finished, Mux, Opened, Received, ResetReceived, Writable
from prouter.fabric.stream import Stream
from prouter.jobs import JobRecord, State
from prouter.web.proxy.addresses.fields import REQUEST_FIELDS
from prouter.web.proxy.addresses.forwarded import Forwarded, Origin
from prouter.web.proxy.addresses.roots import Asked
from prouter.web.proxy.connection import SMALL_READ, ClientConnection
from prouter.web.proxy.exchange import ProxyExchange
from prouter.web.proxy.messages.heads import RequestHead
from prouter.web.proxy.upstream import UpstreamPool
from prouter.web.routes import JobRoute
from tests.support.fabric_peers import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"


class Stage:
    """A worker's proxy with one client, and an agent that does what the test says, when it says."""

    def __init__(self) -> None:
        self.worker = Mux(lambda mux: None)
        self.agent = Mux(lambda mux: None, accepts=True)
        self.worker.path_up()
        self.agent.path_up()
        self.opened: list[Stream] = []
        self.heard: dict[int, bytes] = {}
        self.hungry = True
        """Whether the job reads."""
        self.explained: list[tuple[str, bool]] = []
        record = JobRecord("j", "c", "job", state=State.RUNNING, endpoint={"port": 1})
        self.route = JobRoute("c", record, up=True)
        client = SimpleNamespace(
            open_stream=lambda connection, target: self.worker.open(target, 1 << 20), is_up=lambda connection: True
        )
        self.server = SimpleNamespace(
            loop=gevent.get_hub().loop,
            pool=UpstreamPool(cast(Any, client)),
            exchanges=set(),
            draining=False,
            head_timeout=30.0,
            idle_timeout=75.0,
            max_head=65536,
            mark=b"5f0e",
            request_fields=REQUEST_FIELDS,
            own_names_only=False,
            dispatch=self._dispatch,
            forget=lambda connection: None,
            explain=lambda exchange, detail, patience, reached: self.explained.append((detail, reached)),
        )
        ours, self.client = socket.socketpair()
        ours.setblocking(False)
        self.client.setblocking(False)
        self.connection = ClientConnection(cast(Any, self.server), ours, Origin("unix", 0, False))

    def _dispatch(self, connection: ClientConnection, head: RequestHead, _looped: bool) -> None:
        exchange = ProxyExchange(
            cast(Any, self.server), connection, Forwarded(head, connection.origin), Asked("", "", head.target, True)
        )
        connection.exchange = exchange
        self.server.exchanges.add(exchange)
        exchange.forward(self.route)

    def ask(self, request: bytes) -> None:
        """Have the client send a request, and wait until it is on its way."""
        before = self.server.exchanges.copy()
        self.client.sendall(request)
        until(lambda: self.server.exchanges - before)

    def send_all(self, data: bytes) -> None:
        """Have the client send more than the kernel takes at once."""
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[self.client.send(data) :]
            gevent.sleep(0.001)

    def to_agent(self) -> None:
        """Deliver what the worker said; its bytes are with the job then."""
        for event in self.agent.receive(self.worker.take()):
            if isinstance(event, Opened):
                self.opened.append(event.stream)
            elif isinstance(event, Received):
                sid = event.stream.sid
                self.heard[sid] = self.heard.get(sid, b"") + bytes(event.data)
                if self.hungry:
                    event.stream.consume(len(event.data))

    def to_worker(self) -> None:
        """Deliver what the agent said."""
        for event in self.worker.receive(self.agent.take()):
            handler = event.stream.handler
            if isinstance(event, Received):
                handler.on_data(event.data)
            elif isinstance(event, Writable):
                handler.on_writable()
            elif isinstance(event, Finished):
                handler.on_finish()
            elif isinstance(event, ResetReceived):
                handler.on_reset(event.code, event.text)

    def answer(self, stream: Stream, data: bytes = OK) -> bytes:
        """Have the job answer over `stream`; what the client gets."""
        stream.write(data)
        self.to_worker()
        return self.read()

    def read(self) -> bytes:
        """What the client gets next, nothing at the end."""
        got: list[bytes] = []

        def receive() -> bool:
            with contextlib.suppress(BlockingIOError):
                got.append(self.client.recv(262144))
            return bool(got)

        until(receive)
        return got[0]

    def serve_once(self) -> Stream:
        """One request and answer, after which the stream is idle."""
        self.ask(GET)
        self.to_agent()
        assert self.answer(self.opened[-1]).endswith(b"ok")
        return self.opened[-1]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.connection.close()
    stage.client.close()


def end(stream: Stream) -> None:
    """The job closes the connection."""
    stream.close()


def say_more(stream: Stream) -> None:
    """The job goes on after the end of its answer, as if it answered again."""
    stream.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")


@pytest.mark.parametrize("request_bytes", [GET, POST])
@pytest.mark.parametrize("leave", [end, say_more])
def test_what_the_job_did_before_a_request_is_not_its_answer(
    stage: Stage, request_bytes: bytes, leave: Callable[[Stream], None]
) -> None:
    old = stage.serve_once()
    leave(old)
    stage.ask(request_bytes)  # crosses what the job said
    stage.to_worker()
    stage.to_agent()
    new = stage.opened[-1]
    assert new is not old
    assert stage.heard[new.sid].startswith(request_bytes[:6])
    assert stage.heard[new.sid].endswith(request_bytes[-3:])
    assert stage.answer(new).endswith(b"\r\n\r\nok")


def test_a_body_that_streams_goes_on_over_the_new_connection(stage: Stage) -> None:
    old = stage.serve_once()
    end(old)
    stage.ask(POST[:-2])
    stage.to_worker()
    stage.client.sendall(b"bc")
    until(lambda: stage.connection.buffer == b"" and [f for f in stage.worker._output._frames if f.payload == b"bc"])
    stage.to_agent()
    assert stage.heard[stage.opened[-1].sid].endswith(b"\r\n\r\nabc")
    assert stage.answer(stage.opened[-1]).endswith(b"ok")


@pytest.mark.parametrize("heard", [True, False])
def test_a_job_that_had_the_request_when_it_ended_is_not_one_that_had_ended_before(stage: Stage, heard: bool) -> None:
    old = stage.serve_once()
    if not heard:
        old.reset("job_ended", "it has ended")
    stage.ask(GET)
    stage.to_agent()
    if heard:
        old.reset("job_ended", "it has ended")
    stage.to_worker()
    stage.to_agent()
    assert stage.opened[-1] is not old
    stage.opened[-1].reset("not_running", "it does not run")
    stage.to_worker()
    assert stage.explained == [("it does not run", heard)]


def test_what_the_job_may_have_seen_is_not_sent_twice(stage: Stage) -> None:
    old = stage.serve_once()
    stage.ask(POST)
    stage.to_agent()
    end(old)
    stage.to_worker()
    assert stage.explained == [("the job closed the connection without a response", True)]
    assert stage.opened == [old]


def test_a_repeatable_request_survives_a_broken_answer_of_a_used_connection(stage: Stage) -> None:
    old = stage.serve_once()
    stage.ask(GET)
    stage.to_agent()
    old.write(b"tail of an answer that was longer than it said")
    stage.to_worker()
    stage.to_agent()
    assert stage.opened[-1] is not old
    assert stage.answer(stage.opened[-1], b"nonsense").startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("apart", [True, False])
def test_a_few_interim_answers_pass_and_no_more(stage: Stage, apart: bool) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"
    for count, status in ((10, b"200"), (11, b"502"), (3000, b"502")):
        stage.ask(GET)
        stage.to_agent()
        for data in [interim] * count + [OK] if apart else [interim * count + OK]:
            stage.opened[-1].write(data)
            stage.to_worker()
        got = b""
        while not got.endswith((b"ok", b"}")):
            got += stage.read()
        assert got.count(b"HTTP/1.1 103 ") == 10
        assert got.replace(interim, b"").startswith(b"HTTP/1.1 %s " % status)
        assert not stage.connection.out_size


@pytest.mark.parametrize("answer", [OK, b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, b"HTTP/1.0 200 OK\r\n\r\nok"])
def test_a_client_that_goes_as_the_answer_comes_ends_only_its_own_request(stage: Stage, answer: bytes) -> None:
    stage.ask(GET)
    stage.to_agent()
    stage.client.close()  # the worker finds out by writing
    stage.opened[-1].write(answer)
    stage.opened[-1].close()
    stage.to_worker()
    assert not stage.connection.alive
    assert not stage.server.exchanges


def test_an_answer_whose_lines_end_with_lf_passes_and_is_the_last_on_its_connection(stage: Stage) -> None:
    stage.ask(GET)
    stage.to_agent()
    answer = stage.answer(stage.opened[-1], b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert not stage.server.pool.idle


@pytest.mark.parametrize("apart", [True, False])
def test_too_large_a_head_is_refused_however_it_arrives(stage: Stage, apart: bool) -> None:
    stage.ask(GET)
    stage.to_agent()
    big, rest = b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, b"\r\nContent-Length: 0\r\n\r\n"
    if apart:
        stage.opened[-1].write(big)
        stage.to_worker()
    else:
        stage.opened[-1].write(big + rest)
        stage.to_worker()
    assert b"too large a head" in stage.read()


def test_a_chunked_answer_of_an_old_job_is_the_last_on_its_connection(stage: Stage) -> None:
    stage.ask(GET)
    stage.to_agent()
    answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    assert stage.answer(stage.opened[-1], answer).endswith(b"2\r\nok\r\n0\r\n\r\n")
    assert not stage.server.pool.idle


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET /x\r\n", b"GET / HTTP/2.0\r\n", b"SSH-2.0-a\r\n", b"\0"],
)
def test_what_will_never_be_a_request_is_refused_at_once(stage: Stage, data: bytes) -> None:
    stage.client.sendall(data)
    assert stage.read().startswith(b"HTTP/1.1 400 ")


def test_a_request_may_come_byte_by_byte(stage: Stage) -> None:
    for index in range(len(GET)):
        stage.client.sendall(GET[index : index + 1])
        until(lambda: not select.select([stage.connection._fd], [], [], 0)[0])
    until(lambda: bool(stage.server.exchanges))


def test_a_broken_upload_does_not_put_an_error_into_an_answer_that_has_begun(stage: Stage) -> None:
    stage.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    stage.to_agent()
    assert stage.answer(stage.opened[-1], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").endswith(b"abc")
    stage.client.sendall(b"zz\r\n")
    until(lambda: not stage.connection.alive)
    assert stage.read() == b""


def test_chunks_of_a_byte_are_read_a_few_at_a_time(stage: Stage) -> None:
    stage.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    usual = stage.connection.receive_size
    stage.client.sendall(b"1\r\na\r\n" * 100)
    until(lambda: stage.connection.receive_size == SMALL_READ)
    stage.client.sendall(b"64\r\n" + b"b" * 100 + b"\r\n")
    until(lambda: stage.connection.receive_size == usual)


@pytest.mark.parametrize("request_bytes", [GET + GET, POST + GET])
def test_a_client_that_ends_its_side_gets_its_answers(stage: Stage, request_bytes: bytes) -> None:
    stage.ask(request_bytes)
    stage.client.shutdown(socket.SHUT_WR)
    stage.to_agent()
    until(lambda: stage.connection.half_closed)
    assert stage.answer(stage.opened[0]).endswith(b"ok")
    until(lambda: stage.server.exchanges)
    stage.to_agent()
    assert stage.answer(stage.opened[-1]).endswith(b"ok")
    assert stage.read() == b""


@pytest.mark.parametrize("request_bytes", [GET, POST])
def test_a_client_that_ends_its_side_and_gets_no_answer_counts_as_gone(stage: Stage, request_bytes: bytes) -> None:
    stage.ask(request_bytes)
    stage.client.shutdown(socket.SHUT_WR)
    until(lambda: not stage.connection.alive)
    assert not stage.server.exchanges


@pytest.mark.parametrize("cut", [1, 3])
def test_a_client_that_ends_its_side_within_a_body_counts_as_gone_at_once(stage: Stage, cut: int) -> None:
    stage.ask(POST[:-cut])
    stage.client.shutdown(socket.SHUT_WR)
    until(lambda: stage.connection.half_closed)
    assert not stage.connection.alive


@pytest.mark.parametrize(
    ("lines", "interim", "status"),
    [
        (b"", b"", b" 408 "),
        (b"Expect: 100-continue\r\n", b"", b" 504 "),
        (b"Expect: 100-continue\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b" 408 "),
    ],
)
def test_a_request_that_nobody_goes_on_with_is_given_up(
    stage: Stage, lines: bytes, interim: bytes, status: bytes
) -> None:
    stage.ask(b"POST /x HTTP/1.1\r\nHost: h\r\n" + lines + b"Content-Length: 3\r\n\r\n")
    stage.to_agent()
    if interim:
        assert stage.answer(stage.opened[-1], interim) == interim
    (exchange,) = stage.server.exchanges
    limits = (10.0, 1e9) if status == b" 504 " else (1e9, 10.0)
    exchange.check_timeout(exchange.awaiting_since + 9, *limits)
    exchange.check_timeout(exchange.awaiting_since + 1e9, 0, 0)
    assert stage.server.exchanges
    exchange.check_timeout(exchange.awaiting_since + 11, *limits)
    assert status in stage.read()
    assert not stage.server.exchanges


def test_a_job_that_does_not_read_is_not_its_clients_fault(stage: Stage) -> None:
    stage.hungry = False
    stage.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n")
    gevent.spawn(stage.send_all, bytes(3_000_000))
    until(lambda: stage.connection._paused)
    (exchange,) = stage.server.exchanges
    exchange.check_timeout(exchange.awaiting_since + 50, 100.0, 10.0)
    assert stage.server.exchanges
    exchange.check_timeout(exchange.awaiting_since + 101, 100.0, 10.0)
    assert b" 504 " in stage.read()


def test_what_waits_for_room_goes_through_the_tunnel_first(stage: Stage) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: talk\r\nContent-Length: 2097152\r\n\r\n"
    body = bytes(range(256)) * 8192 + b"end"
    stage.hungry = False
    gevent.spawn(stage.send_all, head + body)
    until(lambda: stage.connection._paused)
    stage.to_agent()
    (stream,) = stage.opened
    assert stage.answer(stream, b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: talk\r\n\r\n").startswith(
        b"HTTP/1.1 101 "
    )
    stage.hungry = True
    stream.consume(stream.unread)

    def arrived() -> bool:
        stage.to_worker()
        stage.to_agent()
        return stage.heard[stream.sid].endswith(b"end")

    until(arrived)
    assert stage.heard[stream.sid].partition(b"\r\n\r\n")[2] == body


def test_an_answer_before_the_end_of_the_request_is_the_last_on_its_connection(stage: Stage) -> None:
    stage.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    stage.to_agent()
    answer = stage.answer(stage.opened[-1], b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in answer
    assert stage.read() == b""


def test_a_client_that_sends_on_after_the_answer_finds_it(stage: Stage) -> None:
    stage.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 20000000\r\n\r\n")
    stage.to_agent()
    stage.opened[-1].write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
    stage.to_worker()
    before = stage.connection.deadline
    for _ in range(20):
        stage.client.sendall(b"x" * 50_000)
        gevent.sleep(0.001)
    until(lambda: stage.connection.deadline > before)
    assert stage.read().startswith(b"HTTP/1.1 413 ")


def test_a_slow_reader_is_not_idle(stage: Stage) -> None:
    body = b"x" * 900_000
    stage.ask(GET)
    stage.to_agent()
    stage.opened[-1].write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    stage.to_worker()
    assert stage.connection.exchange is None
    before = stage.connection.deadline
    stage.read()
    until(lambda: stage.connection.deadline > before)
