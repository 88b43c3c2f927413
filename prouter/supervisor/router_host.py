"""The supervisor's loop: keeps children running, handles signals, reports readiness, drains.

A drain has three steps. First the router answers that it is not ready, for ``control.drain_delay`` seconds, and still
serves. Then it accepts nothing new and finishes requests, within ``control.drain_timeout`` seconds. Then the broker
ends: requests need it to the last. A second TERM shortens the present step.
"""

from __future__ import annotations

import http.client
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import FrameType

from prouter.access.setup import check_access
from prouter.config import ConfigError, RouterConfig
from prouter.config.directories import claim_router
from prouter.process.cores import forbid_core_dumps
from prouter.process.systemd import notify, watchdog_timeout
from prouter.supervisor.child import Child, Command
from prouter.supervisor.control_sockets import ControlSockets
from prouter.supervisor.handover import Handover
from prouter.supervisor.watchdog import Watchdog

__all__ = ["Supervisor"]

log = logging.getLogger("prouter.supervisor")

_READY_WITHIN = 60.0
_PROBE_PAUSE = 0.05
_PROBE_TIMEOUT = 0.5
_PROOF_TIMEOUT = 3.0
"""Seconds that a request may take which proves that the router works; workers give the broker two of them."""
_PATIENCE = 10.0
"""Seconds that a process has to clean up, beyond those that it has for its work."""
_STOP = (signal.SIGTERM, signal.SIGINT)
_FORWARDED = (signal.SIGTTIN, signal.SIGTTOU)


class _Phase(Enum):
    STARTING = 1
    READY = 2
    CLOSING = 3
    """The router answers that it is not ready, and still takes requests."""
    FINISHING = 4
    """The router takes no new requests, and finishes those in progress."""


