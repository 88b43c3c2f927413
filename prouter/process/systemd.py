"""What a service tells systemd about its state (sd_notify(3)), without a library."""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["notify", "watchdog_timeout"]

log = logging.getLogger("prouter.supervisor")


def notify(state: str) -> None:
    """Send `state`, for example ``READY=1``, if a service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("event=notify_failed state=%s error=%r", state, error)


def watchdog_timeout() -> float | None:
    """Seconds within which the service manager wants to hear ``WATCHDOG=1`` (``WatchdogSec=``, sd_watchdog_enabled(3)).

    None if it does not watch this process.
    """
    text, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not (text.isascii() and text.isdigit()) or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 1e6 or None
