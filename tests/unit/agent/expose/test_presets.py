"""Presets: settings for each kind of server, and refusals of combinations that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from prouter.agent.expose.exposure import Exposure, Plan, resolve
from prouter.agent.expose.ports import Port
from prouter.agent.expose.presets import PRESETS
from prouter.errors import InvalidRequest
from prouter.requests import PresetName, StartRequest, validated
from prouter.runners.local.servers import connected

BASE = "/jobs/c/j/http/"
PATH = "/jobs/c/j/http"
SOCKET = "/sandbox/s"
LOCAL = ["--host", "127.0.0.1"]
CODE = ["--disable-telemetry", "--disable-update-check", "--user-data-dir", "/sandbox/.code-server"]


def plan(**expose: Any) -> Plan:
    return resolve(validated(StartRequest, {"args": ["x"], "env": {}, "expose": expose}))


@pytest.fixture
def arguments() -> Callable[..., list[str]]:
    """What a preset makes of a command line."""

    def make(*args: str, **expose: Any) -> list[str]:
        resolved = plan(**expose)
        port = Port(8000, None) if resolved.port == "assign" else None
        socket = Path(SOCKET) if resolved.port == "unix" else None
        place = Path("/sandbox")
        made = Exposure(resolved, base_url=BASE, sandbox=place, connect=connected, port=port, socket=socket)
        return made.arguments(args)

    return make


def test_every_preset_that_can_be_asked_for_is_there() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)


CASES: list[tuple[dict[str, str], list[str], list[str]]] = [
    ({"preset": "bokeh"}, ["bokeh", "serve", "a.py"], ["--prefix", BASE]),
    ({"preset": "bokeh", "port": "unix"}, ["bokeh", "serve", "a.py"], ["--unix-socket", SOCKET, "--prefix", BASE]),
    ({"preset": "panel"}, ["panel", "serve", "a.py"], ["--prefix", BASE]),
    ({"preset": "panel", "path": "strip"}, ["panel", "serve", "a.py"], []),
    (
        {"preset": "voila"},
        ["voila", "nb.ipynb"],
        ["--Voila.ip=127.0.0.1", f"--Voila.base_url={BASE}", "--no-browser", "--port=8000"],
    ),
    ({"preset": "marimo"}, ["marimo", "run", "a.py"], ["--headless", *LOCAL, "--port", "8000"]),
    (
        {"preset": "marimo", "path": "keep"},
        ["marimo", "edit", "a.py"],
        ["--headless", *LOCAL, "--port", "8000", "--base-url", PATH],
    ),
    ({"preset": "mlflow"}, ["mlflow", "ui"], [*LOCAL, "--port", "8000"]),
    ({"preset": "mlflow", "path": "keep"}, ["mlflow", "ui"], [*LOCAL, "--port", "8000", "--static-prefix", PATH]),
    ({"preset": "vite"}, ["npx", "vite"], [*LOCAL, "--base", BASE, "--port", "8000", "--strictPort"]),
    (
        {"preset": "code-server"},
        ["code-server"],
        [*CODE, "--socket", SOCKET, "--auth", "none", "--abs-proxy-base-path", PATH],
    ),
    (
        {"preset": "code-server", "port": "assign"},
        ["code-server", "--abs-proxy-base-path=/x"],
        [*CODE, "--bind-addr", "127.0.0.1:8000"],
    ),
    ({"preset": "datasette"}, ["datasette", "x.db"], ["--setting", "base_url", BASE, *LOCAL, "--port", "8000"]),
    ({"preset": "datasette", "port": "unix"}, ["datasette", "x.db"], ["--setting", "base_url", BASE, "--uds", SOCKET]),
    ({"preset": "tensorboard"}, ["tensorboard", "--logdir", "l"], [*LOCAL, "--port", "8000"]),
    (
        {"preset": "tensorboard", "path": "keep"},
        ["tensorboard", "--logdir", "l"],
        [*LOCAL, "--port", "8000", "--path_prefix", PATH],
    ),
    ({"preset": "jupyterlab"}, ["jupyter", "lab"], []),
    ({"preset": "notebook"}, ["jupyter", "notebook"], []),
    ({"preset": "gradio"}, ["python", "app.py"], []),
]


@pytest.mark.parametrize(("expose", "given", "added"), CASES)
def test_options_are_added_to_the_command_line(
    arguments: Callable[..., list[str]], expose: dict[str, str], given: list[str], added: list[str]
) -> None:
    assert arguments(*given, **expose) == given + added


@pytest.mark.parametrize(
    ("preset", "given", "expected"),
    [
        ("bokeh", ["bokeh", "--prefix", "/x"], ["bokeh", "--prefix", "/x"]),
        ("bokeh", ["bokeh", "--prefix={base_url}"], ["bokeh", f"--prefix={BASE}"]),
        ("bokeh", ["bokeh", "a.py", "--args", "--n", "1"], ["bokeh", "a.py", "--prefix", BASE, "--args", "--n", "1"]),
        ("panel", ["panel", "a.py", "--args"], ["panel", "a.py", "--prefix", BASE, "--args"]),
        ("mlflow", ["mlflow", "--host=::1", "--port", "7"], ["mlflow", "--host=::1", "--port", "7"]),
        (
            "marimo",
            ["marimo", "run", "a.py", "--headless", "--", "--port", "7"],
            ["marimo", "run", "a.py", "--headless", *LOCAL, "--port", "8000", "--", "--port", "7"],
        ),
        (
            "vite",
            ["npm", "run", "dev", "--", "--base=/x/"],
            ["npm", "run", "dev", "--", "--base=/x/", *LOCAL, "--port", "8000", "--strictPort"],
        ),
        (
            "datasette",
            ["datasette", "--setting", "sql_time_limit_ms", "1"],
            [
                "datasette",
                "--setting",
                "sql_time_limit_ms",
                "1",
                "--setting",
                "base_url",
                BASE,
                *LOCAL,
                "--port",
                "8000",
            ],
        ),
        (
            "datasette",
            ["datasette", "--setting", "base_url", "/x/", "--host", "h", "--port=1"],
            ["datasette", "--setting", "base_url", "/x/", "--host", "h", "--port=1"],
        ),
    ],
)
def test_what_the_command_line_says_itself_stays(
    arguments: Callable[..., list[str]], preset: str, given: list[str], expected: list[str]
) -> None:
    """Up to the word that ends the options: what follows it is the application's own."""
    assert arguments(*given, preset=preset) == expected


