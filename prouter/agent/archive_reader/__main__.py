"""Start of the archive reader: ``python -I -S …/archive_reader/__main__.py pipe|file|check``.

Reads an archive from descriptor 0 (``file``: one that can be sought and written), writes `messages` to descriptor 1.
``check`` reads nothing and ends with status 0 if libarchive can be loaded. Only the agent starts this program.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Appended, not put first, so that no module of ours replaces one of the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))
    from prouter.agent.archive_reader.reader import main

    sys.exit(main(sys.argv[1]))
