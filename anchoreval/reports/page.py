"""The kit of every page: one Jinja environment, one content policy, one palette, inlined styles and scripts.

A page is a template that extends `page.html`, its own style sheets and its own scripts. It works offline and executes
nothing of what it shows: all text is escaped, and the policy names the page's own style and script by hash.

Colours: scores run from paper to blue, differences from orange (worse) over paper to blue (better). Both pairs stay
distinct under the common kinds of colour blindness, and every cell prints its number. Colour follows the verdict: a
difference of which nothing can be told is hatched, however large it is, and one that is identical or equivalent is
plain paper. Text is black or white, whichever has the higher WCAG contrast (at least 4.5 on every step; a test computes
it).

Addresses: those of a run's viewer, with the list of the samples behind a number.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from anchoreval.errors import RunError
from anchoreval.reports.words import plain, tokens
from anchoreval.schema import Json

if TYPE_CHECKING:
    from jinja2 import Environment

Rgb = tuple[int, int, int]

KIT = Path(__file__).parent / "templates"
PALETTE, PAGE, CURVES, PIECES = (KIT / name for name in ("palette.css", "page.css", "curves.css", "pieces.js"))
TITLES = tuple(f" · anchoreval {kind}</title>" for kind in ("board", "leaderboard"))  # of boards, also older ones
TABLES = ("run,kind,task,", "kind,model,")  # of their CSV files
NAME = 100  # characters of a name to show
_EARLY_BYTES = 8192  # hold a page's title and a table's first line
VIEWER, BOARD = "view/index.html", "board.html"  # paths in a run's folder
LONGEST = 200  # a longer name is left out of a link, which then opens a longer list

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


def render(
    template: Path, kind: str, title: str, styles: Sequence[str | Path] = (), scripts: Sequence[Path] = (), *,
    trusted: str = "", **values: Any,
) -> Iterator[str]:  # fmt: skip
    """Yield a page in pieces: `template` with the kit's styles, then `styles` (files or rules), and `scripts`.

    `trusted` names a Trusted Types policy that the page's script makes to add data files; other pages load nothing.
    """
    sheets = (part.read_text("utf-8") if isinstance(part, Path) else part for part in (PALETTE, PAGE, *styles))
    style, script = "\n".join(sheets), ""
    if scripts:
        joined = "\n".join(part.read_text("utf-8") for part in scripts)
        script = f'"use strict";\n(() => {{\n{joined}}})();\n'

    # nothing may load or run but the page's own style and script, and what that script adds if it is trusted
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    added = " 'strict-dynamic'" if trusted else ""
    policy = [
        "default-src 'none'",
        f"style-src 'sha256-{hashes[0]}'",
        f"script-src 'sha256-{hashes[1]}'{added}" if script else "",
        "base-uri 'none'; form-action 'none'",
        f"require-trusted-types-for 'script'; trusted-types {trusted}" if trusted else "",
    ]
    yield from _environment(template.parent).get_template(template.name).generate(
        kind=kind, title=title, style=style, script=script, policy="; ".join(filter(None, policy)), **values
    )  # fmt: skip


@cache
def _environment(folder: Path) -> Environment:
    """Return a Jinja environment over a folder and the kit: all text is escaped, an unknown name is an error.

    It keeps its compiled templates: a board may look at the pages of hundreds of runs.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, KIT]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"tokens": tokens, "plain": lambda value: plain(value, NAME)}
    return environment


def require_page(path: Path, *begins: str) -> None:
    """Raise RunError if `path` holds a file that we did not write: ours have one of `begins` in their first bytes."""
    if not path.exists() or path.is_symlink():  # a link is replaced, and never written through
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(_EARLY_BYTES)
    if not path.is_file() or (start and not any(text.encode() in start for text in begins)):
        raise RunError(f"{path} was not written by anchoreval: move it away, or name another --output")


def data_block(value: Json) -> str:
    """Return JSON that can be in a script element of type application/json: no `<`, `>` or `&` is left in it."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def has_viewer(run: Path) -> bool:
    """Return whether a run's folder holds a viewer itself, not through a symbolic link."""
    path = run / VIEWER
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


def has_page(run: Path) -> bool:
    """Return whether a run's folder holds a board of its own, not through a symbolic link."""
    page = run / BOARD
    return page.is_file() and not page.is_symlink()


def encoded(value: str) -> str | None:
    """Return a name as encoded in a viewer's address, or None if it is too long for one."""
    return quote(value, safe="", errors="replace") if len(value) <= LONGEST else None


def listed(folder: str, query: Iterable[tuple[str, str]]) -> str:
    """Return the link to the viewer's list of the samples in `query`; `folder` is the run's, already encoded."""
    parts = [f"{key}={name}" for key, value in query if (name := encoded(value)) is not None]
    return f"{folder}/{VIEWER}" + (f"#{'&'.join(parts)}" if parts else "")


def relative(path: Path, folder: Path) -> str:
    """Return `path` relative to `folder`, with `/`."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def difference_scale(values: Sequence[float]) -> int:
    """Return the smallest of SCALES that holds every difference, in points."""
    largest = max((abs(value) for value in values), default=0.0)
    return next((scale for scale in SCALES if largest <= scale), SCALES[-1])


def nats_scale(values: Iterable[float]) -> float:
    """Return the smallest of NATS times a power of ten that holds every value, and at least 0.001."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    power = 10.0 ** math.floor(math.log10(max(largest, 1e-3)))
    return next((step * power for step in NATS if largest <= step * power), 10 * power)


def steps() -> dict[str, tuple[Rgb, Rgb]]:
    """Return class -> its background on the light and on the dark page."""
    shares = {f"s{i}": (_BLUE, i / STEPS) for i in range(STEPS + 1)} | {"z0": (_PAPER, 0.0), "h0": (_HATCH, 1.0)}
    for i in range(1, SIDE + 1):
        shares |= {f"n{i}": (_ORANGE, i / SIDE), f"p{i}": (_BLUE, i / SIDE)}
    return {
        name: (_between(_PAPER[0], light, share), _between(_PAPER[1], dark, share))
        for name, ((light, dark), share) in shares.items()
    }


def _between(start: Rgb, end: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def ink(background: Rgb) -> Rgb:
    """Return dark or white, whichever has the higher contrast on the background."""
    return max((_INK, _WHITE), key=lambda text: contrast(text, background))


def contrast(one: Rgb, other: Rgb) -> float:
    """Return the WCAG 2.2 contrast ratio, 1..21."""
    luminances = []
    for colour in (one, other):
        channels = [value / 255 for value in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminances.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@cache
def colours_css() -> str:
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


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
