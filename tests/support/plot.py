"""Line charts as one SVG picture, with the standard library alone."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Series", "draw"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 220, 70, 150, 50, 30
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


@dataclass(frozen=True)
class Series:
    """One diagram.

    Attributes:
        lines: by name, points of places on the axis across and values.
        across: unit of the axis across.
    """

    title: str
    unit: str
    lines: dict[str, list[tuple[float, float]]]
    across: str = "min"


def draw(title: str, diagrams: list[Series]) -> str:
    """Return the text of an SVG file with the diagrams below each other."""
    height = _TOP + len(diagrams) * (_HEIGHT + _TOP)
    size = f'width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for number, diagram in enumerate(diagrams):
        parts.append(f'<g transform="translate(0,{_TOP + number * (_HEIGHT + _TOP)})">{_diagram(diagram)}</g>')
    return "".join([*parts, "</svg>\n"])


def _diagram(diagram: Series) -> str:
    points = [point for line in diagram.lines.values() for point in line]
    last = max((at for at, _ in points), default=1.0) or 1.0
    top = max((value for _, value in points), default=1.0) * 1.1 or 1.0
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM

    def place(at: float, value: float) -> str:
        return f"{_LEFT + across * at / last:.1f},{down - down * value / top:.1f}"

    parts = [f'<text x="{_LEFT}" y="-6" font-weight="bold">{escape(diagram.title)}</text>']
    for step in range(5):
        value = f"{_short(top * step / 4)} {escape(diagram.unit)}"
        at = f"{_short(last * step / 4)} {escape(diagram.across)}"
        y, x = down - down * step / 4, _LEFT + across * step / 4
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + across}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value}</text>')
        parts.append(f'<text x="{x}" y="{down + 16}" text-anchor="middle">{at}</text>')
    for number, (name, line) in enumerate(diagram.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(place(at, value) for at, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        label = f'<text x="{_LEFT + across + 8}" y="{14 + number * 16}" fill="{colour}">{escape(name)}</text>'
        parts.append(label)
    return "".join(parts)


def _short(value: float) -> str:
    """A number with about three significant figures, never in exponents."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
