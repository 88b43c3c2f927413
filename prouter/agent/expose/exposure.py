"""The wait for a job's HTTP server: the ``expose`` option of a start (docs/jobs.md).

`plan.resolve` turns the option into a complete `Plan`. An `Exposure` carries the plan out for one start: it chooses the
address if the agent may, takes the ports that the job reports, and blocks until the server is ready. In every mode,
only a port on which the job's own processes listen counts (`prouter.runners.ownership`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gevent
from gevent.event import Event

from prouter.agent.expose import probe
from prouter.agent.expose.plan import Plan, resolve
from prouter.agent.expose.ports import Port
from prouter.agent.expose.presets import applying, with_options
from prouter.agent.expose.probe import Connect
from prouter.agent.expose.templates import fill, fill_all
from prouter.agent.sandbox.socket_places import discard
from prouter.errors import InvalidRequest
from prouter.runners.ownership import addresses, all_addresses, loopback, refusal
from prouter.runners.sockets import Address, Listener, Sockets

__all__ = ["NO_REPORT", "Exposed", "Exposure", "NotReady", "Plan", "resolve"]

_FIRST_DELAY = 0.005
_LONGEST_DELAY = 0.2
_GROWTH = 1.5
_LOOK_DELAY = 0.02
"""Seconds between looks at the process tree; a look costs more than a probe."""
_PROBE_TIMEOUT = 10.0
"""Seconds a connection or response may take before the agent tries again."""
_TOGETHER = 64
"""Most detected ports that are tried."""
_GRACE = 0.1
"""Seconds that lower ports have to respond, too, once one has."""
_FRESH = 0.1
"""Seconds for which one look at the job's sockets serves all its reports, of which a job may send very many."""
_SHOWN = 5
"""Most sockets that an error text names for a job that listens elsewhere."""
_READY_STATUSES = frozenset({*range(200, 400), 401, 403})


NO_REPORT = (
    "a job without a server is started with port_expected_count: 0, a server that does not report its port with expose"
)
"""Advice for a job that reported no port."""


class NotReady(Exception):
    """The server did not become ready; the text says why and follows the job's name."""


@dataclass(frozen=True)
class Exposed:
    """Where a job's server was found, all its ports, and whether it sees paths with its prefix."""

    address: Address
    ports: list[int]
    path_mode: str


