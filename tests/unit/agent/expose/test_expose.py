"""How servers are exposed: plans and presets, templates and variables, ports, probes, and the wait for a server."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer

from prouter.agent.expose import ports, probe
from prouter.agent.expose.endpoint import PATH, PortEndpoint
from prouter.agent.expose.exposure import Exposed, Exposure, NotReady, Plan, resolve
from prouter.agent.expose.ports import reserve, take
from prouter.agent.expose.presets import PRESETS
from prouter.agent.expose.templates import fill
from prouter.agent.jobs.environment import base_environment, completed, place
from prouter.agent.sandbox.socket_places import SocketPlaces
from prouter.errors import InvalidRequest, JobUnreachable, LimitReached, NotFound, StartFailed
from prouter.jobs import JobRecord
from prouter.requests import StartRequest, validated
from prouter.runners.local.servers import connected
from prouter.runners.ownership import addresses, leads_to, refusal
from prouter.runners.sockets import Address, Listener, Sockets

BASE = "/jobs/c/j/http/"
NOBODY = Sockets([], [], [])


def plan(**body: Any) -> Plan:
    return resolve(validated(StartRequest, {"args": ["x"], "env": {}, **body}))


# What a job sees.


def test_the_agents_own_variables_stay_with_the_agent() -> None:
    own = {
        "PROUTER_CLIENT__TOKEN": "secret",
        "PROUTER_JOB_ID": "of the job this agent runs in",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "LISTEN_FDS": "1",
        "WATCHDOG_USEC": "1",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "DA__PAGENT__JOB_ENDPOINT": "http://elsewhere",
    }
    assert base_environment({**own, "PATH": "/bin", "HOME": "/root"}, {}) == {"PATH": "/bin", "HOME": "/root"}


def test_properties_become_variables_with_their_exact_names() -> None:
    properties = {
        "zone": "a",
        "GPU": "a100",
        "Mixed Case 1": "with spaces",
        "größer ЮНИКОД": "èüîû",
        "cores": 8,
        "share": 0.5,
        "fast": True,
        "tags": ["a", "b"],
        "none": None,
        "empty": "",
        "odd=name\0": "x\0y=z",
    }
    assert base_environment({}, properties) == {
        "DA__PAGENT__zone": "a",
        "DA__PAGENT__GPU": "a100",
        "DA__PAGENT__Mixed Case 1": "with spaces",
        "DA__PAGENT__größer ЮНИКОД": "èüîû",
        "DA__PAGENT__cores": "8",
        "DA__PAGENT__share": "0.5",
        "DA__PAGENT__fast": "True",
        "DA__PAGENT__tags": '["a", "b"]',
        "DA__PAGENT__none": "null",
        "DA__PAGENT__empty": "",
        "DA__PAGENT__odd_name_": "xy=z",
    }


LOOPBACK = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("environment", "requested", "no_proxy"),
    [
        ({}, {}, (None, None)),
        ({"NO_PROXY": "corp"}, {}, (None, "corp")),
        ({"http_proxy": ""}, {}, (None, None)),
        ({"http_proxy": "http://p"}, {}, (LOOPBACK, LOOPBACK)),
        ({"HTTPS_PROXY": "http://p"}, {}, (LOOPBACK, LOOPBACK)),
        ({"all_proxy": "socks://p"}, {}, (LOOPBACK, LOOPBACK)),
        ({}, {"HTTP_PROXY": "http://p"}, (LOOPBACK, LOOPBACK)),
        ({"http_proxy": "http://p", "NO_PROXY": "corp, .x,"}, {}, (f"corp, .x,{LOOPBACK}",) * 2),
        ({"http_proxy": "http://p", "no_proxy": "a", "NO_PROXY": "b"}, {}, (f"a,{LOOPBACK}", f"b,{LOOPBACK}")),
        ({"http_proxy": "http://p", "no_proxy": "localhost"}, {}, ("localhost,127.0.0.1,::1",) * 2),
        ({"http_proxy": "http://p", "no_proxy": "*"}, {}, ("*", "*")),
        ({"http_proxy": "http://p", "no_proxy": "a"}, {"NO_PROXY": "mine"}, ("a", "mine")),
        ({"http_proxy": "http://p"}, {"no_proxy": ""}, ("", None)),
    ],
)
def test_loopback_is_reached_round_a_proxy(
    environment: dict[str, str], requested: dict[str, str], no_proxy: tuple[str | None, str | None]
) -> None:
    found = completed({**environment, **requested}, requested)
    assert (found.get("no_proxy"), found.get("NO_PROXY")) == no_proxy


def test_pythons_output_is_unbuffered_unless_somebody_says_otherwise() -> None:
    assert completed({}, {})["PYTHONUNBUFFERED"] == "1"
    assert completed({"PYTHONUNBUFFERED": ""}, {})["PYTHONUNBUFFERED"] == ""


def test_a_job_knows_its_place() -> None:
    variables = place(JobRecord("j", "c", "name"), "/sandbox")
    assert variables == {
        "PROUTER_JOB_ID": "j",
        "PROUTER_JOB_PATH": "/jobs/c/j",
        "PROUTER_BASE_URL": "/jobs/c/j/http/",
        "PROUTER_BASE_PATH": "/jobs/c/j/http",
        "PROUTER_SANDBOX": "/sandbox",
    }


def test_a_job_that_reports_its_port_knows_where_to() -> None:
    variables = place(JobRecord("j", "c", "name"), "/sandbox", report_to="http://127.0.0.1:1/x")
    assert variables["DA__PAGENT__JOB_ENDPOINT"] == "http://127.0.0.1:1/x"
    assert variables["DA__PAGENT__JOB_ID"] == "j"


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("--port={port}", "--port=8000"),
        ("{port}{port} {base_url}", "80008000 /b/"),
        ('{"port": {port}, "other": {}}', '{"port": 8000, "other": {}}'),
        ("{{port}}", "{8000}"),
        ("{socket}", "{socket}"),
        ("{Port} { port } {ports} ${port", "{Port} { port } {ports} ${port"),
        ("plain", "plain"),
    ],
)
def test_only_the_exact_tokens_that_have_a_value_are_replaced(text: str, filled: str) -> None:
    assert fill(text, {"{port}": "8000", "{base_url}": "/b/"}) == filled


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    assert fill("{sandbox}", {"{sandbox}": "/tmp/{port}", "{port}": "1"}) == "/tmp/{port}"


# Plans.


@pytest.mark.parametrize(
    ("body", "port", "ready", "path", "timeout"),
    [
        ({}, "notify", None, "strip", 30),
        ({"port_expected_count": 0}, "none", None, "strip", 30),
        ({"expose": {}}, "notify", None, "strip", 30),
        ({"expose": {"ready": "http"}}, "notify", "http", "strip", 30),
        ({"expose": {}, "port_expected_count": 0}, "none", None, "strip", 30),
        ({"expose": {"port": "assign"}}, "assign", "tcp", "strip", 30),
        ({"expose": {"port": "assign"}, "port_expected_count": 0}, "assign", "tcp", "strip", 30),
        ({"expose": {"port": "detect", "timeout": 5, "path": "auto"}}, "detect", "http", "auto", 5),
        ({"expose": {"port": "detect", "ready": "tcp"}}, "detect", "tcp", "strip", 30),
        ({"expose": {"port": "unix"}}, "unix", "tcp", "strip", 30),
        ({"expose": {"preset": "jupyterlab"}}, "unix", "http", "keep", 60),
        ({"expose": {"preset": "jupyterlab", "port": "assign", "ready": "/api"}}, "assign", "/api", "keep", 60),
        ({"expose": {"preset": "uvicorn", "path": "keep", "timeout": 1}}, "assign", "http", "keep", 1),
    ],
)
def test_plans_fill_in_what_is_left_open(
    body: dict[str, Any], port: str, ready: str | None, path: str, timeout: float
) -> None:
    found = plan(**body)
    assert (found.port, found.ready, found.path, found.timeout) == (port, ready, path, timeout)


# Arguments and variables.


@pytest.fixture
def exposure(tmp_path: Path) -> Iterator[Callable[..., Exposure]]:
    made: list[Exposure] = []

    def make(**body: Any) -> Exposure:
        resolved = plan(**body)
        port = reserve() if resolved.port == "assign" else None
        place = tmp_path / "s" if resolved.port == "unix" else None
        made.append(Exposure(resolved, base_url=BASE, sandbox=tmp_path, connect=connected, port=port, socket=place))
        return made[-1]

    yield make
    for one in made:
        one.release()


def assigned(exposure: Exposure) -> int:
    assert exposure.port is not None
    return exposure.port.number


def test_a_start_without_expose_is_left_as_it_is(exposure: Callable[..., Exposure], tmp_path: Path) -> None:
    one = exposure()
    assert one.arguments(["{port}", "{sandbox}"]) == ["{port}", "{sandbox}"]
    assert one.variables(tmp_path) == {}


def test_an_assigned_port_goes_into_arguments_and_variables(exposure: Callable[..., Exposure], tmp_path: Path) -> None:
    one = exposure(expose={"port": "assign"})
    number = str(assigned(one))
    assert one.arguments(["-p", "{port}", "{base_url}", "{sandbox}"]) == ["-p", number, BASE, str(tmp_path)]
    assert one.variables(tmp_path) == {"HOST": "127.0.0.1", "PORT": number}


@pytest.mark.parametrize(
    ("expose", "expected"),
    [
        ({"preset": "streamlit"}, {"STREAMLIT_SERVER_PORT": "PORT", "STREAMLIT_SERVER_BASE_URL_PATH": BASE}),
        ({"preset": "dash"}, {"PORT": "PORT", "HOST": "127.0.0.1", "DASH_URL_BASE_PATHNAME": BASE}),
        (
            {"preset": "dash", "path": "strip"},
            {"DASH_REQUESTS_PATHNAME_PREFIX": BASE, "DASH_ROUTES_PATHNAME_PREFIX": "/"},
        ),
        ({"preset": "gradio"}, {"GRADIO_SERVER_PORT": "PORT", "GRADIO_ROOT_PATH": BASE[:-1]}),
        ({"preset": "bokeh"}, {"BOKEH_DEFAULT_SERVER_PORT": "PORT"}),
        ({"preset": "uvicorn"}, {"UVICORN_PORT": "PORT", "UVICORN_ROOT_PATH": BASE[:-1]}),
        ({"preset": "uvicorn", "port": "unix"}, {"UVICORN_UDS": "SOCKET", "FORWARDED_ALLOW_IPS": "*"}),
    ],
)
def test_presets_set_the_usual_variables(
    exposure: Callable[..., Exposure], tmp_path: Path, expose: dict[str, Any], expected: dict[str, str]
) -> None:
    one = exposure(expose=expose)
    variables = one.variables(tmp_path)
    given = {"PORT": str(one.port.number) if one.port else "", "SOCKET": str(one.socket)}
    assert {name: variables.get(name) for name in expected} == {k: given.get(v, v) for k, v in expected.items()}
    assert not any("{" in value for value in variables.values())


def test_a_preset_sets_no_port_that_is_not_assigned(exposure: Callable[..., Exposure], tmp_path: Path) -> None:
    for name in PRESETS:
        variables = exposure(expose={"preset": name, "port": "detect"}).variables(tmp_path / "config")
        assert not any("{" in value for value in variables.values())
        assert "PORT" not in variables


@pytest.mark.parametrize("port", ["unix", "assign"])
def test_jupyterlab_gets_a_configuration_file_and_is_open_only_on_a_private_socket(
    exposure: Callable[..., Exposure], tmp_path: Path, port: str
) -> None:
    one = exposure(expose={"preset": "jupyterlab", "port": port})
    directory = Path(one.variables(tmp_path / "config")["JUPYTER_CONFIG_PATH"])
    settings = json.loads((directory / "jupyter_server_config.json").read_text())
    assert directory.stat().st_mode & 0o777 == 0o700
    assert settings["ServerApp"]["base_url"] == BASE
    if port == "unix":
        assert settings["ServerApp"]["sock"] == str(one.socket)
        assert settings["IdentityProvider"] == {"token": ""}
    else:
        assert settings["ServerApp"]["port"] == assigned(one)
        assert "IdentityProvider" not in settings


# Ports and sockets.


def test_no_port_is_handed_out_twice() -> None:
    held = [reserve() for _ in range(50)]
    try:
        assert len({port.number for port in held}) == 50
        assert all(take(port.number) is None for port in held)
    finally:
        for port in held:
            port.release()
    again = take(held[0].number)
    assert again is not None
    again.release()


def test_ports_are_outside_the_kernels_own_range() -> None:
    low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    port = reserve()
    port.release()
    assert port.number < low or port.number > high


def test_a_port_in_use_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        number = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_choice", lambda: (number, number + 1))
        with pytest.raises(LimitReached, match="no free port"):
            reserve()
    port = reserve()
    port.release()
    assert port.number == number


def test_a_socket_is_in_the_sandbox_where_the_path_is_short_enough(tmp_path: Path) -> None:
    places = SocketPlaces(Path("/r"))
    assert places.path(Path("/r/" + "a" * 32)) == Path("/r") / ("a" * 32) / ".pagent.sock"


def test_a_long_root_has_its_sockets_in_a_private_directory(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(work_dir))
    places = SocketPlaces(Path("/" + "r" * 90))
    place = places.path(Path("/" + "r" * 90) / ("a" * 32))
    assert len(str(place)) <= 100
    assert place.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
    places.sweep({place})
    assert place.exists()
    places.sweep(set())
    assert not place.parent.exists()


def test_a_private_directory_that_others_made_is_not_used(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(work_dir))
    places = SocketPlaces(Path("/" + "r" * 90))
    places.path(Path("/" + "r" * 90) / ("a" * 32)).parent.chmod(0o755)
    with pytest.raises(StartFailed, match="not a private directory"):
        places.path(Path("/" + "r" * 90) / ("a" * 32))


# Probes, and the wait for a server.


Application = Callable[[dict[str, Any], Callable[..., Any]], list[bytes]]


def answering(statuses: dict[str, str], default: str = "404 Not Found") -> Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(statuses.get(environ["PATH_INFO"], default), [("Content-Length", "0")])
        return []

    return application


def port_of(server: Any) -> int:
    return int(server.server_port)


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    servers: list[Any] = []

    def start(application: Application, port: int = 0, host: str = "127.0.0.1") -> int:
        servers.append(WSGIServer((host, port), application, log=None))
        servers[-1].start()
        return port_of(servers[-1])

    yield start
    for server in servers:
        server.stop(timeout=0)


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


def own(*ports: int) -> Sockets:
    """A job that listens on these ports of 127.0.0.1."""
    return Sockets([Listener("ipv4", "127.0.0.1", port, 1) for port in ports], [], [])


def foreign(*ports: int) -> Sockets:
    """Another program that does."""
    return Sockets([], [one._replace(pid=0) for one in own(*ports).own], [])


def waited(exposure: Exposure, look: Sockets = NOBODY, timeout: float = 5.0) -> Exposed:
    if look is NOBODY and exposure.port is not None:
        number = exposure.port.number
        look = Sockets([Listener("ipv4", "127.0.0.1", number, 1), Listener("ipv6", "::1", number, 1)], [], [])
    with gevent.Timeout(timeout + 5):
        return exposure.wait(lambda: look, timeout)


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


# The endpoint at which ports are reported.


@pytest.fixture
def endpoint() -> Iterator[PortEndpoint]:
    def report(uid: str, port: int, key: str) -> None:
        if uid != "known":
            raise NotFound(f"job '{uid}' is not found")
        if port == 1:
            raise InvalidRequest("the job is not waiting for a port")

    endpoint = PortEndpoint(report)
    endpoint.open()
    yield endpoint
    endpoint.close()


def ask(endpoint: PortEndpoint, target: str) -> tuple[int, str]:
    port = int(endpoint.url("k").split(":")[2].split("/")[0])
    connection = gevent.socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
    answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    connection.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("?job_id=known&port=8000", 200, "OK"),
        ("?port=8000&job_id=known&more=x", 200, "OK"),
        ("?job_id=known&port=1", 400, "not waiting"),
        ("?job_id=other&port=8000", 400, "job 'other' is not found"),
        ("?port=8000", 400, "job_id is missing"),
        ("?job_id=known", 400, "port must be a number"),
        ("?job_id=known&port=0", 400, "port must be a number"),
        ("?job_id=known&port=65536", 400, "port must be a number"),
        ("?job_id=known&port=-8000", 400, "port must be a number"),
        ("?job_id=known&port=%D9%A1", 400, "port must be a number"),
        ("", 400, "job_id is missing"),
    ],
)
def test_ports_are_reported_by_http(endpoint: PortEndpoint, query: str, status: int, text: str) -> None:
    found = ask(endpoint, PATH + query)
    assert found[0] == status
    assert text in found[1]


def test_the_endpoint_keeps_its_port_if_it_can() -> None:
    first = PortEndpoint(lambda uid, port, key: None)
    port = first.open()
    second = PortEndpoint(lambda uid, port, key: None)
    try:
        assert second.open(port) != port
        first.close()
        second.close()
        assert second.open(port) == port
    finally:
        first.close()
        second.close()
