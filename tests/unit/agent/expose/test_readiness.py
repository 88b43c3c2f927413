"""Probes of servers, and how a start waits until a job's server is there."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer

from prouter.agent.expose import probe
from prouter.agent.expose.exposure import Exposed, Exposure, NotReady
from prouter.agent.expose.ports import reserve
from prouter.errors import InvalidRequest, JobUnreachable
from prouter.runners.local.servers import connected
from prouter.runners.ownership import addresses, leads_to, refusal
from prouter.runners.sockets import Address, Listener, Sockets
from tests.support.exposures import BASE, NOBODY, answering, assigned, foreign, own, port_of, waited


def test_probes_tell_a_server_from_none(serve: Callable[..., int]) -> None:
    port = serve(answering({"/": "200 OK"}, "503 Busy"))
    assert probe.connects(connected, Address(port=port), 1)
    assert probe.http_status(connected, Address(port=port), "/", 1) == 200
    assert probe.http_status(connected, Address(port=port), "/x", 1) == 503
    nobody = reserve()
    nobody.release()
    assert not probe.connects(connected, Address(port=nobody.number), 1)
    assert probe.http_status(connected, Address(port=nobody.number), "/", 1) is None


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"x" * 5000, b"HTTP/1.1 abc\r\n"])
def test_what_is_not_http_is_no_http_answer(answer: bytes) -> None:
    def handle(connection: Any, _: Any) -> None:
        connection.recv(1000)
        connection.sendall(answer)
        connection.close()

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        assert probe.http_status(connected, Address(port=port_of(server)), "/", 5) is None
    finally:
        server.stop()


def test_a_server_that_does_not_answer_is_given_up_in_time() -> None:
    server = StreamServer(("127.0.0.1", 0), lambda *_: gevent.sleep(60))
    server.start()
    try:
        with gevent.Timeout(5):
            assert probe.http_status(connected, Address(port=port_of(server)), "/", 0.05) is None
    finally:
        server.stop(timeout=0)


def test_a_reported_port_is_enough(exposure: Callable[..., Exposure]) -> None:
    one = exposure(port_expected_count=2)
    look = own(7000, 7001)
    gevent.spawn_later(0.01, one.report, 7001, lambda: look)
    gevent.spawn_later(0.02, one.report, 7000, lambda: look)
    assert waited(one, look) == Exposed(Address(port=7001), [7001, 7000], "strip")


def test_a_port_may_be_reported_before_the_job_listens(exposure: Callable[..., Exposure]) -> None:
    one = exposure()
    looks = [NOBODY, NOBODY, NOBODY, own(7000)]
    one.report(7000, lambda: looks[0])
    with gevent.Timeout(5):
        assert one.wait(lambda: looks.pop(0), 5).address == Address(port=7000)


@pytest.mark.parametrize(
    ("later", "text"),
    [
        (NOBODY, r"not within 0\.05 s: its processes listened on port 7000, which it reported$"),
        (own(9), r"on port 7000, which it reported; its processes listen on 127\.0\.0\.1 port 9$"),
        (foreign(7000), "on port 7000, which it reported$"),
    ],
)
def test_a_reported_port_on_which_the_job_never_listens_is_no_server(
    exposure: Callable[..., Exposure], later: Sockets, text: str
) -> None:
    one = exposure()
    one.report(7000, lambda: NOBODY)
    with pytest.raises(NotReady, match=text):
        waited(one, later, timeout=0.05)


def test_a_port_of_another_program_is_refused_and_the_next_one_taken(exposure: Callable[..., Exposure]) -> None:
    one = exposure()
    look = Sockets(own(7000).own, foreign(7001).foreign, [])
    with pytest.raises(InvalidRequest, match="port 7001 is another program's: a job may report only ports on which"):
        one.report(7001, lambda: look)
    one.report(7000, lambda: look)
    assert waited(one, look).address == Address(port=7000)


def test_repeated_and_late_reports_change_nothing(exposure: Callable[..., Exposure]) -> None:
    one = exposure(port_expected_count=2)
    look = own(7001, 7002, 7003)
    for port in (7001, 7001, 7002, 7003, 7001):
        one.report(port, lambda: look)
    assert one.reported == [7001, 7002]


def test_reports_that_are_not_waited_for_are_refused(exposure: Callable[..., Exposure]) -> None:
    with pytest.raises(InvalidRequest, match="not waiting"):
        exposure(expose={"port": "assign"}).report(7001, lambda: own(7001))
    with pytest.raises(InvalidRequest, match="not waiting"):
        exposure(port_expected_count=0).report(7001, lambda: own(7001))
    dead = exposure()
    dead.died()
    with pytest.raises(InvalidRequest, match="not waiting"):
        dead.report(7001, lambda: own(7001))


def test_a_flood_of_reports_costs_few_looks(exposure: Callable[..., Exposure]) -> None:
    looks: list[int] = []

    def look() -> Sockets:
        looks.append(1)
        return foreign(7001)

    one = exposure()
    for _ in range(1000):
        with pytest.raises(InvalidRequest, match="another program"):
            one.report(7001, look)
    assert len(looks) < 100


def test_a_missing_report_says_how_many_are_missing(exposure: Callable[..., Exposure]) -> None:
    one = exposure(port_expected_count=3)
    one.report(7001, lambda: own(7001))
    with pytest.raises(NotReady, match=r"1 of 3 expected ports reported within 0\.01 s"):
        waited(one, own(7001), timeout=0.01)


def test_a_server_that_reports_nothing_is_told_what_to_do(exposure: Callable[..., Exposure]) -> None:
    with pytest.raises(NotReady, match=r"0 of 1 .*listen on 127\.0\.0\.1 port 9; .*port_expected_count: 0.* expose"):
        waited(exposure(), own(9), timeout=0.01)


def listener(where: str) -> Listener:
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    return Listener("ipv6" if ":" in host else "ipv4", host, int(port), 1)


@pytest.mark.parametrize(
    ("mine", "others", "reached"),
    [
        (["127.0.0.1:7"], [], ["127.0.0.1"]),
        (["0.0.0.0:7"], [], ["127.0.0.1"]),
        (["[::]:7"], [], ["127.0.0.1", "::1"]),
        (["[::1]:7"], [], ["::1"]),
        (["127.0.0.9:7"], ["127.0.0.1:7"], ["127.0.0.9"]),
        (["[::ffff:127.0.0.1]:7"], [], ["127.0.0.1"]),
        (["127.0.0.1:7", "[::1]:7"], ["0.0.0.0:7"], ["127.0.0.1", "::1"]),
        (["[::]:7"], ["127.0.0.1:7"], ["::1"]),
        (["[::]:7"], ["0.0.0.0:7"], ["::1"]),
        (["[::]:7"], ["[::1]:7", "127.0.0.1:7"], []),
        (["0.0.0.0:7"], ["127.0.0.1:7"], []),
        (["127.0.0.1:8"], ["127.0.0.1:7"], []),
        (["127.0.0.1:7"], ["127.0.0.1:7"], []),
        (["127.0.0.1:7"], ["[::ffff:127.0.0.1]:7"], []),
        (["0.0.0.0:7"], ["0.0.0.0:7"], []),
        (["[::]:7"], ["[::]:7"], []),
        (["127.0.0.1:7", "[::1]:7"], ["[::1]:7"], ["127.0.0.1"]),
        ([], [], []),
    ],
)
def test_only_addresses_that_lead_to_the_job_are_its_own(
    mine: list[str], others: list[str], reached: list[str]
) -> None:
    sockets = Sockets([listener(one) for one in mine], [listener(one) for one in others], [])
    assert [address.host for address in addresses(7, sockets)] == reached


def test_a_port_on_an_address_of_the_network_does_not_keep_a_job_from_loopback() -> None:
    assert refusal(7, Sockets([], [listener("10.0.0.1:7")], [])) is None
    assert refusal(7, Sockets([], [listener("[::]:7")], [])) is not None


def test_a_port_of_a_process_that_cannot_be_looked_at_is_refused_with_a_way_out() -> None:
    text = refusal(7, Sockets([], [listener("127.0.0.1:7")], [4711]))
    assert text is not None
    assert "process 4711 runs as another user" in text
    assert "assign" in text


def test_another_program_at_the_assigned_port_is_named(exposure: Callable[..., Exposure]) -> None:
    def refuse(address: Address, timeout: float) -> socket.socket:
        raise JobUnreachable("it is another program's")

    one = exposure(expose={"port": "assign"})
    one._connect = refuse
    with pytest.raises(NotReady, match=f"another program listens on port {assigned(one)}"):
        waited(one, foreign(assigned(one)), timeout=0.05)


@pytest.mark.parametrize(
    ("hidden", "uids", "holder", "served"),
    [([], [], 0, False), ([4711], [500], 0, True), ([4711], [501], 0, False), ([4711], [500], 4712, False)],
)
def test_an_assigned_port_is_the_jobs_own_or_that_of_a_process_that_cannot_be_looked_at(
    hidden: list[int], uids: list[int], holder: int, served: bool
) -> None:
    there = [found._replace(uid=500, pid=holder) for found in foreign(8000).foreign]
    look = Sockets([], there, hidden, frozenset(uids))
    assert bool(leads_to(Address(port=8000), look, assigned=True)) == served


@pytest.mark.parametrize("expose", [None, {"port": "assign"}, {"port": "unix"}, {"port": "detect"}])
def test_a_wait_ends_at_once_when_the_job_dies(
    exposure: Callable[..., Exposure], expose: dict[str, Any] | None
) -> None:
    one = exposure(expose=expose)
    gevent.spawn_later(0.02, one.died)
    with gevent.Timeout(5), pytest.raises(NotReady, match="process ended"):
        one.wait(lambda: NOBODY, 600)


def test_an_assigned_port_is_waited_for_until_it_answers(
    exposure: Callable[..., Exposure], serve: Callable[..., int]
) -> None:
    one = exposure(expose={"port": "assign", "ready": "http"})
    gevent.spawn_later(0.05, serve, answering({}), assigned(one))
    assert waited(one) == Exposed(Address(port=assigned(one)), [assigned(one)], "strip")


def test_a_server_on_ipv6_alone_is_found(exposure: Callable[..., Exposure], serve: Callable[..., int]) -> None:
    one = exposure(expose={"port": "assign"})
    serve(answering({}), assigned(one), "::1")
    assert waited(one).address.endpoint() == {"port": assigned(one), "host": "::1"}


def test_a_unix_socket_is_waited_for(exposure: Callable[..., Exposure]) -> None:
    one = exposure(expose={"port": "unix", "ready": "http"})
    listener = gevent.socket.socket(socket.AF_UNIX)
    listener.bind(str(one.socket))
    listener.listen()
    server = WSGIServer(listener, answering({}), log=None)
    server.start()
    try:
        assert waited(one).address.endpoint() == {"socket": str(one.socket)}
    finally:
        server.stop(timeout=0)


def test_detection_takes_the_lowest_port_that_answers(
    exposure: Callable[..., Exposure], serve: Callable[..., int]
) -> None:
    silent = StreamServer(("127.0.0.1", 0), lambda connection, _: connection.close())
    silent.start()
    web = serve(answering({}))
    look = [
        Listener("ipv4", "0.0.0.0", web, 1),
        Listener("ipv6", "::", port_of(silent), 1),
        Listener("unix", "/x", 0, 1),
    ]
    try:
        found = waited(exposure(expose={"port": "detect"}), Sockets(look, [], []))
    finally:
        silent.stop()
    assert found == Exposed(Address(port=web), sorted({web, port_of(silent)}), "strip")


def test_silent_ports_do_not_keep_the_one_that_answers_waiting(
    exposure: Callable[..., Exposure], serve: Callable[..., int]
) -> None:
    """None of them is given up before the one that answers comes and is found."""
    web = serve(answering({}))
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(4)]
        looks = [[*silent[:1]], [*silent], [*silent, web]]  # one after another, as a job opens them

        def look() -> Sockets:
            return own(*(looks.pop(0) if len(looks) > 1 else looks[0]))

        one = exposure(expose={"port": "detect"})
        assert one.wait(look, 5.0).address == Address(port=web)


@pytest.mark.parametrize("where", [{"port": "assign"}, {"port": "unix"}])
def test_a_server_that_listens_elsewhere_is_told_where(
    exposure: Callable[..., Exposure], where: dict[str, str]
) -> None:
    look = Sockets([Listener("ipv4", "127.0.0.1", 9, 1), Listener("unix", "app.sock", 0, 1)], [], [])
    with pytest.raises(NotReady, match=r"; its processes listen on 127\.0\.0\.1 port 9, socket app\.sock$"):
        waited(exposure(expose=where), look, timeout=0.03)


@pytest.mark.parametrize(
    ("status", "good"),
    [
        ("200 OK", True),
        ("302 Found", True),
        ("401 Login", True),
        ("403 No", True),
        ("404 No", False),
        ("503 No", False),
    ],
)
@pytest.mark.parametrize(("path", "prefix"), [("strip", "/"), ("keep", BASE)])
def test_a_path_is_ready_by_its_status(
    exposure: Callable[..., Exposure], serve: Callable[..., int], status: str, good: bool, path: str, prefix: str
) -> None:
    one = exposure(expose={"port": "assign", "ready": "/health", "path": path})
    serve(answering({f"{prefix}health": status}), assigned(one))
    if good:
        assert waited(one).path_mode == path
    else:
        with pytest.raises(NotReady, match=r"not within 0\.03 s: a good response to GET /health on port"):
            waited(one, timeout=0.03)


@pytest.mark.parametrize(
    ("statuses", "mode"),
    [({BASE: "200 OK"}, "keep"), ({BASE: "302 Found"}, "keep"), ({"/": "200 OK"}, "strip"), ({BASE: "500 X"}, "keep")],
)
def test_auto_asks_the_server_whether_it_knows_its_prefix(
    exposure: Callable[..., Exposure], serve: Callable[..., int], statuses: dict[str, str], mode: str
) -> None:
    one = exposure(expose={"port": "assign", "path": "auto"})
    serve(answering(statuses), assigned(one))
    assert waited(one).path_mode == mode
