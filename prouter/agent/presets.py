"""What the usual kinds of servers need to run behind a path prefix, by the names their own documentation uses.

Every value may hold the templates of `prouter.agent.environment.fill`. The request's own variables win over them. Where
a server has no variable for something, the preset adds a command-line option, unless the request's arguments have it
already, or writes a configuration file into the sandbox.

Sources: jupyter_server's ``ServerApp`` options and JUPYTER_CONFIG_PATH; ``streamlit config show``; the ``Dash`` class
and its ``run``; gradio's guide to environment variables; ``bokeh serve --help`` and ``bokeh.settings``; uvicorn's
settings page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prouter.agent.scratch import SOCKET_NAME

__all__ = ["PRESETS", "Preset", "applying"]

Settings = Mapping[str, Mapping[str, str]]
"""Names and values, by when they apply: always (``""``), or with one port mode (``assign``, ``unix``) or path mode
(``strip``, ``keep``; ``auto`` counts as ``keep``)."""


@dataclass(frozen=True)
class Preset:
    """The defaults of one kind of server.

    Attributes:
        port, path, host, ready, timeout: defaults of the same keys of ``expose``.
        variables: for the environment.
        options: for the command line, put at its end.
        socket_name: bytes that sockets below TMPDIR need for their names.
        config: writes configuration files into a directory, given all tokens, and returns variables.
    """

    path: str
    port: str = "assign"
    host: str = "public"
    ready: str = "http"
    timeout: float = 60.0
    socket_name: int = SOCKET_NAME
    variables: Settings = field(default_factory=dict)
    options: Settings = field(default_factory=dict)
    config: Callable[[Path, Mapping[str, str]], dict[str, str]] | None = None

    @property
    def takes_sockets(self) -> bool:
        """Whether this kind of server can listen on a unix socket."""
        return "unix" in self.variables or "unix" in self.options or self.port == "unix"


def applying(settings: Settings, port: str, path: str) -> dict[str, str]:
    """The settings for one port mode and path mode."""
    modes = ("", port, "strip" if path == "strip" else "keep")
    return {name: value for mode in modes for name, value in settings.get(mode, {}).items()}


def _jupyter_config(directory: Path, tokens: Mapping[str, str]) -> dict[str, str]:
    """A configuration file, as Jupyter has no variables for most of this.

    On a unix socket, which only the agent's user can open, the server asks for no token of its own: who gets through
    the router may use it. A TCP port can be opened by every user of the machine, so there the token stays on; set
    JUPYTER_TOKEN to choose it, or read it from the job's stderr.
    """
    server: dict[str, object] = {
        "base_url": tokens["{base_url}"],
        "ip": "127.0.0.1",
        "port_retries": 0,
        "open_browser": False,
        "allow_remote_access": True,
        "allow_root": True,
        "trust_xheaders": True,
    }
    settings: dict[str, object] = {"ServerApp": server, "ExtensionApp": {"open_browser": False}}
    if "{port}" in tokens:
        server["port"] = int(tokens["{port}"])
    if "{socket}" in tokens:
        server["sock"] = tokens["{socket}"]
        settings["IdentityProvider"] = {"token": ""}
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / "jupyter_server_config.json").write_text(json.dumps(settings))
    return {"JUPYTER_CONFIG_PATH": str(directory)}


PRESETS: Mapping[str, Preset] = {
    "jupyterlab": Preset(path="keep", port="unix", config=_jupyter_config),
    "streamlit": Preset(
        path="keep",
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
        path="keep",  # HOST and PORT, which its app.run reads, every job with an assigned port gets.
        variables={
            "strip": {"DASH_REQUESTS_PATHNAME_PREFIX": "{base_url}", "DASH_ROUTES_PATHNAME_PREFIX": "/"},
            "keep": {"DASH_URL_BASE_PATHNAME": "{base_url}"},
        },
    ),
    "gradio": Preset(
        path="strip",
        variables={
            "": {
                "GRADIO_SERVER_NAME": "127.0.0.1",
                "GRADIO_ROOT_PATH": "{base_path}",
                "GRADIO_ANALYTICS_ENABLED": "False",
            },
            "assign": {"GRADIO_SERVER_PORT": "{port}"},
        },
    ),
    "bokeh": Preset(
        path="keep",
        variables={
            "": {"BOKEH_DEFAULT_SERVER_HOST": "127.0.0.1", "BOKEH_ALLOW_WS_ORIGIN": "*"},
            "assign": {"BOKEH_DEFAULT_SERVER_PORT": "{port}"},
        },
        options={"unix": {"--unix-socket": "{socket}"}, "keep": {"--prefix": "{base_url}"}},
    ),
    "uvicorn": Preset(
        path="strip",
        variables={
            "strip": {"UVICORN_ROOT_PATH": "{base_path}"},
            "assign": {"UVICORN_HOST": "127.0.0.1", "UVICORN_PORT": "{port}"},
            # Peers on a unix socket have no address; only the agent can reach it, so its forwarded headers are taken.
            "unix": {"UVICORN_UDS": "{socket}", "FORWARDED_ALLOW_IPS": "*"},
        },
    ),
}
"""By name; `prouter.requests.PresetName` lists the same names."""
