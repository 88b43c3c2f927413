"""One router host under one parent: starts broker and gunicorn, restarts what dies, drains on request.

The supervisor itself serves nothing. It holds the control endpoint's listening sockets, so that no client is refused
while gunicorn restarts, and remembers the agents' port, so that a restarted broker is found where it was. Signals: TERM
and INT drain (a second one hurries), HUP reloads configuration and workers, TTIN and TTOU change the number of workers.
"""

from __future__ import annotations

import ctypes
import http.client
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from prouter.config import ConfigError, RouterConfig, check_exposure
from prouter.control_sockets import listen
from prouter.directories import claim_router

__all__ = ["EXIT_CONFIG", "Supervisor"]

log = logging.getLogger("prouter.supervisor")

EXIT_CONFIG = 2
"""Exit status of a process whose configuration is wrong; restarting it would not help."""
_PR_SET_PDEATHSIG = 1
_FIRST_DELAY, _MAX_DELAY = 0.1, 5.0
_STABLE_AFTER = 10.0
"""Seconds a child has to live for its next death to count as the first."""
_MAX_DEATHS = 10
"""Deaths in a row after which a child is given up."""
_READY_WITHIN = 60.0


class _Child:
    """One supervised process and its restarts."""

    def __init__(
        self, name: str, command: Callable[[], tuple[list[str], dict[str, str], list[int]]], death: int
    ) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.next_start = 0.0
        self.deaths = 0
        self._command = command
        self._death_signal = death
        self._started = 0.0

    def start(self) -> None:
        argv, environment, descriptors = self._command()
        libc = ctypes.CDLL(None)
        signal_on_death = self._death_signal

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal_on_death)

        self.process = subprocess.Popen(
            argv, env=environment, pass_fds=descriptors, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL
        )
        self._started = time.monotonic()
        log.info("event=child_started child=%s pid=%d", self.name, self.process.pid)

    def died(self) -> int | None:
        """The exit status if it has just died, and when to start it again; None while it runs."""
        if self.process is None:
            return None
        status = self.process.poll()
        if status is None:
            return None
        now = time.monotonic()
        self.process = None
        self.deaths = self.deaths + 1 if now - self._started < _STABLE_AFTER else 1
        self.next_start = now + min(_FIRST_DELAY * 2 ** (self.deaths - 1), _MAX_DELAY)
        return status

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, deadline: float) -> bool:
        """Whether it is gone by `deadline`."""
        if self.process is None:
            return True
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True


