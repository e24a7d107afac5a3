"""Sentences, tables and numbers of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sentence:
    """A sentence that can be quoted alone; of the lowest ranks stand five at the top of the page."""

    rank: int
    text: str


@dataclass(frozen=True)
class Finding:
    """A section: its sentences, then its tables (and pictures) as Markdown."""

    title: str
    sentences: tuple[Sentence, ...]
    tables: tuple[str, ...]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]).replace(
        "| " + " | ".join(["---"] * len(head)) + " |", "|" + "---|" * len(head)
    )


def digits(text: str, count: int = 2) -> str:
    """A number of a CSV to so many significant digits, `–` where the field is empty."""
    if not text:
        return "–"
    value = float(text)
    if value and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.{count - 1}e}"
    return f"{value:.{count}g}" if abs(value) < 10 ** (count - 1) else f"{value:,.0f}"


def spread(value: str, half: str) -> str:
    """`1.962 ± 0.018`: a mean to the digits of the half of its interval, where it has one."""
    if not half:
        return digits(value)
    if float(half) and 1e-3 <= abs(float(value)) < 1e4:
        places = max(0, 1 - math.floor(math.log10(float(half))))
        if places <= 4:
            return f"{float(value):.{places}f} ± {float(half):.{places}f}"
    return f"{digits(value)} ± {digits(half)}"
