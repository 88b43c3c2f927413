"""Start of the keeper process: ``python -I -S …/keeper/__main__.py STATE_DIR SOCKET_FD keep|remove CGROUP move|stay``.

The agent starts it; it is of no use by hand. It is run as a file, isolated and without site packages, because that
halves the time and memory of a start. SOCKET_FD is the agent's connection. The other arguments say whether to keep or
remove sandboxes that a dead keeper left, give the setting ``jobs.cgroup``, and say whether agent and keeper may be
moved to a control group of their own.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Appended, not inserted at the front: no module of ours may hide one of the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from prouter.keeper.server import main

    main(
        state_dir=sys.argv[1],
        agent_fd=int(sys.argv[2]),
        remove_leftovers=sys.argv[3] == "remove",
        cgroup=sys.argv[4],
        move=sys.argv[5] == "move",
    )
