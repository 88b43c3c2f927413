"""The supervisor of a router host: starts broker and gunicorn, restarts what dies, drains on request.

The supervisor itself serves nothing. It holds the control endpoint's listening sockets, so that no client is refused
while gunicorn restarts. It remembers the agents' port, so that agents find a restarted broker where it was. Signals:
TERM and INT drain (a second one shortens the drain), HUP reloads configuration and workers, TTIN and TTOU change the
number of workers.
"""

from __future__ import annotations

from prouter.supervisor.child import EXIT_CONFIG
from prouter.supervisor.router_host import Supervisor

__all__ = ["EXIT_CONFIG", "Supervisor"]
