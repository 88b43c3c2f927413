"""A start's ``expose`` with its preset and all defaults filled in (docs/jobs.md)."""

from __future__ import annotations

from dataclasses import dataclass

from prouter.agent.expose.presets import PRESETS, Preset
from prouter.errors import InvalidRequest
from prouter.requests import START_TIMEOUT, Expose, StartRequest

__all__ = ["Plan", "resolve"]

_READY = {"notify": None, "assign": "tcp", "unix": "tcp", "detect": "http"}
"""Default of ``ready`` by port mode. A detected port must speak HTTP, because a job may open other ports."""


@dataclass(frozen=True)
class Plan:
    """A start's ``expose`` with all defaults filled in.

    Attributes:
        port: ``none`` (no server), ``notify``, ``assign``, ``detect`` or ``unix``.
        path: ``strip``, ``keep`` or ``auto``.
        host: ``public`` or ``local``.
        ready: ``tcp``, ``http``, a path, or None if a reported port is enough.
        timeout: seconds.
        expected: how many ports the job has to report.
        templates: whether templates are filled in; without ``expose`` they are not, as in the original.
    """

    port: str
    path: str = "strip"
    host: str = "public"
    ready: str | None = None
    timeout: float = START_TIMEOUT
    expected: int = 0
    preset: Preset | None = None
    templates: bool = False

    @property
    def awaited(self) -> bool:
        """Whether the start waits for a server."""
        return self.port != "none"


def resolve(request: StartRequest) -> Plan:
    """Return the plan of a start: values of the request, else of its preset, else defaults.

    Raises:
        InvalidRequest: the preset's kind of server cannot work that way.
    """
    option = request.expose
    expected = request.port_expected_count
    if option is None:
        return Plan(port="notify" if expected else "none", expected=expected)
    preset = PRESETS[option.preset] if option.preset else None
    port = option.port or (preset.port if preset else "notify")
    ready = option.ready or (preset.ready if preset else _READY[port])
    if preset is not None:
        _refuse(option, preset, port)
    if port == "notify" and not expected:
        port = "none"
    return Plan(
        port=port,
        path=option.path or (preset.path if preset else "strip"),
        host=option.host or (preset.host if preset else "public"),
        ready=ready,
        timeout=option.timeout or (preset.timeout if preset else START_TIMEOUT),
        expected=expected if port == "notify" else 0,
        preset=preset,
        templates=True,
    )


def _refuse(option: Expose, preset: Preset, port: str) -> None:
    """Raise `InvalidRequest` for a combination that is known not to work."""
    name = f"Invalid request: expose: the preset '{option.preset}'"
    why = preset.refused.get(option.path or preset.path)
    if why is not None:
        raise InvalidRequest(
            f"{name} does not work with path '{option.path}': {why}. Leave out path, which is then '{preset.path}'"
        )
    if port == "unix" and not preset.takes_sockets:
        raise InvalidRequest(f"{name} cannot listen on a unix socket: leave out port, which is then '{preset.port}'")
    if port == "notify" and not preset.reports:
        raise InvalidRequest(f"{name} does not report its port: leave out port, which is then '{preset.port}'")
