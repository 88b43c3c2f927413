"""What a run uploads before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["Local", "Uploads", "uploads_of"]

Local = str | os.PathLike[str]
"""A path on the client's machine."""
Uploads = Local | Mapping[str, Local] | None
"""A file, a directory whose contents go into the sandbox, or a map from paths in the sandbox to local ones."""


def uploads_of(upload: Uploads) -> list[tuple[str, str]]:
    """Return pairs of a path in the sandbox and a local one."""
    if upload is None:
        return []
    if isinstance(upload, Mapping):
        return [(remote, os.fspath(local)) for remote, local in upload.items()]
    return [(".", os.fspath(upload))]
