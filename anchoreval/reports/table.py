"""The one text table: every command that prints rows in columns takes its lines from here."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

WIDEST = 100_000  # columns; callers decide what fits a terminal
HOLD = "\ue000"  # a blank at the end of a cell, such as the place of a star, which rich would strip


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), rule: bool = False) -> list[str]:
    """Return the rows in columns as lines of text: columns in `left` are aligned left, the others right.

    Short rows are filled up. With `rule`, a rule stands below the first row. Characters of double width take two
    columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False)
    for column in range(max(map(len, rows), default=0)):
        drawn.add_column(justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(_held(text)) for text in row))  # no markup: intervals stand in brackets
    out = io.StringIO()
    Console(file=out, width=WIDEST, color_system=None, force_terminal=False).print(drawn)
    lines = [line.replace(HOLD, " ").rstrip() for line in out.getvalue().split("\n")[:-1]]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]] if rule else lines


def _held(text: str) -> str:
    return text.rstrip(" ") + HOLD * (len(text) - len(text.rstrip(" ")))
