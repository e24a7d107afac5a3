"""The two colour scales of the HTML board, as CSS classes with readable text on each.

Scores run from paper to blue, differences from orange (worse) over paper to blue (better). Both pairs stay distinct
under the common kinds of colour blindness, and every cell prints its number. Colour follows the verdict: a difference
of which nothing can be told is hatched, however large it is, and one that is identical or equivalent is plain paper.
Text is black or white, whichever has the higher WCAG contrast (at least 4.5 on every step; a test computes it).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

from anchoreval.stats import Row

Rgb = tuple[int, int, int]

STEPS = 10  # score classes s0 .. s10
SIDE = 5  # difference classes n5 .. n1, z0, p1 .. p5, and h0
SCALES = (5, 10, 20, 40, 60, 80, 100)  # possible ends of a difference map, in points
NATS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # a map of nats ends at one of these times a power of ten

_PAPER: tuple[Rgb, Rgb] = ((0xF5, 0xF3, 0xEE), (0x22, 0x27, 0x2E))  # light, dark
_HATCH: tuple[Rgb, Rgb] = ((0xDD, 0xDA, 0xD2), (0x39, 0x40, 0x49))  # the stripes of a difference that is not told
_BLUE: tuple[Rgb, Rgb] = ((0x4C, 0x93, 0xD0), (0x2A, 0x6C, 0xAE))
_ORANGE: tuple[Rgb, Rgb] = ((0xE8, 0x8A, 0x3C), (0xA8, 0x52, 0x16))
_INK: Rgb = (0x16, 0x1A, 0x1F)
_WHITE: Rgb = (0xFF, 0xFF, 0xFF)


def difference_scale(values: Sequence[float]) -> int:
    """Return the smallest of SCALES that holds every difference, in points."""
    largest = max((abs(value) for value in values), default=0.0)
    return next((scale for scale in SCALES if largest <= scale), SCALES[-1])


def shown_scale(rows: Iterable[Row]) -> int:
    """Return `difference_scale` of the differences that verdicts show, so that noise does not set the scale."""
    shown = (row.difference.difference for row in rows if row.told)
    return difference_scale([100 * value for value in shown if value is not None])


def nats_scale(values: Iterable[float]) -> float:
    """Return the smallest of NATS times a power of ten that holds every value, and at least 0.001."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    power = 10.0 ** math.floor(math.log10(max(largest, 1e-3)))
    return next((step * power for step in NATS if largest <= step * power), 10 * power)


def steps() -> dict[str, tuple[Rgb, Rgb]]:
    """Return class -> its background on the light and on the dark page."""
    backgrounds = {f"s{i}": _mixed(_BLUE, i / STEPS) for i in range(STEPS + 1)} | {"z0": _PAPER, "h0": _HATCH}
    for i in range(1, SIDE + 1):
        backgrounds |= {f"n{i}": _mixed(_ORANGE, i / SIDE), f"p{i}": _mixed(_BLUE, i / SIDE)}
    return backgrounds


def ink(background: Rgb) -> Rgb:
    """Return dark or white, whichever has the higher contrast on the background."""
    return max((_INK, _WHITE), key=lambda text: contrast(text, background))


def contrast(one: Rgb, other: Rgb) -> float:
    """Return the WCAG 2.2 contrast ratio, 1..21."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@cache
def css() -> str:
    """Return one CSS rule per class; they are the same on every page."""
    rules = []
    for name, (light, dark) in steps().items():
        back = f"light-dark({_hex(light)}, {_hex(dark)})"
        if name == "h0":
            paper = "light-dark({}, {})".format(*map(_hex, _PAPER))
            back = f"repeating-linear-gradient(135deg, {paper} 0 5px, {back} 5px 8px)"
        text = f"light-dark({_hex(ink(light))}, {_hex(ink(dark))})"
        rules.append(f".{name} {{ background: {back}; color: {text} }}")
    return "\n".join(rules)


def _mixed(end: tuple[Rgb, Rgb], share: float) -> tuple[Rgb, Rgb]:
    return _between(_PAPER[0], end[0], share), _between(_PAPER[1], end[1], share)


def _between(start: Rgb, end: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _luminance(colour: Rgb) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
