"""The start of the node's keeper, which needs few modules: the keeper starts while the rest is still being imported."""

from __future__ import annotations

import os
import socket
import sys

__all__ = ["begin"]


def begin(state_dir: str) -> tuple[int, socket.socket]:
    """Start a keeper, which first ends what an earlier one of this directory left; return its pid and a connection.

    It runs within the job's own control group of Slurm, so it makes none.
    """
    import prouter.keeper

    ours, its = socket.socketpair()
    with its:
        its.set_inheritable(True)
        script = os.path.join(os.path.dirname(str(prouter.keeper.__file__)), "__main__.py")
        words = [sys.executable, "-I", "-S", "-X", "utf8", script, state_dir, str(its.fileno()), "keep", "off", "stay"]
        pid = os.posix_spawn(sys.executable, words, {}, setsid=True)
    return pid, ours
