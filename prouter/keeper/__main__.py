"""Start of the keeper process: ``python -I -S …/keeper/__main__.py STATE_DIR SOCKET_FD keep|remove CGROUP move|stay``.

Run as a file, isolated and without site packages, because that starts in half the time and memory. The agent starts
it; it is of no use by hand. SOCKET_FD is the agent's connection; then what to do with sandboxes that a dead predecessor
left, the setting ``jobs.cgroup``, and whether agent and keeper may be moved to a control group of their own.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Appended, not put first: a module of ours must never stand in for one of the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from prouter.keeper.server import main

    main(
        state_dir=sys.argv[1],
        agent_fd=int(sys.argv[2]),
        remove_leftovers=sys.argv[3] == "remove",
        cgroup=sys.argv[4],
        move=sys.argv[5] == "move",
    )
