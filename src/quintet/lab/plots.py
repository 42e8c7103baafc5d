"""Charts as inline SVG: they scale, they follow the page's light and dark colours, and they load nothing.

Colours and widths are classes (`raw`, `smooth`, `grid`, `tick`) of `report.css`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Mark", "curve", "number", "ranges", "scatter", "smoothed", "ticks"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 42
_LINE = 24
"""Height of a name with its range."""
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
    pieces = _paper(title, x, y, frame, xs=[(v, number(v)) for v in xs if v <= points[-1][0]], ys=ys)
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


@dataclass(frozen=True)
class Mark:
    """One thing in a scatter: a name, what it cost, its score with an interval, and that of its control."""

    name: str
    x: float
    y: float
    low: float
    high: float
    control: float | None = None


def scatter(marks: Sequence[Mark], *, title: str, x: str, y: str, higher_is_better: bool = True) -> str:
    """Scores with intervals against a cost on a logarithmic scale; hollow dots are controls.

    Of many marks only those on the front are named: nothing that costs as little is better. The rest have their names
    as tooltips.
    """
    marks = [m for m in marks if m.x > 0 and all(map(math.isfinite, (m.x, m.y, m.low, m.high)))]
    if not marks:
        return ""
    reach = [v for m in marks for v in (m.low, m.high, *([m.control] if m.control is not None else []))]
    xs, ys = _powers(min(m.x for m in marks), max(m.x for m in marks)), ticks(min(0.0, *reach), max(reach))
    frame = _Frame((math.log10(xs[0]), math.log10(xs[-1])), (ys[0], ys[-1]))
    pieces = _paper(title, x, y, frame, xs=[(math.log10(v), _letters(v)) for v in xs], ys=ys)
    named = {m.name for m in (marks if len(marks) <= 8 else _front(marks, higher_is_better=higher_is_better))}
    labels: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for m in sorted(marks, key=lambda m: (m.x, m.y)):
        at, top, bottom, dot = frame.x(math.log10(m.x)), frame.y(m.high), frame.y(m.low), frame.y(m.y)
        pieces.append(f'<g class="mark"><title>{escape(m.name)}: {m.y:.3f} [{m.low:.3f}, {m.high:.3f}]</title>')
        pieces.append(f'<line class="range" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        if m.control is not None:
            pieces.append(f'<circle class="control" cx="{at:.1f}" cy="{frame.y(m.control):.1f}" r="3"/>')
        pieces.append(f'<circle class="end" cx="{at:.1f}" cy="{dot:.1f}" r="4"/></g>')
        if m.name in named:
            labels.append(_label(m.name, at, dot, taken))
    return "".join([*pieces, *labels, "</svg>"])


def ranges(marks: Sequence[Mark], *, title: str) -> str:
    """Names below each other, each with its score and interval on one common scale; what cost they had is not drawn."""
    marks = [m for m in marks if all(map(math.isfinite, (m.y, m.low, m.high)))]
    if not marks:
        return ""
    names = 16 + max(6.4 * len(m.name) for m in marks)
    xs = ticks(min(0.0, *(m.low for m in marks)), max(m.high for m in marks))
    height, right = _TOP + _LINE * len(marks) + 26, 52

    def place(value: float) -> float:
        return names + (value - xs[0]) / (xs[-1] - xs[0]) * (_WIDTH - names - right)

    label = escape(f"{title}: {', '.join(f'{m.name} {m.y:.3f}' for m in marks)}")
    pieces = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">',
        f'<text class="title" x="0" y="18">{escape(title)}</text>',
    ]
    for value in xs:
        at, foot = place(value), height - 22
        pieces.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{foot}"/>')
        pieces.append(f'<text class="tick" x="{at:.1f}" y="{height - 6}" text-anchor="middle">{number(value)}</text>')
    for line, m in enumerate(marks):
        y = _TOP + _LINE * (line + 0.5)
        low, high = place(m.low), place(m.high)
        pieces.append(f'<text class="last" x="0" y="{y + 4:.1f}">{escape(m.name)}</text>')
        pieces.append(f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        pieces.append(f'<circle class="end" cx="{place(m.y):.1f}" cy="{y:.1f}" r="4"/>')
        pieces.append(f'<text class="tick" x="{_WIDTH}" y="{y + 4:.1f}" text-anchor="end">{_short(m.y)}</text>')
    return "".join([*pieces, "</svg>"])


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


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


def _paper(
    title: str, x: str, y: str, frame: "_Frame", *, xs: Sequence[tuple[float, str]], ys: Sequence[float]
) -> list[str]:
    """An open SVG with title, grid and axes; `xs` are places with what stands there."""
    label = escape(f"{title}: {y} over {x}")
    pieces = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">',
        f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>',
    ]
    for value in ys:
        at = frame.y(value)
        pieces.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        pieces.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value, text in xs:
        at = frame.x(value)
        pieces.append(
            f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{text}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    pieces.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    pieces.append(f'<text class="axis" x="{_WIDTH - _RIGHT}" y="18" text-anchor="end">{escape(y)}</text>')
    return pieces


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around low … high, few of them over many decades.

    >>> _powers(1.8e9, 2.6e9)
    [1000000000.0, 2000000000.0, 5000000000.0]
    """
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    heads = (1, 2, 5) if high / low < 200 else (1,)
    made = [float(f"{head}e{power}") for power in range(first, last + 1) for head in heads]
    start = max(i for i, v in enumerate(made) if v <= low * (1 - 1e-9))
    end = min(i for i, v in enumerate(made) if v >= high * (1 + 1e-9))
    return made[start : end + 1]


def _letters(value: float) -> str:
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {letter}"
    return f"{value:g}"


def _front(marks: Sequence[Mark], *, higher_is_better: bool) -> list[Mark]:
    """The marks that none at their cost or below is better than."""
    sign = 1 if higher_is_better else -1
    kept: list[Mark] = []
    for m in sorted(marks, key=lambda m: (m.x, -sign * m.y)):
        if not kept or sign * m.y > sign * kept[-1].y:
            kept.append(m)
    return kept


def _label(name: str, at: float, dot: float, taken: list[tuple[float, float, float]]) -> str:
    """A name beside its dot, moved up or down from those that are there already; `taken` holds (left, right, y)."""
    width = 6.4 * len(name)
    right = at + 8 + width < _WIDTH - _RIGHT
    left = at + 8 if right else at - 8 - width
    y = dot + 4
    for step in range(1, 12):
        if not any(left < b and a < left + width and abs(y - other) < 13 for a, b, other in taken):
            break
        y = dot + 4 + 13 * ((step + 1) // 2) * (-1 if step % 2 else 1)
    taken.append((left, left + width, y))
    return f'<text class="last" x="{left:.1f}" y="{y:.1f}">{escape(name)}</text>'


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
