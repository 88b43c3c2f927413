"""Lines of text from bytes that arrive in pieces."""

from __future__ import annotations

import codecs

__all__ = ["LineSplitter"]


class LineSplitter:
    """Splits UTF-8 at line feeds; bytes that are none become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that these bytes complete, without their ends."""
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        return lines

    def finish(self) -> list[str]:
        """Return what follows the last line feed, if anything."""
        rest = self._rest + self._decoder.decode(b"", final=True)
        self._rest = ""
        return [rest] if rest else []
