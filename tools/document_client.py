"""Write the reference of docs/python.md from the client's docstrings; ``--check`` fails if it is not up to date."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prouter import client
from tools.generated_page import between, write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
OPENING, CLOSING = "<!-- reference -->", "<!-- end -->"
CLASSES = (client.Router, client.Job, client.LogStream, client.EventStream)
MODELS = (
    client.JobInfo, client.Outcome, client.Event, client.Connection, client.RouterInfo, client.Entry,
    client.Transferred, client.Synced, client.Token, client.WhoAmI, client.Share, client.Bridge,
)  # fmt: skip
_SECTION = re.compile(r"^(Args|Raises|Attributes):$")
_ITEM = re.compile(r"^    (\w+): (.*)$")


def main() -> int:
    """Write or check the page and return the exit status."""
    return write_or_check(PAGE, between(PAGE.read_text(), OPENING, CLOSING, _reference()))


def _reference() -> Iterator[str]:
    for cls in CLASSES:
        yield f"### {cls.__name__}\n"
        if cls is client.Router:
            yield f"```text\n{_call(cls.__name__, cls)}\n```\n"
        yield from _text(cls)
        for name, member in _members(cls):
            yield from _member(cls, name, member)
    yield "### Answers\n"
    yield "Frozen data classes. `raw` has the router's answer as it came, with fields that this version lacks.\n"
    for model in MODELS:
        yield from _model(model)
    yield "### Errors\n"
    yield "| error | when |\n| --- | --- |"
    errors = [getattr(client, name) for name in client.__all__]
    for error in sorted((one for one in errors if _is_error(one)), key=lambda one: (len(one.__mro__), one.__name__)):
        yield f"| `{error.__name__}` | {_first(error)} |"
    yield ""


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Return a class's public members: its own first, then those of the package's classes that it extends."""
    for one in cls.__mro__:
        if one.__module__.startswith("prouter.client."):
            yield from ((name, member) for name, member in vars(one).items() if not name.startswith("_"))


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, client.RouterError)


def _first(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def _call(name: str, value: Any) -> str:
    parameters = [one for one in inspect.signature(value).parameters.values() if one.name != "self"]
    shown = []
    for at, one in enumerate(parameters):
        if one.kind is one.KEYWORD_ONLY and (at == 0 or parameters[at - 1].kind is not one.KEYWORD_ONLY):
            shown.append("*")
        default = "" if one.default is one.empty else f"={one.default!r}"
        shown.append(f"{'**' if one.kind is one.VAR_KEYWORD else ''}{one.name}{default}")
    return f"{name}({', '.join(shown)})"


def _member(cls: type, name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property):
        yield f"#### `{cls.__name__}.{name}`\n"
        yield from _text(member)
    elif inspect.isfunction(member):
        yield f"#### `{cls.__name__}.{_call(name, member)}`\n"
        yield from _text(member)


def _text(value: Any) -> Iterator[str]:
    """Return a docstring as Markdown: its sections become lists."""
    heading = ""
    items: list[str] = []
    paragraphs: list[str] = []
    for line in (inspect.getdoc(value) or "").split("\n"):
        section, item = _SECTION.match(line), _ITEM.match(line)
        if section is not None:
            heading = section[1]
        elif heading and item is not None:
            before = f"{heading[:-1].lower() if heading == 'Raises' else ''}"
            items.append(f"- {'raises ' if before else ''}`{item[1]}`: {item[2]}")
        elif heading and line.strip():
            items[-1] += f" {line.strip()}"
        elif not heading:
            paragraphs.append(line)
    text = re.sub(r"``(.+?)``", r"`\1`", "\n".join(paragraphs).strip())
    yield f"{text}\n"
    if items:
        yield re.sub(r"``(.+?)``", r"`\1`", "\n".join(items)) + "\n"


def _model(model: type) -> Iterator[str]:
    yield f"#### `{model.__name__}`\n"
    own = [one.name for one in dataclasses.fields(model) if one.name != "raw"]
    derived = [name for cls in model.__mro__ for name, value in vars(cls).items() if isinstance(value, property)]
    yield from _text(model)
    yield f"Fields: {', '.join(f'`{name}`' for name in own)}."
    if derived:
        yield f"Derived: {', '.join(f'`{name}`' for name in derived)}."
    yield ""


if __name__ == "__main__":
    raise SystemExit(main())
