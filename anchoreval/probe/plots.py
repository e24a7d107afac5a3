"""Curves as inline SVG with logarithmic axes: no scripts, colours by CSS class, readable at phone width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 38
MOST_TICKS = 6


Point = tuple[float, float] | tuple[float, float, float, float]  # x, y and where there is one an interval of y


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line: `style` is the number of its colour and marker."""

    name: str
    style: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """The x axis: its title, the ticks (value, text), and whether it starts at 0 (then log of x + 1)."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    from_zero: bool = False

    def place(self, x: float) -> float:
        """Where x lies, in units of the scale."""
        return math.log2(x + 1) if self.from_zero else math.log2(x)


def decades(curves: Sequence[Curve]) -> tuple[int, int]:
    """The powers of ten that hold every positive y; (0, 1) where there is none."""
    values = [y for curve in curves for _, *ys in curve.points for y in ys if y > 0]
    if not values:
        return 0, 1
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def chart(curves: Sequence[Curve], axis: Axis, y_range: tuple[int, int], label: str) -> str:
    """The SVG; `y_range` are powers of ten. Points that are exactly zero have no place and are left out."""
    xs = [axis.place(x) for curve in curves for x, *_ in curve.points] or [0.0]
    low, high = min(xs), max(max(xs), min(xs) + 1)
    across = WIDTH - LEFT - RIGHT
    down = HEIGHT - TOP - BOTTOM

    def x_of(x: float) -> float:
        return LEFT + across * (axis.place(x) - low) / (high - low)

    def y_of(power: float) -> float:
        return TOP + down * (y_range[1] - power) / (y_range[1] - y_range[0])

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">',
        *_grid(axis, y_range, x_of, y_of),
        *(_curve(curve, x_of, y_of) for curve in curves),
        "</svg>",
    ]
    return "\n".join(parts)


Place = Callable[[float], float]


def _grid(axis: Axis, y_range: tuple[int, int], x_of: Place, y_of: Place) -> list[str]:
    parts = []
    step = max(1, math.ceil((y_range[1] - y_range[0]) / MOST_TICKS))
    for power in range(y_range[0], y_range[1] + 1, step):
        y = y_of(power)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{power_text(power)}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    for value, text in axis.ticks:
        x = x_of(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axis.title)}</text>')
    return parts


def _curve(curve: Curve, x_of: Place, y_of: Place) -> str:
    """The line with its markers and intervals; hovering names it."""
    at = [(x_of(x), y_of(math.log10(y))) for x, y, *_ in curve.points if y > 0]
    ends = [(x_of(x), *(y_of(math.log10(end)) for end in bar)) for x, _, *bar in curve.points if bar and min(bar) > 0]
    bars = "".join(f'<polyline class="bar" points="{x:.1f},{low:.1f} {x:.1f},{high:.1f}"/>' for x, low, high in ends)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    marks = "".join(marker(curve.style, x, y) for x, y in at)
    name = escape(curve.name)
    return f'<g class="curve k{curve.style}"><title>{name}</title><polyline points="{line}"/>{bars}{marks}</g>'


def marker(style: int, x: float, y: float) -> str:
    """A small circle, square, triangle or diamond."""
    match style % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        case 1:
            return f'<path d="M{x - 2.8:.1f} {y - 2.8:.1f}h5.6v5.6h-5.6z"/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 3.6:.1f}l3.6 6.4h-7.2z"/>'
        case _:
            return f'<path d="M{x:.1f} {y - 3.8:.1f}l3.8 3.8l-3.8 3.8l-3.8 -3.8z"/>'


def swatch(style: int) -> str:
    """A piece of the line with its marker, for the legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true"><g class="curve k{style}">'
        f'<polyline points="1,6 29,6"/>{marker(style, 15, 6)}</g></svg>'
    )


def sheet(head: str, charts: Sequence[tuple[str, str]], names: Sequence[str], style: str) -> str:
    """Charts side by side under their titles, with a legend below: one SVG file with its own style."""
    wide, top, step = WIDTH * len(charts), 44, 130
    each_row = wide // step
    rows = math.ceil(len(names) / each_row)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {top + HEIGHT + 8 + 20 * rows}">',
        f"<style>svg {{ font-family: system-ui, sans-serif }} {style[style.index(':root') :]}</style>",
        f'<rect width="100%" height="100%" style="fill: var(--sheet)"/><text x="8" y="15">{escape(head)}</text>',
    ]
    for at, (title, drawn) in enumerate(charts):
        parts.append(f'<text x="{WIDTH * at + LEFT}" y="36" style="fill: var(--ink)">{escape(title)}</text>')
        parts.append(drawn.replace("<svg ", f'<svg x="{WIDTH * at}" y="{top}" width="{WIDTH}" height="{HEIGHT}" ', 1))
    for at, name in enumerate(names):
        x, y = 16 + step * (at % each_row), top + HEIGHT + 12 + 20 * (at // each_row)
        mark = f'<polyline points="{x},{y} {x + 28},{y}"/>{marker(at, x + 14, y)}'
        parts.append(f'<g class="curve k{at}">{mark}</g><text x="{x + 34}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def power_text(power: int) -> str:
    """10 to the power, with a raised exponent; 0.01 to 100 in full."""
    if -2 <= power <= 2:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
