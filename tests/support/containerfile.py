"""What a Containerfile says, as far as tests ask."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Stage", "read_stages"]


@dataclass
class Stage:
    """A build stage.

    Attributes:
        base: the image or stage that it begins with.
        instructions: pairs of an instruction's name and its text, in order.
    """

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Return the texts of all instructions of this name."""
        return [text for found, text in self.instructions if found == name]

    def copied(self) -> list[str]:
        """Return what is copied from the build's context."""
        copies = [shlex.split(text) for text in self.all("COPY") if not text.startswith("--from=")]
        return [source for words in copies for source in words[:-1]]


def read_stages(path: Path) -> dict[str, Stage]:
    """Return the stages of a Containerfile by their names.

    Raises:
        AssertionError: an instruction is before the first stage, or a stage has no name.
    """
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        if name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", text)
            assert match, f"a stage without a name: {line}"
            current = stages[match[2]] = Stage(match[1])
        elif stages:
            current.instructions.append((name, text))
        else:
            assert name == "ARG", line
    return stages
