"""Presets: variables, options and files that common servers need to run behind a path prefix.

Values may contain the templates of `templates.fill`. The request's own variables override them. Where a server has no
variable, the preset adds a command-line option, unless the request's arguments have it already, or writes a
configuration file into the sandbox.

Sources: jupyter_server's ``ServerApp`` options and JUPYTER_CONFIG_PATH; ``streamlit config show``; the ``Dash`` class
and its ``run``; gradio's guide to environment variables; ``bokeh serve --help`` and ``bokeh.settings``; uvicorn's
settings page; ``--help`` of panel, voila, marimo, mlflow, vite, code-server, datasette and tensorboard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prouter.agent.sandbox.scratch import SOCKET_NAME

__all__ = ["PRESETS", "Preset", "applying", "with_options"]

Settings = Mapping[str, Mapping[str, str]]
"""Names and values by when they apply: always (``""``), or with one port mode (``assign``, ``unix``) or path mode
(``strip``, ``keep``; ``auto`` counts as ``keep``)."""

_ABSOLUTE = "its pages use absolute paths, so it must see its prefix"
_ROOT = "it cannot serve below a prefix"


@dataclass(frozen=True)
class Preset:
    """The defaults of one kind of server.

    Attributes:
        port, path, host, ready, timeout: defaults of the same keys of ``expose``.
        refused: path modes in which it cannot work, with the reason.
        reports: whether such a server may be a program of the user's, which can report its port.
        variables: environment variables.
        options: command-line options: ``--name`` with its value as the next word, ``--name=`` with it in the same word,
            ``--name`` alone if the value is empty.
        ends: words that end the options of its command line; the preset's options go before them.
        socket_name: bytes that the names of its sockets below TMPDIR need.
        config: writes configuration files into a directory, and returns variables. It is given the directory as the job
            sees it, all template values, and the directory as the agent reaches it.
    """

    path: str
    port: str = "assign"
    host: str = "public"
    ready: str = "http"
    timeout: float = 60.0
    refused: Mapping[str, str] = field(default_factory=dict)
    reports: bool = False
    ends: frozenset[str] = frozenset({"--"})
    socket_name: int = SOCKET_NAME
    variables: Settings = field(default_factory=dict)
    options: Settings = field(default_factory=dict)
    config: Callable[[Path, Mapping[str, str], Path], dict[str, str]] | None = None

    @property
    def takes_sockets(self) -> bool:
        """Whether this kind of server can listen on a unix socket."""
        return "unix" in self.variables or "unix" in self.options or self.port == "unix"


def applying(settings: Settings, port: str, path: str) -> dict[str, str]:
    """Return the settings for one port mode and path mode."""
    modes = ("", port, "strip" if path == "strip" else "keep")
    return {name: value for mode in modes for name, value in settings.get(mode, {}).items()}


def with_options(args: Sequence[str], preset: Preset, port: str, path: str) -> list[str]:
    """Return the arguments with the preset's missing options added."""
    end = next((at for at, word in enumerate(args) if word in preset.ends), len(args))
    added: list[str] = []
    for option, value in applying(preset.options, port, path).items():
        words = option.removesuffix("=").split()
        if not _has(args[:end], words):
            added += [option + value] if option.endswith("=") else [*words, value] if value else words
    return [*args[:end], *added, *args[end:]]


def _has(args: Sequence[str], words: list[str]) -> bool:
    """Return whether these words follow one another in the arguments, the last perhaps joined to its value."""
    for at in range(len(args) - len(words) + 1):
        *first, last = args[at : at + len(words)]
        if first == words[:-1] and (last == words[-1] or last.startswith(f"{words[-1]}=")):
            return True
    return False


def _jupyter_config(directory: Path, tokens: Mapping[str, str], opened: Path) -> dict[str, str]:
    """Write a configuration file, because Jupyter has no variables for most of this.

    Only the agent's user can open a unix socket, so the server needs no token there: the router decides who gets in.
    Every user of the machine can connect to a TCP port, so there the token stays on; set JUPYTER_TOKEN to choose it, or
    read it from the job's stderr.
    """
    server: dict[str, object] = {
        "base_url": tokens["{base_url}"],
        "ip": "127.0.0.1",
        "open_browser": False,
        "allow_remote_access": True,
        "allow_root": True,
        "trust_xheaders": True,
    }
    settings: dict[str, object] = {"ServerApp": server, "ExtensionApp": {"open_browser": False}}
    if "{port}" in tokens:
        server |= {"port": int(tokens["{port}"]), "port_retries": 0}
    if "{socket}" in tokens:
        server["sock"] = tokens["{socket}"]
        settings["IdentityProvider"] = {"token": ""}
    opened.mkdir(mode=0o700, exist_ok=True)
    (opened / "jupyter_server_config.json").write_text(json.dumps(settings))
    return {"JUPYTER_CONFIG_PATH": str(directory)}


_JUPYTER = Preset(path="keep", port="unix", refused={"strip": _ABSOLUTE}, config=_jupyter_config)

