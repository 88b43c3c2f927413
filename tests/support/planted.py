"""Secrets that a test plants wherever one may be, and then looks for where none may be."""

from __future__ import annotations

import secrets
from base64 import b64encode
from pathlib import Path

__all__ = ["Planted", "processes_below"]


class Planted:
    """Secrets of one test, each different, so that what leaks one is known.

    Attributes:
        texts: by the secret's text in lower case, where it was planted.
    """

    def __init__(self) -> None:
        self.texts: dict[bytes, str] = {}

    def new(self, where: str) -> str:
        """Return a new secret: letters and digits, so that no encoding changes it."""
        text = f"planted{secrets.token_hex(8)}"
        self.add(where, text)
        return text

    def add(self, where: str, text: str) -> None:
        """Look for a secret that somebody else made, too."""
        self.texts[text.lower().encode()] = where

    def basic(self, where: str, password: str) -> str:
        """Return a value of Authorization with a password, and look for its encoded form, too."""
        value = b64encode(f"somebody:{password}".encode()).decode()
        self.add(where, value)
        return f"Basic {value}"

    def found_in(self, data: bytes) -> list[str]:
        """Return where the secrets in `data` were planted, each with what surrounds it."""
        low = data.lower()
        found = []
        for text, where in self.texts.items():
            at = low.find(text)
            if at >= 0:
                found.append(f"{where}: …{data[max(0, at - 120) : at + 40].decode('utf-8', 'replace')}")
        return found


def processes_below(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found