class Exposure:
    """The execution of one start's plan.

    Args:
        base_url: the job's public prefix, with a trailing slash.
        sandbox: the job's directory.
        connect: connects to the job's server; it refuses what is another program's.
        port: the port reserved for the job, with ``assign``.
        socket: the unix socket's path, with ``unix``.
        owner: uid of the user whose socket it must be; None for any user's.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        base_url: str,
        sandbox: Path,
        connect: Connect,
        port: Port | None = None,
        socket: Path | None = None,
        owner: int | None = None,
    ) -> None:
        self.plan = plan
        self.base_url = base_url
        self._connect = connect
        self.port = port
        self.socket = socket
        self._owner = owner
        # A directory for this socket alone, in which the job may have left anything.
        self._place = socket.parent if socket is not None and owner is not None and socket.parent != sandbox else None
        self.reported: list[int] = []
        self._seen: Sockets | None = None
        self._seen_at = 0.0
        self._died = Event()
        self._woken = Event()
        self.tokens = {"{base_url}": base_url, "{base_path}": base_url.rstrip("/"), "{sandbox}": str(sandbox)}
        if port is not None:
            self.tokens["{port}"] = str(port.number)
        if socket is not None:
            self.tokens["{socket}"] = str(socket)

    def detach(self) -> None:
        """Forget the port without releasing its reservation, because the server goes on using it."""
        if self.port is not None:
            self.port.release()

    def release(self) -> None:
        """Release the port and remove the socket. Idempotent."""
        self.detach()
        if self.socket is not None:
            with contextlib.suppress(OSError):  # It is gone, or the job has put a directory in its place.
                self.socket.unlink()
            if self._place is not None:
                gevent.get_hub().threadpool.spawn(_discard, self._place)

    def arguments(self, args: Sequence[str]) -> list[str]:
        """Return the job's arguments, with templates filled in and missing options of the preset added."""
        if not self.plan.templates:
            return list(args)
        preset = self.plan.preset
        result = args if preset is None else with_options(args, preset, self.plan.port, self.plan.path)
        return fill_all(result, self.tokens)

    def variables(self, config: Path, opened: Path | None = None) -> dict[str, str]:
        """Return PORT, HOST and the preset's variables for the job's environment.

        Args:
            config: directory for the preset's configuration files.
            opened: the same directory, if the agent reaches it in another way than the job.
        """
        if not self.plan.templates:
            return {}
        result = {}
        if self.plan.port in ("assign", "detect"):
            result["HOST"] = "127.0.0.1"
        if self.port is not None:
            result["PORT"] = str(self.port.number)
        if self.plan.preset is not None:
            given = applying(self.plan.preset.variables, self.plan.port, self.plan.path)
            result |= {name: fill(value, self.tokens) for name, value in given.items()}
            if self.plan.preset.config is not None:
                result |= self.plan.preset.config(config, self.tokens, opened or config)
        return result

    def report(self, port: int, look: Callable[[], Sockets]) -> None:
        """Accept a port that the job reports: its own, or nobody's yet, because some jobs report before they listen.

        Repeated reports, and reports after the last expected one, change nothing, as in the original.

        Args:
            look: where the job's processes listen now, and who else does.

        Raises:
            InvalidRequest: the job is not waiting for a port, or the port is another program's.
        """
        if not self.plan.expected or self._died.is_set():
            raise InvalidRequest("the job is not waiting for a port")
        if port in self.reported:
            return
        now = time.monotonic()
        if self._seen is None or now - self._seen_at > _FRESH:
            self._seen, self._seen_at = look(), now
        why = refusal(port, self._seen)
        if why is not None:
            raise InvalidRequest(why)
        self.accept(port)

    def accept(self, port: int) -> None:
        """Accept a reported port without checking who listens on it; `wait` checks that."""
        if port not in self.reported and len(self.reported) < self.plan.expected:
            self.reported.append(port)
        if len(self.reported) >= self.plan.expected:
            self._woken.set()

    @property
    def unreported(self) -> bool:
        """Return whether the job had to report ports and has reported none."""
        return bool(self.plan.expected) and not self.reported

    def died(self) -> None:
        """Note that the job's first process has ended, which ends a wait at once."""
        self._died.set()
        self._woken.set()

    def wait(self, look: Callable[[], Sockets], timeout: float) -> Exposed:
        """Block the greenlet until the server is ready.

        Args:
            look: where the job's processes listen now, and who else does.
            timeout: seconds.

        Raises:
            NotReady: the job ended, or the time is up.
        """
        deadline = time.monotonic() + timeout
        if self.plan.port == "notify":
            self._await_reports(look, timeout)
            self._await_listeners(look, deadline, timeout)
        if self.plan.port == "notify" and self.plan.ready is None:
            address = self._candidates(look)[0]
        else:
            address = self._await_answer(look, deadline, timeout)
        if self.plan.port == "detect":
            ports = sorted({address.port, *(found.port for found in look().own if found.family != "unix")})
        else:
            ports = [self.port.number] if self.port is not None else list(self.reported)
        return Exposed(address, ports, self._path_mode(address))

    def _await_reports(self, look: Callable[[], Sockets], timeout: float) -> None:
        self._woken.wait(timeout)
        if len(self.reported) >= self.plan.expected:
            return
        some = f"{len(self.reported)} of {self.plan.expected} expected ports reported"
        if self._died.is_set():
            raise NotReady(f"{some} before its process ended")
        hint = "" if self.reported else f"; {NO_REPORT}"
        raise NotReady(f"{some} within {timeout:g} s{self._elsewhere(look().own)}{hint}")

    def _await_listeners(self, look: Callable[[], Sockets], deadline: float, timeout: float) -> None:
        """Wait until the job itself listens on every port it has reported."""
        delay = _FIRST_DELAY
        sockets = self._seen or look()
        while True:
            missing = [port for port in self.reported if not addresses(port, sockets)]
            if not missing:
                self._seen = sockets
                return
            what = f"its processes listened on port {missing[0]}, which it reported"
            if self._died.wait(min(delay, max(0.0, deadline - time.monotonic()))):
                raise NotReady(f"its process ended before {what}")
            if time.monotonic() >= deadline:
                raise NotReady(f"not within {timeout:g} s: {what}{self._elsewhere(look().own)}")
            delay = min(delay * _GROWTH, _LONGEST_DELAY)
            sockets = look()

    def _await_answer(self, look: Callable[[], Sockets], deadline: float, timeout: float) -> Address:
        """Probe all candidates repeatedly, often at first, until one is ready; silent ones delay no others."""
        delay = _LOOK_DELAY if self.plan.port == "detect" else _FIRST_DELAY
        tried: list[Address] = []
        probes: dict[Address, gevent.Greenlet[..., bool]] = {}
        try:
            while True:
                candidates = list(dict.fromkeys(self._candidates(look)))[:_TOGETHER]
                tried = candidates or tried
                for address in set(probes).difference(candidates):
                    probes.pop(address).kill(block=False)
                patience = max(0.0, min(deadline - time.monotonic(), _PROBE_TIMEOUT))
                for address in candidates:
                    if address not in probes:
                        probes[address] = gevent.spawn(self._ready, address, patience)
                found = self._ready_one(candidates, probes, min(patience, delay))
                if found is not None:
                    return found
                for address in [address for address, one in probes.items() if one.ready()]:
                    del probes[address]
                self._died.wait(max(0.0, min(delay, deadline - time.monotonic())))
                delay = min(delay * _GROWTH, _LONGEST_DELAY)
                if self._died.is_set():
                    raise NotReady(f"its process ended before {self._expectation(tried)}")
                if time.monotonic() >= deadline:
                    raise NotReady(self._late(timeout, tried, look()))
        finally:
            gevent.killall(list(probes.values()), block=False)

    def _ready_one(
        self, candidates: list[Address], probes: dict[Address, gevent.Greenlet[..., bool]], patience: float
    ) -> Address | None:
        """Return the first candidate that is ready within `patience` seconds; those before it get another moment."""
        running = [probes[address] for address in candidates]
        for done in gevent.iwait(running, timeout=patience):
            if done.value:
                gevent.joinall(running[: running.index(done)], timeout=_GRACE)
                return next(address for address, one in zip(candidates, running, strict=True) if one.value)
        return None

    def _candidates(self, look: Callable[[], Sockets]) -> list[Address]:
        if self.socket is not None:
            return [Address(path=str(self.socket), owner=self._owner)]
        if self.plan.port == "detect":
            return all_addresses(look())
        if self.port is not None:
            return loopback(self.port.number)
        assert self._seen is not None
        return addresses(self.reported[0], self._seen)

    def _ready(self, address: Address, timeout: float) -> bool:
        ready = self.plan.ready or "tcp"
        if ready == "tcp":
            return probe.connects(self._connect, address, timeout)
        status = probe.http_status(self._connect, address, self._below_root("/", self.plan.path), timeout)
        if ready == "http" or status is None:
            return status is not None
        path = self._below_root(ready, self._path_mode(address))
        return probe.http_status(self._connect, address, path, timeout) in _READY_STATUSES

    def _below_root(self, path: str, path_mode: str) -> str:
        """Return the path to probe as the server sees it; while the path mode is unknown, any response will do."""
        return self.base_url + path[1:] if path_mode == "keep" else path

    def _path_mode(self, address: Address) -> str:
        """Return ``keep`` or ``strip``; with ``auto``, a server that answers 404 below the prefix, or nothing, does not
        know the prefix.
        """
        if self.plan.path != "auto":
            return self.plan.path
        status = probe.http_status(self._connect, address, self.base_url, _PROBE_TIMEOUT)
        return "strip" if status in (None, 404) else "keep"

    def _expectation(self, tried: list[Address]) -> str:
        what = {None: "a connection", "tcp": "a connection", "http": "an HTTP answer"}.get(
            self.plan.ready, f"a good response to GET {self.plan.ready}"
        )
        return f"{what} on {tried[0]}" if tried else "its processes listened on any port"

    def _late(self, timeout: float, tried: list[Address], sockets: Sockets) -> str:
        """Return what the agent waited for, for an error text."""
        text = f"not within {timeout:g} s: {self._expectation(tried)}{self._elsewhere(sockets.own)}"
        number = self.port.number if self.port is not None else 0
        if any(one.port == number for one in sockets.foreign) and not any(one.port == number for one in sockets.own):
            text += f"; another program listens on port {number}, and only the job's own processes count"
        if self.plan.port == "detect" and self.plan.ready == "http" and tried:
            text += '; a server that speaks no HTTP is found with {"ready": "tcp"}'
        return text

    def _elsewhere(self, found: list[Listener]) -> str:
        """Return where the job listens instead, for an error text."""
        if self.plan.port == "detect":
            return ""
        expected = self.port.number if self.port is not None else self.reported[0] if self.reported else 0
        socket = str(self.socket) if self.socket is not None else ""
        if any(one.host == socket if one.family == "unix" else one.port == expected for one in found):
            return ""
        places = [
            f"socket {one.host}" if one.family == "unix" else f"{one.host} port {one.port}" for one in found[:_SHOWN]
        ]
        return f"; its processes listen on {', '.join(places)}" if places else ""


def _discard(place: Path) -> None:
    with contextlib.suppress(OSError):  # The agent removes it at its next start.
        discard(place)