class Supervisor:
    """See the module's docstring.

    Args:
        load: makes the configuration; called again on HUP.
        announce: gets the line that says the router is ready.
    """

    def __init__(self, load: Callable[[], RouterConfig], announce: Callable[[str], None]) -> None:
        self._load = load
        self._announce = announce
        self._signals: list[int] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._agents = ""
        self._status_read = -1
        self._status_text = b""

    def run(self) -> int:
        """Run the router until it is told to stop; the exit status.

        Raises:
            ConfigError: the configuration is wrong or an address is in use.
        """
        config = self._load()
        check_exposure(config)
        config, lock = claim_router(config)
        self._config = config
        self._sockets = listen(config)
        self._handle_signals()
        try:
            return self._supervise()
        finally:
            for sock in self._sockets:
                sock.close()
            if config.control.unix:
                Path(config.control.unix).unlink(missing_ok=True)
            self._config_file.unlink(missing_ok=True)
            lock.release()

    # -- children -----------------------------------------------------------------------------------------------

    @property
    def _config_file(self) -> Path:
        return Path(self._config.state.run_dir or "") / "router.yaml"

    def _write_config(self) -> None:
        file = self._config_file
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as stream:
            yaml.safe_dump(self._config.model_dump(mode="json"), stream)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROUTER_", "GUNICORN_"))}
        kept["PROUTER_CONFIG"] = str(self._config_file)
        return kept

    def _broker_command(self) -> tuple[list[str], dict[str, str], list[int]]:
        if self._status_read >= 0:
            os.close(self._status_read)
        self._status_read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._status_text = b""
        argv = [sys.executable, "-m", "prouter", "broker", "--status-fd", str(write)]
        if self._agents:
            argv += ["--bind-port", self._agents.rpartition(":")[2]]
        self._status_write = write
        return argv, self._environment(), [write]

    def _gunicorn_command(self) -> tuple[list[str], dict[str, str], list[int]]:
        descriptors = [sock.fileno() for sock in self._sockets]
        environment = self._environment()
        environment["PROUTER_LISTEN_FDS"] = ",".join(map(str, descriptors))
        argv = [sys.executable, "-m", "gunicorn", "-c", "python:prouter.api.gunicorn_conf"]
        return argv, environment, descriptors

    def _start(self, child: _Child) -> None:
        child.start()
        if child is self._broker:
            os.close(self._status_write)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _supervise(self) -> int:
        self._write_config()
        self._broker = _Child("broker", self._broker_command, signal.SIGTERM)
        self._gunicorn = _Child("gunicorn", self._gunicorn_command, signal.SIGINT)
        children = (self._broker, self._gunicorn)
        for child in children:
            self._start(child)
        ready = False
        give_up = time.monotonic() + _READY_WITHIN
        while True:
            for number in self._take_signals():
                if number in (signal.SIGTERM, signal.SIGINT):
                    return self._drain()
                self._forward(number)
            for child in children:
                outcome = self._check(child)
                if outcome is not None:
                    return outcome
            if not ready:
                ready = self._is_ready()
                if ready:
                    self._say_ready()
                elif time.monotonic() > give_up:
                    log.error("event=not_ready seconds=%g", _READY_WITHIN)
                    self._drain()
                    return 1
            self._sleep(0.05 if not ready else self._next_start_in())

    def _check(self, child: _Child) -> int | None:
        """Restart a child that died; the supervisor's exit status when it has to end instead."""
        status = child.died()
        if status is not None:
            if child is self._broker and status == 0:
                log.info("event=shutdown_requested")
                return self._drain()
            if status == EXIT_CONFIG or child.deaths >= _MAX_DEATHS:
                log.error("event=child_given_up child=%s status=%d", child.name, status)
                self._drain()
                return 1
            log.warning("event=child_died child=%s status=%d deaths=%d", child.name, status, child.deaths)
        if child.process is None and time.monotonic() >= child.next_start:
            self._start(child)
        return None

    def _next_start_in(self) -> float | None:
        waiting = [child.next_start for child in (self._broker, self._gunicorn) if child.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _forward(self, number: int) -> None:
        if number == signal.SIGHUP:
            try:
                fresh = self._load()
                check_exposure(fresh)
            except ConfigError as error:
                log.error("event=reload_refused error=%s", error)
                return
            self._config = fresh.model_copy(update={"state": self._config.state})
            self._write_config()
        self._gunicorn.signal(number)

    def _drain(self) -> int:
        """Stop taking work, finish what is in progress, end the children."""
        _notify("STOPPING=1")
        self._broker.signal(signal.SIGUSR1)
        self._gunicorn.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._config.control.drain_timeout + 10
        while not self._gunicorn.wait(time.monotonic() + 0.1):
            hurried = any(number in (signal.SIGTERM, signal.SIGINT) for number in self._take_signals())
            if hurried:
                self._gunicorn.signal(signal.SIGINT)
            if time.monotonic() > deadline:
                self._gunicorn.signal(signal.SIGKILL)
        self._broker.signal(signal.SIGTERM)
        if not self._broker.wait(time.monotonic() + 10):
            self._broker.signal(signal.SIGKILL)
            self._broker.wait(time.monotonic() + 5)
        log.info("event=stopped")
        return 0

    # -- readiness ----------------------------------------------------------------------------------------------

    def _is_ready(self) -> bool:
        if self._status_read >= 0 and not self._agents:
            try:
                self._status_text += os.read(self._status_read, 4096)
            except BlockingIOError:
                return False
            if b"\n" not in self._status_text:
                return False
            self._agents = self._status_text.partition(b"\n")[0].decode()
        return bool(self._agents) and self._answers()

    def _answers(self) -> bool:
        host, port = self._sockets[0].getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _say_ready(self) -> None:
        host, port = self._sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self._announce(f"ready control=http://{shown}:{port} agents={self._agents}")
        _notify("READY=1")

    # -- signals ------------------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
        for number in wanted:
            signal.signal(number, lambda got, _frame: self._signals.append(got))
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _take_signals(self) -> Sequence[int]:
        taken, self._signals = self._signals, []
        return taken

    def _sleep(self, seconds: float | None) -> None:
        """Wait for a signal (a dead child is one) for at most `seconds`."""
        select.select([self._wake_read], [], [], seconds)
        try:
            os.read(self._wake_read, 512)
        except BlockingIOError:
            return


def _notify(state: str) -> None:
    """Tell systemd, if it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("event=notify_failed error=%r", error)
