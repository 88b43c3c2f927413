"""Which module of a package imports which, read from the source: nothing is imported to find out."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["ImportGraph"]


class ImportGraph:
    """The imports inside one package.

    Every import counts, those inside functions and below ``TYPE_CHECKING`` as well.

    Args:
        package: the package's folder.

    Attributes:
        files: each module's file, relative to the folder that holds the package.
        imports: the modules of the package that each module imports.
    """

    def __init__(self, package: Path) -> None:
        root = package.parent
        self.files: dict[str, Path] = {}
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.relative_to(root)
        self.imports = {name: self._imports_of(name, root / path) for name, path in self.files.items()}

    def _imports_of(self, name: str, path: Path) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = self._base(node, name, path)
                for alias in node.names:
                    module = f"{base}.{alias.name}"
                    found.add(module if module in self.files else base)
        return (found & self.files.keys()) - {name}

    @staticmethod
    def _base(node: ast.ImportFrom, name: str, path: Path) -> str:
        """The absolute name of what ``from … import`` names, whether it is written with dots or not."""
        if not node.level:
            return node.module or ""
        parts = name.split(".")
        dropped = node.level - (path.name == "__init__.py")
        above = parts[: len(parts) - dropped]
        return ".".join([*above, node.module] if node.module else above)

    def cycles(self) -> list[list[Path]]:
        """Every cycle that a walk of the graph meets, as the files along it; the first file is the last as well."""
        done: set[str] = set()
        cycles: list[list[Path]] = []

        def walk(name: str, way: list[str]) -> None:
            if name in way:
                cycles.append([self.files[one] for one in [*way[way.index(name) :], name]])
            elif name not in done:
                for target in sorted(self.imports[name]):
                    walk(target, [*way, name])
                done.add(name)

        for name in self.files:
            walk(name, [])
        return cycles

    def upward(self, rooms: list[str]) -> list[tuple[Path, Path]]:
        """Imports from a lower room into a higher one, as (the importing file, the imported file).

        Args:
            rooms: folders and files, the highest room first. A file lies in the room with the longest name that leads
                to it.

        Raises:
            ValueError: a file lies in no room.
        """
        level = {name: self._level(path, rooms) for name, path in self.files.items()}
        return [
            (self.files[name], self.files[target])
            for name in self.files
            for target in sorted(self.imports[name])
            if level[target] < level[name]
        ]

    @staticmethod
    def _level(path: Path, rooms: list[str]) -> int:
        fitting = [room for room in rooms if str(path) == room or str(path).startswith(room.rstrip("/") + "/")]
        if not fitting:
            raise ValueError(f"{path} is in no room")
        return rooms.index(max(fitting, key=len))
