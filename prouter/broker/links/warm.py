"""Which templates an agent has, and how many jobs of each it keeps ready, as it last told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prouter.broker.links.hello import MAX_TEMPLATES, is_template
from prouter.errors import ProtocolError

__all__ = ["Warm", "read_figures", "sums"]

_FIGURES = ("size", "ready", "failures")
_LARGEST = 2**31


class Warm:
    """The jobs that an agent keeps ready.

    Attributes:
        figures: by template ``size``, ``ready`` and ``failures``; replaced as a whole by each report.
    """

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, int]] = {}

    def ready(self, template: str | None) -> bool:
        """Whether a job of this template is ready, as far as is known."""
        return template is not None and self.figures.get(template, {}).get("ready", 0) > 0

    def take(self, template: str | None) -> None:
        """Note that a job is about to be asked for. The agent's next report counts again."""
        if template is not None and self.ready(template):
            known = self.figures[template]
            self.figures = {**self.figures, template: {**known, "ready": known["ready"] - 1}}


def sums(figures: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, float]:
    """The figures of several agents together, all templates included, by the names of metrics."""
    told = [of_template for one in figures for of_template in one.values()]
    return {f"pool.{name}": sum(of_template[name] for of_template in told) for name in _FIGURES}


def read_figures(body: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The figures in an agent's ``pool`` event.

    Raises:
        ProtocolError: they are malformed.
    """
    templates = body.get("templates")
    if not isinstance(templates, dict) or len(templates) > MAX_TEMPLATES or not all(map(is_template, templates)):
        raise ProtocolError(f"templates must be a map of at most {MAX_TEMPLATES} names")
    return {name: _figures(told) for name, told in templates.items()}


def _figures(told: object) -> dict[str, int]:
    if not isinstance(told, dict):
        raise ProtocolError("what is told of a template must be a map")
    figures = {name: told.get(name) for name in _FIGURES}
    for value in figures.values():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
            raise ProtocolError("the figures of a template must be numbers")
    return figures  # type: ignore[return-value]
