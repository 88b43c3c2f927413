"""Archives of sandboxes: `Unpacker` unpacks an upload while it arrives, `Packer` packs a download while it is sent."""

from __future__ import annotations

from prouter.agent.archives.extraction import ArchiveLimits, Unpacked
from prouter.agent.archives.packer import FORMATS, Packer, pack
from prouter.agent.archives.unpacker import Unpacker

__all__ = ["FORMATS", "ArchiveLimits", "Packer", "Unpacked", "Unpacker", "pack"]