@pytest.mark.parametrize(
    ("expose", "text"),
    [
        ({"preset": "jupyterlab", "path": "strip"}, "'jupyterlab' does not work with path 'strip'.* then 'keep'"),
        ({"preset": "notebook", "path": "strip"}, "'notebook' does not work with path 'strip'.* then 'keep'"),
        ({"preset": "bokeh", "path": "strip"}, "'bokeh' does not work with path 'strip'.* then 'keep'"),
        ({"preset": "voila", "path": "strip"}, "'voila' does not work with path 'strip'.* then 'keep'"),
        ({"preset": "vite", "path": "strip"}, "'vite' does not work with path 'strip'.* then 'keep'"),
        ({"preset": "code-server", "path": "keep"}, "'code-server' does not work with path 'keep'.* then 'strip'"),
        *(
            ({"preset": name, "port": "unix"}, f"'{name}' cannot listen on a unix socket.* then 'assign'")
            for name in ("streamlit", "dash", "gradio", "voila", "marimo", "mlflow", "vite", "tensorboard")
        ),
        *(
            ({"preset": name, "port": "notify"}, f"'{name}' does not report its port.* then '{PRESETS[name].port}'")
            for name, preset in PRESETS.items()
            if not preset.reports
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(expose: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^Invalid request: expose: the preset {text}$"):
        plan(**expose)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_works_with_its_own_defaults_and_with_auto(name: str) -> None:
    preset = PRESETS[name]
    found = plan(preset=name)
    assert (found.port, found.path, found.host, found.ready) == (preset.port, preset.path, preset.host, preset.ready)
    assert plan(preset=name, path="auto").path == "auto"
    assert plan(preset=name, host="public").host == "public"


def test_servers_that_answer_to_no_other_host_are_asked_for_their_own() -> None:
    assert {name for name, preset in PRESETS.items() if preset.host == "local"} == {"mlflow", "vite"}
