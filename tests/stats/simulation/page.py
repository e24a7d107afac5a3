"""docs/statistics.md: each promise in words, then what was promised and what was measured; written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from simulation.promises import TABLES, Bound, Table
from simulation.questions import Question, Rates

NOTHING = "–"
Figures = Mapping[tuple[str, str, str], str]  # (table, line, column) -> what the page says there


class Section(NamedTuple):
    """A heading, what it promises in words, and the tables that show it."""

    heading: str
    words: str
    tables: tuple[Table, ...] = ()


def figures_of(measured: Mapping[Question, Rates]) -> dict[tuple[str, str, str], str]:
    """What the page says of questions that were measured."""
    found = {}
    for table in TABLES:
        for line in table.lines:
            for column, question in zip(table.columns, line.questions, strict=True):
                if question is not None and question in measured:
                    found[table.title, line.label, column] = said(table.bounds, measured[question])
    return found


def said(bounds: tuple[Bound, ...], rates: Rates) -> str:
    """`2.5 / 96.9`: a figure for each bound; a dash where there is none."""
    return " / ".join(bound.said(rates[bound.figure]) if bound.figure in rates else NOTHING for bound in bounds)


def rendered(sections: tuple[Section, ...], figures: Figures) -> str:
    """The page; a dash where `figures` say nothing."""
    parts = []
    for section in sections:
        parts += [section.heading, "", section.words.strip(), ""]
        for table in section.tables:
            parts += [*_table(table, figures), ""]
    return "\n".join(parts).rstrip() + "\n"


def _table(table: Table, figures: Figures) -> list[str]:
    promised = " / ".join(bound.promised for bound in table.bounds)
    lines = [f"| {table.title} (promised: {promised}) | " + " | ".join(table.columns) + " |"]
    lines.append("|---|" + "---|" * len(table.columns))
    for line in table.lines:
        cells = [figures.get((table.title, line.label, column), NOTHING) for column in table.columns]
        lines.append(f"| {line.label}{' (*)' if line.named else ''} | " + " | ".join(cells) + " |")
    return lines


def read(text: str) -> dict[tuple[str, str, str], str]:
    """The figures of a page that `rendered` wrote."""
    found: dict[tuple[str, str, str], str] = {}
    title, columns = "", [""]
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        head, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if " (promised: " in head:
            title, columns = head.partition(" (promised: ")[0], cells
        elif set(head) - {"-"}:
            label = head.removesuffix(" (*)")
            found |= {
                (title, label, column): cell for column, cell in zip(columns, cells, strict=True) if cell != NOTHING
            }
    return found
