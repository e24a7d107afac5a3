"""Curves as SVG, in a page or in a separate file: no scripts, colours by CSS class, readable at phone width."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple, Protocol

from anchoreval.reports.page import CURVES, PALETTE

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 10, 38
MOST_TICKS = 6
LINE, LETTERS, BOLD_LETTERS = 15, 58, 46  # height of a line of text in a drawing, and about how many letters fill it


Point = tuple[float, float] | tuple[float, float, float, float]  # x, y and, if there is one, the interval of y


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line: `style` is the number of its colour and marker."""

    name: str
    style: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """The x axis: title, ticks (value, text), whether it starts at 0 (then it is the log of x + 1), and its two ends.

    Without ends the axis goes from the first point to the last.
    """

    title: str
    ticks: tuple[tuple[float, str], ...]
    from_zero: bool = False
    ends: tuple[float, float] | None = None

    def place(self, x: float) -> float:
        """Return the place of x in units of the scale."""
        return math.log2(x + 1) if self.from_zero else math.log2(x)


class Scale(Protocol):
    """A y axis."""

    def place(self, y: float) -> float | None:
        """Return the place of y, 0 at the bottom and 1 at the top, or None if it has no place."""

    def ticks(self) -> Iterable[tuple[float, str]]:
        """Return values with their texts."""


class Powers(NamedTuple):
    """A logarithmic axis between two powers of ten; zero and negative values have no place."""

    low: int
    high: int

    def place(self, y: float) -> float | None:
        """Return the place of a positive y."""
        return (math.log10(y) - self.low) / (self.high - self.low) if y > 0 else None

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the powers of ten, or every second, third ... of them."""
        step = max(1, math.ceil((self.high - self.low) / MOST_TICKS))
        yield from ((10.0**power, power_text(power)) for power in range(self.low, self.high + 1, step))


class Signed(NamedTuple):
    """An axis that is logarithmic on both sides of zero and even within `least` of it; all three are powers of ten."""

    least: int
    low: int
    high: int

    def place(self, y: float) -> float | None:
        """Return the place of any y."""
        bottom, top = -self._away(10.0**self.low), self._away(10.0**self.high)
        return (math.copysign(self._away(abs(y)), y) - bottom) / (top - bottom)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield zero and powers of ten on both sides of it."""
        step = max(1, math.ceil((self.low + self.high - 2 * self.least) / (MOST_TICKS - 1)))
        yield 0.0, "0"
        for sign, name, most in ((1, "+", self.high), (-1, "\N{MINUS SIGN}", self.low)):
            yield from ((sign * 10.0**power, name + power_text(power)) for power in range(most, self.least - 1, -step))

    def _away(self, size: float) -> float:
        least = 10.0**self.least
        return size / least if size <= least else 1 + math.log10(size) - self.least


