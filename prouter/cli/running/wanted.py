"""What `prouter run` asks of an agent: ``--require``, ``--resource`` and ``--slurm``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import click

__all__ = ["conditions", "resources", "slurm_options"]

_CONDITION = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|>|<|=|\sin\s)\s*(.+?)\s*")
_AMOUNT = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(\d+(?:\.\d+)?)([KMGT]?)i?B?")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def conditions(items: Sequence[str]) -> dict[str, Any]:
    """Return the API's ``require`` from ``gpus>=2``, ``zone in a,b`` and ``cuda=true``.

    Raises:
        click.BadParameter: one is not of these forms.
    """
    found: dict[str, Any] = {}
    for item in items:
        match = _CONDITION.fullmatch(item)
        if match is None:
            raise click.BadParameter(
                f"{item!r} is not like gpus>=2, 'zone in a,b' or cuda=true", param_hint="--require"
            )
        name, symbol, text = match[1], match[2].strip(), match[3]
        if symbol == "=":
            found[name] = _value(text)
            continue
        operand = [_value(one) for one in text.split(",")] if symbol == "in" else _number(item, text)
        known = found.setdefault(name, {})
        if not isinstance(known, dict):
            raise click.BadParameter(f"{item!r} and {name}=… exclude each other", param_hint="--require")
        known[symbol] = operand
    return found


def resources(items: Sequence[str]) -> dict[str, float]:
    """Return amounts by name from ``cpus=4`` and ``memory=8G``; units are powers of 1024.

    Raises:
        click.BadParameter: one is not of this form.
    """
    found: dict[str, float] = {}
    for item in items:
        match = _AMOUNT.fullmatch(item)
        if match is None:
            raise click.BadParameter(f"{item!r} is not like cpus=4 or memory=8G", param_hint="--resource")
        amount = float(match[2]) * _UNITS[match[3]]
        found[match[1]] = int(amount) if amount.is_integer() else amount
    return found


def slurm_options(items: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the API's ``slurm`` from ``partition=gpu`` and ``time=30``; nothing without `items`.

    Values stay texts, which Slurm reads as its users mean them: 30 are minutes. ``extra`` gets all of its values.

    Raises:
        click.BadParameter: one is not of this form, or given twice.
    """
    found: dict[str, Any] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not name or not value:
            raise click.BadParameter(f"{item!r} is not like partition=gpu or time=8:00:00", param_hint="--slurm")
        if name == "extra":
            found.setdefault(name, []).append(value)
        elif name in found:
            raise click.BadParameter(f"{name} is given twice", param_hint="--slurm")
        else:
            found[name] = value
    return {"slurm": found} if found else {}


def _value(text: str) -> Any:
    """A number, a truth value or a text."""
    text = text.strip()
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float, str)) else text


def _number(item: str, text: str) -> float:
    value = _value(text)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise click.BadParameter(f"{item!r} compares with {text!r}, which is no number", param_hint="--require")
    return value