class Supervisor:
    """Runs a router until it is told to stop.

    Args:
        load: loads the configuration; called again on HUP.
        announce: called with the line to print when the router is ready.
        connection_debug: make children log everything about connections between the processes.
    """

    def __init__(
        self, load: Callable[[], RouterConfig], announce: Callable[[str], None], *, connection_debug: bool = False
    ) -> None:
        self._load = load
        self._announce = announce
        self._config = load()
        self._connection_debug = connection_debug
        self._signals: list[int] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._phase = _Phase.STARTING
        self._deadline = 0.0
        self._exit_status = 0
        self._agents = ""
        self._watchdog = Watchdog(watchdog_timeout(), self._works)
        self._status_read = self._status_write = -1
        self._status_text = b""

    def run(self) -> int:
        """Run the router until it is told to stop; return the exit status.

        Raises:
            ConfigError: the configuration is wrong or an address is in use.
        """
        forbid_core_dumps()
        self._config, locks = claim_router(self._config)
        try:
            check_access(self._config)  # in the directory that was claimed: another router may have the usual one
        except ConfigError:
            for lock in locks:
                lock.release()
            raise
        run_dir = self._config.state.run_dir or ""
        self._sockets = ControlSockets(self._config)
        self._handover = Handover(Path(run_dir), connection_debug=self._connection_debug)
        self._broker = Child("broker", signal.SIGTERM, run_dir, self._broker_command)
        self._gunicorn = Child("gunicorn", signal.SIGINT, run_dir, self._gunicorn_command)
        self._watch_signals()
        try:
            self._hand_over()
            self._deadline = time.monotonic() + _READY_WITHIN
            while self._iterate():
                self._sleep()
        finally:
            self._gunicorn.finish(_PATIENCE)
            self._broker.finish(_PATIENCE)
            self._sockets.close()
            self._handover.remove()
            for lock in locks:
                lock.release()
        log.info("event=stopped status=%d", self._exit_status)
        return self._exit_status

    # -- one iteration ------------------------------------------------------------------------------------------

    def _iterate(self) -> bool:
        """Do what is due; whether the router still runs."""
        for number in self._take_signals():
            self._handle(number)
        self._read_status()
        for child in (self._broker, self._gunicorn):
            self._keep(child)
        if not self._gunicorn.works and self._agents and self._answers():
            self._gunicorn.worked()
        if self._phase is _Phase.STARTING:
            self._start()
        elif self._phase is _Phase.CLOSING and time.monotonic() >= self._deadline:
            self._finish()
        elif self._phase is _Phase.FINISHING:
            self._watchdog.tell()
            return self._is_finishing()
        self._watchdog.tell()
        return True

    def _keep(self, child: Child) -> None:
        """Start `child` again when it has ended and it is time; give the router up if `child` fails for good."""
        over = child is self._gunicorn and self._phase is _Phase.FINISHING
        if child.ended(expected=over) and child.hopeless and self._phase is not _Phase.FINISHING:
            log.error("event=child_given_up child=%s", child.name)
            self._exit_status = 1
            self._finish()
        if not child.running and not child.hopeless and not over and time.monotonic() >= child.next_start:
            child.start()
            if child is self._broker:
                os.close(self._status_write)

    def _start(self) -> None:
        if self._gunicorn.works:
            self._phase = _Phase.READY
            self._announce(f"ready control={self._sockets.url} agents={self._agents}")
            notify("READY=1")
        elif time.monotonic() > self._deadline:
            log.error("event=not_ready seconds=%g", _READY_WITHIN)
            self._exit_status = 1
            self._finish()

    # -- the drain ----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Begin to drain: answer that the router is not ready."""
        delay = self._config.control.drain_delay if self._phase is _Phase.READY else 0.0
        log.info("event=draining delay=%g timeout=%g", delay, self._config.control.drain_timeout)
        self._phase = _Phase.CLOSING
        self._deadline = time.monotonic() + delay
        notify("STOPPING=1")
        if self._broker.works:
            self._broker.signal(signal.SIGUSR1)

    def _finish(self) -> None:
        """Accept nothing new, and let gunicorn finish what is in progress."""
        self._phase = _Phase.FINISHING
        self._deadline = time.monotonic() + self._config.control.drain_timeout + _PATIENCE
        self._sockets.close()
        self._gunicorn.signal(signal.SIGTERM)

    def _is_finishing(self) -> bool:
        if self._gunicorn.running and time.monotonic() > self._deadline:
            log.error("event=drain_failed")
            self._gunicorn.signal(signal.SIGKILL)
        return self._gunicorn.running

    # -- children -----------------------------------------------------------------------------------------------

    def _broker_command(self) -> Command:
        if self._status_read >= 0:
            os.close(self._status_read)
        self._status_read, self._status_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._status_text = b""
        port = self._agents.rpartition(":")[2]
        return self._handover.broker(self._status_write, port if port.isdigit() else None)

    def _gunicorn_command(self) -> Command:
        return self._handover.gunicorn(self._sockets.descriptors)

    def _read_status(self) -> None:
        """Read the broker's endpoint, which it writes once when it works."""
        if self._status_read < 0 or self._broker.works:
            return
        try:
            self._status_text += os.read(self._status_read, 4096)
        except BlockingIOError:
            return
        endpoint, end, _ = self._status_text.partition(b"\n")
        if end:
            self._agents = endpoint.decode()
            self._broker.worked()
            if self._phase is _Phase.CLOSING:
                self._broker.signal(signal.SIGUSR1)

    def _works(self) -> bool:
        """Whether the service manager need not restart the router. Start and drain have their own limits of time."""
        return self._phase is not _Phase.READY or self._answers(_PROOF_TIMEOUT)

    def _answers(self, timeout: float = _PROBE_TIMEOUT) -> bool:
        """Whether workers answer within so many seconds, and reach the broker."""
        if not self._gunicorn.running or self._phase is _Phase.FINISHING:
            return False
        connection = http.client.HTTPConnection(*self._sockets.reachable, timeout=timeout)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    # -- signals and sleep --------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        for number in (*_STOP, *_FORWARDED, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, note)

    def _take_signals(self) -> list[int]:
        taken, self._signals = self._signals, []
        return taken

    def _handle(self, number: int) -> None:
        if number in _STOP:
            if self._phase in (_Phase.STARTING, _Phase.READY):
                self._close()
            elif self._phase is _Phase.CLOSING:
                self._finish()
            else:
                self._gunicorn.signal(signal.SIGINT)
        elif number == signal.SIGHUP:
            self._reload()
        elif number in _FORWARDED:
            self._gunicorn.signal(number)

    def _reload(self) -> None:
        """Load the configuration again for the workers, and have gunicorn replace them one by one."""
        try:
            fresh = self._load()
            fresh = fresh.model_copy(update={"state": self._config.state})
            check_access(fresh)
        except ConfigError as error:
            log.error("event=reload_refused error=%s", error)
            return
        if _needs_restart(self._config) != _needs_restart(fresh):
            log.warning("event=reload_partial text='addresses and settings of the broker change with a restart only'")
        self._config = fresh
        self._hand_over()
        self._gunicorn.signal(signal.SIGHUP)

    def _hand_over(self) -> None:
        """Write the configuration for the children, with the actual port: they do not let users connect to it."""
        control = self._config.control.model_copy(update={"port": self._sockets.port})
        self._handover.write(self._config.model_copy(update={"control": control}))

    def _sleep(self) -> None:
        """Wait for a signal (a child's end is one), for the broker's endpoint, or until something is due."""
        sources = [self._wake_read]
        if self._status_read >= 0 and not self._broker.works and self._broker.running:
            sources.append(self._status_read)
        select.select(sources, [], [], self._pause())
        try:
            os.read(self._wake_read, 512)
        except BlockingIOError:
            return

    def _pause(self) -> float | None:
        """Seconds until something is due; None while only a signal can bring work."""
        now = time.monotonic()
        due = [child.next_start for child in (self._broker, self._gunicorn) if not child.running]
        if self._watchdog.due is not None:
            due.append(self._watchdog.due)
        if self._phase is not _Phase.READY:
            due.append(self._deadline)
        if self._gunicorn.running and not self._gunicorn.works and self._phase is not _Phase.FINISHING:
            due.append(now + _PROBE_PAUSE)
        return max(0.0, min(due) - now) if due else None


def _needs_restart(config: RouterConfig) -> tuple[object, ...]:
    """Return the settings that a reload does not change: addresses, and those of the broker."""
    control = config.control
    addresses = control.interface, control.port, control.unix, control.allow_targets
    return *addresses, config.server, config.client, config.jobs, config.identity
