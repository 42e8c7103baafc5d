"""Charts as inline SVG: they scale, they follow the page's light and dark colours, and they load nothing.

Colours and widths are classes (`raw`, `smooth`, `grid`, `tick`) of `report.css`.
"""

import math
from collections.abc import Sequence
from html import escape

__all__ = ["curve", "number", "smoothed", "ticks"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 42
_POINTS = 400
"""Points of a line; more cannot be told apart at this width."""


def curve(points: Points, *, title: str, x: str, y: str) -> str:
    """A line chart: the values as they are, pale, and their moving mean, with the last one written out."""
    points = [(a, b) for a, b in points if math.isfinite(b)]
    if not points:
        return ""
    mean = smoothed(points)
    xs = ticks(points[0][0], points[-1][0])
    ys = ticks(min(b for _, b in points), max(b for _, b in points))
    frame = _Frame((xs[0], points[-1][0]), (ys[0], ys[-1]))
    label = escape(f"{title}: {y} over {x}")
    pieces = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
        f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>',
    ]
    for value in ys:
        at = frame.y(value)
        pieces.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        pieces.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in (x for x in xs if x <= points[-1][0]):
        at = frame.x(value)
        pieces.append(
            f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{number(value)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    pieces.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    pieces.append(f'<text class="axis" x="{_WIDTH - _RIGHT}" y="18" text-anchor="end">{escape(y)}</text>')
    if len(points) > 1:
        pieces.append(frame.line(points, "raw"))
        pieces.append(frame.line(mean, "smooth"))
    end = mean[-1]
    above = frame.y(end[1]) - 9
    pieces.append(f'<circle class="end" cx="{frame.x(end[0]):.1f}" cy="{frame.y(end[1]):.1f}" r="3.5"/>')
    pieces.append(
        f'<text class="last" x="{frame.x(end[0]):.1f}" y="{above:.1f}" text-anchor="end">{number(end[1])}</text>'
    )
    return "".join([*pieces, "</svg>"])


def smoothed(points: Points) -> list[tuple[float, float]]:
    """The mean of each point with its neighbours, a fortieth of the line to either side.

    >>> smoothed([(1, 2.0), (2, 4.0)])
    [(1, 2.0), (2, 4.0)]
    """
    reach = len(points) // 40
    made = []
    for i, (at, _) in enumerate(points):
        near = [value for _, value in points[max(0, i - reach) : i + reach + 1]]
        made.append((at, sum(near) / len(near)))
    return made


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round values that enclose low … high, at most `most` + 1 of them.

    >>> ticks(0.13, 4.2)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as a reader wants it.

    >>> number(0.51234), number(12_345.0), number(3.0)
    ('0.512', '12,345', '3')
    """
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class _Frame:
    """Data coordinates → places on the paper."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float]) -> None:
        self.xs, self.ys = xs, ys

    def x(self, value: float) -> float:
        low, high = self.xs
        return _LEFT + (value - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys
        return _HEIGHT - _BOTTOM - (value - low) / ((high - low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    def line(self, points: Points, kind: str) -> str:
        every = max(1, -(-len(points) // _POINTS))
        kept = [*points[:-1:every], points[-1]]
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in kept)
        return f'<polyline class="{kind}" points="{path}"/>'