_BOKEH = Preset(
    path="keep",
    reports=True,
    variables={
        "": {"BOKEH_DEFAULT_SERVER_HOST": "127.0.0.1", "BOKEH_ALLOW_WS_ORIGIN": "*"},
        "assign": {"BOKEH_DEFAULT_SERVER_PORT": "{port}"},
    },
    options={"unix": {"--unix-socket": "{socket}"}, "keep": {"--prefix": "{base_url}"}},
    ends=frozenset({"--args"}),
)

PRESETS: Mapping[str, Preset] = {
    "jupyterlab": _JUPYTER,
    "notebook": _JUPYTER,
    "streamlit": Preset(
        path="keep",
        reports=True,
        variables={
            "": {
                "STREAMLIT_SERVER_ADDRESS": "127.0.0.1",
                "STREAMLIT_SERVER_HEADLESS": "true",
                "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
            },
            "assign": {"STREAMLIT_SERVER_PORT": "{port}"},
            "keep": {"STREAMLIT_SERVER_BASE_URL_PATH": "{base_url}"},
        },
    ),
    "dash": Preset(
        path="keep",  # Its app.run reads HOST and PORT, which every job with an assigned port gets.
        reports=True,
        variables={
            "strip": {"DASH_REQUESTS_PATHNAME_PREFIX": "{base_url}", "DASH_ROUTES_PATHNAME_PREFIX": "/"},
            "keep": {"DASH_URL_BASE_PATHNAME": "{base_url}"},
        },
    ),
    "gradio": Preset(
        path="strip",
        reports=True,
        variables={
            "": {
                "GRADIO_SERVER_NAME": "127.0.0.1",
                "GRADIO_ROOT_PATH": "{base_path}",
                "GRADIO_ANALYTICS_ENABLED": "False",
            },
            "assign": {"GRADIO_SERVER_PORT": "{port}"},
        },
    ),
    "bokeh": replace(_BOKEH, refused={"strip": _ABSOLUTE}),
    "panel": _BOKEH,
    "uvicorn": Preset(
        path="strip",
        reports=True,
        variables={
            "strip": {"UVICORN_ROOT_PATH": "{base_path}"},
            "assign": {"UVICORN_HOST": "127.0.0.1", "UVICORN_PORT": "{port}"},
            # Peers on a unix socket have no address; only the agent reaches it, so its forwarded headers are trusted.
            "unix": {"UVICORN_UDS": "{socket}", "FORWARDED_ALLOW_IPS": "*"},
        },
    ),
    "voila": Preset(
        path="keep",
        refused={"strip": _ABSOLUTE},
        options={
            "": {"--Voila.ip=": "127.0.0.1", "--Voila.base_url=": "{base_url}", "--no-browser": ""},
            "assign": {"--port=": "{port}"},
        },
    ),
    "marimo": Preset(
        path="strip",
        options={
            "": {"--headless": "", "--host": "127.0.0.1"},
            "assign": {"--port": "{port}"},
            "keep": {"--base-url": "{base_path}"},
        },
    ),
    "mlflow": Preset(
        path="strip",
        host="local",  # It answers only to host names that it is told.
        timeout=180.0,
        options={
            "": {"--host": "127.0.0.1"},
            "assign": {"--port": "{port}"},
            "keep": {"--static-prefix": "{base_path}"},
        },
    ),
    "vite": Preset(
        path="keep",
        host="local",  # Host names as with MLflow.
        refused={"strip": _ABSOLUTE},
        options={
            "": {"--host": "127.0.0.1", "--base": "{base_url}"},
            "assign": {"--port": "{port}", "--strictPort": ""},
        },
        ends=frozenset(),  # Options after `npm run dev --` are vite's.
    ),
    "code-server": Preset(
        path="strip",
        port="unix",
        refused={"keep": _ROOT},
        socket_name=54,  # the length of vscode-ipc-UUID.sock
        options={
            # In HOME it would reopen what another job had open.
            "": {
                "--disable-telemetry": "",
                "--disable-update-check": "",
                "--user-data-dir": "{sandbox}/.code-server",
            },
            "assign": {"--bind-addr": "127.0.0.1:{port}"},
            # As with Jupyter: only the agent's user can open the socket, so it needs no password.
            "unix": {"--socket": "{socket}", "--auth": "none"},
            "strip": {"--abs-proxy-base-path": "{base_path}"},
        },
    ),
    "datasette": Preset(
        path="keep",
        options={
            "": {"--setting base_url": "{base_url}"},
            "assign": {"--host": "127.0.0.1", "--port": "{port}"},
            "unix": {"--uds": "{socket}"},
        },
    ),
    "tensorboard": Preset(
        path="strip",
        options={
            "": {"--host": "127.0.0.1"},
            "assign": {"--port": "{port}"},
            "keep": {"--path_prefix": "{base_path}"},
        },
    ),
}
"""All presets by name; `prouter.requests.PresetName` lists the same names."""
