"""Start of the program on the node: ``python -I -S …/node/__main__.py JOB_DIRECTORY``. The batch script runs it."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    path = os.path.abspath(__file__)
    for _ in range(5):
        path = os.path.dirname(path)
    # Appended, not inserted at the front: no module of ours may hide one of the standard library.
    sys.path.append(path)
    from prouter.runners.slurm.node.program import main

    sys.exit(main(sys.argv[1]))
