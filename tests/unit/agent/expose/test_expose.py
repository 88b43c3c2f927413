"""Plans of how a server is found; the arguments, variables, ports and sockets that follow from them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prouter.agent.expose import ports
from prouter.agent.expose.exposure import Exposure
from prouter.agent.expose.ports import reserve, take
from prouter.agent.expose.presets import PRESETS
from prouter.agent.sandbox.socket_places import SocketPlaces
from prouter.errors import LimitReached, StartFailed
from tests.support.exposures import BASE, assigned, plan


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
