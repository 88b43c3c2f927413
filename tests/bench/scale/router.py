"""A router under measurement: what its processes use, and its restart while its agents are linked."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from pathlib import Path

from prouter.keys.files import load_public
from tests.bench.load import LoadFailed
from tests.bench.processes import Usage, usage
from tests.bench.stack import Prouter

__all__ = ["ScaleRouter"]

_PATIENCE = 60.0


class ScaleRouter(Prouter):
    """A router whose agents link over CURVE, with two workers.

    Args:
        settings: of the router, beside the usual ones.
        job: whether to start a real agent with a job, for proxied requests.
    """

    def __init__(self, *settings: str, job: bool = True, encrypted: bool = True) -> None:
        super().__init__(2, job=job, link="curve" if encrypted else "tcp")
        self.encrypted = encrypted
        self._settings = settings

    def launch_router(self, *settings: str, control_port: int = 0, agents_port: int = 0) -> None:
        """Start it, with its settings."""
        super().launch_router(*self._settings, *settings, control_port=control_port, agents_port=agents_port)
        self._up = self._children[-1]

    @property
    def database(self) -> Path:
        """The broker's database."""
        return self.directory / "router" / "router.sqlite"

    @property
    def key(self) -> str:
        """The public key by which agents know it; empty without encryption."""
        return load_public(self.directory / "router" / "keys" / "router.key") if self.encrypted else ""

    def stop(self) -> float:
        """End the router as a service manager does; the seconds that took."""
        began = time.monotonic()
        self._up.send_signal(signal.SIGTERM)
        self._up.wait(_PATIENCE)
        return time.monotonic() - began

    def start_again(self) -> float:
        """Start it on the same ports with the same state; the seconds until it was ready."""
        began = time.monotonic()
        agents_port = int(self.agents_endpoint.rpartition(":")[2])
        self.launch_router(control_port=self.address[1], agents_port=agents_port)
        return time.monotonic() - began

    def used(self, role: str) -> Usage:
        """What the process with this role has used so far.

        Raises:
            LoadFailed: there is none.
        """
        for process in self.processes():
            if process.role == role and (found := usage(process)) is not None:
                return found
        raise LoadFailed(f"there is no process '{role}'")

    def share_of_core(self, role: str, seconds: float) -> float:
        """Per cent of one core that a process uses in the next seconds."""
        process = next(one for one in self.processes() if one.role == role)
        before, began = usage(process), time.monotonic()
        threading.Event().wait(seconds)
        after = usage(process)
        if before is None or after is None:
            raise LoadFailed(f"the process '{role}' ended")
        return 100 * (after.cpu - before.cpu) / (time.monotonic() - began)

    def metric(self, name: str) -> float:
        """A figure of ``/metrics``."""
        with contextlib.closing(self.connect()) as http:
            text = http.request("GET", "/metrics").body.decode()
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        if found is None:
            raise LoadFailed(f"/metrics does not have {name}")
        return float(found[1])

    def lag(self) -> float:
        """Longest iteration of the broker's event loop in the last ten to twenty seconds, milliseconds."""
        return 1000 * self.metric("prouter_broker_loop_lag_max_seconds")
