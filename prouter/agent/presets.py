"""What the usual kinds of servers need to run behind a path prefix, by the names their own documentation uses.

Every value may hold the templates of `prouter.agent.environment.fill`; the request's own variables win over them. Where
a server has no variable for something, the preset adds a command-line option, unless the request's arguments have it
already, or writes a configuration file into a directory beside the sandbox.

Sources: jupyter_server's ``ServerApp`` options and Jupyter's JUPYTER_CONFIG_PATH; streamlit's ``config show``; the
``Dash`` class and its ``run`` (HOST, PORT); gradio's guide to environment variables; ``bokeh serve --help`` and
``bokeh.settings``; uvicorn's settings page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PRESETS", "Preset"]

Variables = dict[str, str]


@dataclass(frozen=True)
class Preset:
    """The defaults of one kind of server.

    Attributes:
        port, path, ready, timeout: defaults of the same keys of ``expose``.
        variables: by port mode (``unix`` or ``tcp``) and path mode (``strip`` or ``keep``; ``auto`` counts as keep).
        options: command-line options with their values, added at the end unless the arguments hold them.
        config: writes configuration files into a private directory, given the filled-in tokens, and returns variables.
    """

    path: str
    port: str = "assign"
    ready: str = "http"
    timeout: float = 60.0
    variables: Callable[[str, str], Variables] = lambda port, path: {}
    options: Callable[[str, str], list[tuple[str, str]]] = lambda port, path: []
    config: Callable[[Path, Mapping[str, str]], Variables] | None = field(default=None)


def _jupyter_config(directory: Path, tokens: Mapping[str, str]) -> Variables:
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
    if "{socket}" in tokens:
        server["sock"] = tokens["{socket}"]
        settings["IdentityProvider"] = {"token": ""}
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / "jupyter_server_config.json").write_text(json.dumps(settings))
    return {"JUPYTER_CONFIG_PATH": str(directory)}


def _jupyter(port: str, path: str) -> Variables:
    return {} if port == "unix" else {"JUPYTER_PORT": "{port}", "JUPYTER_PORT_RETRIES": "0"}


def _streamlit(port: str, path: str) -> Variables:
    variables = {
        "STREAMLIT_SERVER_PORT": "{port}",
        "STREAMLIT_SERVER_ADDRESS": "127.0.0.1",
        "STREAMLIT_SERVER_HEADLESS": "true",
        "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    }
    if path != "strip":
        variables["STREAMLIT_SERVER_BASE_URL_PATH"] = "{base_url}"
    return variables


def _dash(port: str, path: str) -> Variables:
    if path == "strip":
        return {"DASH_REQUESTS_PATHNAME_PREFIX": "{base_url}", "DASH_ROUTES_PATHNAME_PREFIX": "/"}
    return {"DASH_URL_BASE_PATHNAME": "{base_url}"}


def _gradio(port: str, path: str) -> Variables:
    return {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": "{port}",
        "GRADIO_ROOT_PATH": "{base_url}",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }


def _bokeh(port: str, path: str) -> Variables:
    variables = {"BOKEH_ALLOW_WS_ORIGIN": "*"}
    if port != "unix":
        variables |= {"BOKEH_DEFAULT_SERVER_HOST": "127.0.0.1", "BOKEH_DEFAULT_SERVER_PORT": "{port}"}
    return variables


def _bokeh_options(port: str, path: str) -> list[tuple[str, str]]:
    options = [("--unix-socket", "{socket}")] if port == "unix" else []
    return options if path == "strip" else [*options, ("--prefix", "{base_url}")]


def _uvicorn(port: str, path: str) -> Variables:
    if port == "unix":
        # Peers on a unix socket have no address; only the agent can reach it, so its forwarded headers are taken.
        return {"UVICORN_UDS": "{socket}", "UVICORN_ROOT_PATH": "{base_url}", "FORWARDED_ALLOW_IPS": "*"}
    return {"UVICORN_HOST": "127.0.0.1", "UVICORN_PORT": "{port}", "UVICORN_ROOT_PATH": "{base_url}"}


PRESETS: Mapping[str, Preset] = {
    "jupyterlab": Preset(path="keep", port="unix", variables=_jupyter, config=_jupyter_config),
    "streamlit": Preset(path="keep", variables=_streamlit),
    "dash": Preset(path="keep", variables=_dash),
    "gradio": Preset(path="strip", variables=_gradio),
    "bokeh": Preset(path="keep", variables=_bokeh, options=_bokeh_options),
    "uvicorn": Preset(path="strip", variables=_uvicorn),
}
"""By name; `prouter.requests.PresetName` lists the same names."""