class Even(NamedTuple):
    """An even axis between two values."""

    low: float
    high: float

    def place(self, y: float) -> float | None:
        """Return the place of any y."""
        return (y - self.low) / (self.high - self.low)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield round values, a few of them."""
        rough = (self.high - self.low) / 7
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(times for times in (1, 2, 5, 10) if unit * times >= rough)
        for at in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1):
            yield at * step, f"{at * step:.{max(0, -math.floor(math.log10(step)))}f}"


def decades(curves: Sequence[Curve]) -> Powers:
    """Return the powers of ten that hold every positive y, or 1 to 10 without a positive y."""
    values = [y for curve in curves for _, *ys in curve.points for y in ys if y > 0]
    if not values:
        return Powers(0, 1)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return Powers(low, max(high, low + 1))


def both_signs(curves: Sequence[Curve], floor: float) -> Signed:
    """Return the powers of ten that hold every y, even around zero within `floor`, or else the smallest value."""
    values = [y for curve in curves for _, *ys in curve.points for y in ys if y]
    if not values:
        return Signed(-1, -1, 0)
    least = math.floor(math.log10(floor or min(map(abs, values))))
    ends = [max([1.0, *(sign * y * 10.0**-least for y in values)]) for sign in (-1, 1)]
    return Signed(least, *(least + math.ceil(math.log10(end)) for end in ends))


def even(curves: Sequence[Curve]) -> Even:
    """Return an axis of a little more than the range of every y."""
    values = [y for curve in curves for _, *ys in curve.points for y in ys] or [0.0]
    room = 0.05 * (max(values) - min(values)) or 1.0
    return Even(min(values) - room, max(values) + room)


@dataclass(frozen=True, slots=True)
class Floor:
    """An area behind the curves; each point is x, the lower y (None: the bottom) and the upper y."""

    points: tuple[tuple[float, float | None, float], ...]


def chart(curves: Sequence[Curve], axis: Axis, scale: Scale, label: str, floor: Floor | None = None) -> str:
    """Return the SVG; points that have no place on the scale are left out."""
    xs = [axis.place(x) for x in axis.ends or [x for curve in curves for x, *_ in curve.points]] or [0.0]
    low, high = min(xs), max(max(xs), min(xs) + 1)
    across = WIDTH - LEFT - RIGHT
    down = HEIGHT - TOP - BOTTOM

    def x_of(x: float) -> float:
        return LEFT + across * (axis.place(x) - low) / (high - low)

    def y_of(y: float) -> float | None:
        place = scale.place(y)
        return None if place is None else TOP + down * (1 - min(1.0, max(0.0, place)))

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label, quote=True)}">',
        *([_area(floor, x_of, y_of)] if floor else []),
        *_grid(axis, scale, x_of, y_of),
        *(_curve(curve, x_of, y_of) for curve in curves),
        "</svg>",
    ]
    return "\n".join(parts)


Across = Callable[[float], float]
Down = Callable[[float], float | None]


def _area(floor: Floor, x_of: Across, y_of: Down) -> str:
    """Return the floor as one shape."""
    bottom = HEIGHT - BOTTOM
    tops = [(x_of(x), y_of(high)) for x, _, high in floor.points]
    bases = [(x_of(x), bottom if low is None else y_of(low)) for x, low, _ in reversed(floor.points)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*tops, *bases) if y is not None)
    return f'<polygon class="floor" points="{line}"><title>noise floor</title></polygon>'


def _grid(axis: Axis, scale: Scale, x_of: Across, y_of: Down) -> list[str]:
    parts = []
    for value, text in scale.ticks():
        y = y_of(value) or TOP
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    for value, text in axis.ticks:
        x = x_of(value)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axis.title)}</text>')
    return parts


def _curve(curve: Curve, x_of: Across, y_of: Down) -> str:
    """Return the line with its markers and intervals; hovering shows its name."""
    at = [(x_of(x), y, bar) for x, y, bar in ((x, y_of(y), bar) for x, y, *bar in curve.points) if y is not None]
    ends = [(x_of(x), *map(y_of, bar)) for x, _, *bar in curve.points if bar]
    bars = "".join(
        f'<polyline class="bar" points="{x:.1f},{low:.1f} {x:.1f},{high:.1f}"/>'
        for x, low, high in ends
        if low is not None and high is not None
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
    marks = "".join(marker(curve.style, x, y, bool(bar) and bar[0] <= 0 <= bar[1]) for x, y, bar in at)
    name = escape(curve.name)
    return f'<g class="curve k{curve.style}"><title>{name}</title><polyline points="{line}"/>{bars}{marks}</g>'


def marker(style: int, x: float, y: float, hollow: bool = False) -> str:
    """Return a small circle, square, triangle or diamond; hollow if the interval holds 0."""
    inside = ' class="hollow"' if hollow else ""
    match style % 4:
        case 0:
            return f'<circle{inside} cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
        case 1:
            return f'<path{inside} d="M{x - 2.8:.1f} {y - 2.8:.1f}h5.6v5.6h-5.6z"/>'
        case 2:
            return f'<path{inside} d="M{x:.1f} {y - 3.6:.1f}l3.6 6.4h-7.2z"/>'
        case _:
            return f'<path{inside} d="M{x:.1f} {y - 3.8:.1f}l3.8 3.8l-3.8 3.8l-3.8 -3.8z"/>'


def swatch(style: int) -> str:
    """Return a piece of the line with its marker, for the legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true"><g class="curve k{style}">'
        f'<polyline points="1,6 29,6"/>{marker(style, 15, 6)}</g></svg>'
    )


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart with the texts above it: its title, and a note on the quantity and unit of its y axis."""

    title: str
    note: str
    svg: str


def sheet(head: str, drawings: Sequence[Drawing], names: Sequence[str], notes: Sequence[str]) -> str:
    """Put drawings one below the other, with a legend and `notes` below: one SVG file with its own style.

    It has the width of one chart, so that its text can be read on a phone too.
    """
    parts: list[str] = []
    y = 4

    def write(text: str, ink: str = "soft", weight: str = "400") -> None:
        nonlocal y
        for line in textwrap.wrap(text, LETTERS if weight == "400" else BOLD_LETTERS):
            y += LINE
            style = f"fill: var(--{ink}); font-weight: {weight}"
            parts.append(f'<text x="8" y="{y}" style="{style}">{escape(line)}</text>')

    write(head, "ink", "600")
    for drawing in drawings:
        y += 10
        write(drawing.title, "ink", "600")
        write(drawing.note)
        y += 4
        parts.append(drawing.svg.replace("<svg ", f'<svg x="0" y="{y}" width="{WIDTH}" height="{HEIGHT}" ', 1))
        y += HEIGHT
    y += 8
    for at, name in enumerate(names):
        x = 12 + (WIDTH // 2) * (at % 2)
        y += 0 if at % 2 else 18
        mark = f'<polyline points="{x},{y} {x + 28},{y}"/>{marker(at, x + 14, y)}'
        parts.append(f'<g class="curve k{at}">{mark}</g><text x="{x + 34}" y="{y + 4}">{escape(name)}</text>')
    y += 10
    for note in notes:
        write(note)
    rules = "\n".join(part.read_text("utf-8") for part in (PALETTE, CURVES))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 12}" width="{WIDTH * 3 // 2}">',
            f"<style>svg {{ font-family: system-ui, sans-serif }} {rules}</style>",
            '<rect width="100%" height="100%" style="fill: var(--sheet)"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def power_text(power: int) -> str:
    """Return 10 to the power, with a raised exponent; 0.01 to 100 in full."""
    if -2 <= power <= 2:
        return f"{10.0**power:g}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
