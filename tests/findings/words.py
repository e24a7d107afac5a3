"""Sentences, tables and numbers of the page."""

from __future__ import annotations

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
    """`0.25 ± 0.01`, the half of an interval where there is one."""
    return f"{digits(value)} ± {digits(half)}" if half else digits(value)
