"""Numbers that a paper printed, from `leaderboards/reported/*.csv`: one line per number, with table and source.

They never enter averages, orders or differences of measured numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchoreval.cards.strict_yaml import read_text
from anchoreval.errors import CardError

FIELDS = ("model", "trained_on", "method", "suite", "column", "value", "table", "source", "note")
NEEDED = ("model", "method", "suite", "column", "table", "source")
_NUMBER = re.compile(r"\d{1,3}(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Printed:
    """One number as printed, on a scale of 0..100."""

    model: str
    trained_on: str
    method: str
    suite: str
    column: str
    value: str
    table: str
    source: str
    note: str

    @property
    def row(self) -> tuple[str, str, str]:
        """Return the paper's row: model, training data, method."""
        return self.model, self.trained_on, self.method


@dataclass(frozen=True, slots=True)
class Reported:
    """One file of printed numbers; `name` is its stem."""

    name: str
    numbers: tuple[Printed, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the column names: lengths in ascending order, other names in the order of the file."""
        names = dict.fromkeys(number.column for number in self.numbers)
        return tuple(sorted(names, key=lambda name: int(name) if is_length(name) else 0))

    @property
    def rows(self) -> Mapping[tuple[str, str, str], Mapping[str, Sequence[Printed]]]:
        """Return row -> column -> its numbers; there are several if the paper prints several."""
        by_row: dict[tuple[str, str, str], dict[str, list[Printed]]] = {}
        for number in self.numbers:
            by_row.setdefault(number.row, {}).setdefault(number.column, []).append(number)
        return by_row

    @property
    def source(self) -> str:
        """Return `arXiv 2411.13476, table T5`, with every table once."""
        sources: dict[str, dict[str, None]] = {}
        for number in self.numbers:
            sources.setdefault(number.source, {})[number.table] = None
        return "; ".join(f"{source}, table {' and '.join(tables)}" for source, tables in sources.items())

    @property
    def notes(self) -> tuple[str, ...]:
        """Return every note once: as it is if all numbers have it, with the tables if several rows have it.

        Any other note is `model, data, method, column: note`.
        """
        rows: dict[str, dict[tuple[str, str, str], None]] = {}
        for number in self.numbers:
            rows.setdefault(number.note, {})[number.row] = None
        if len(rows) == 1:
            return tuple(filter(None, rows))
        tables = {note: " and ".join(dict.fromkeys(n.table for n in self.numbers if n.note == note)) for note in rows}
        return tuple(
            dict.fromkeys(
                f"{tables[n.note]}: {n.note}" if len(rows[n.note]) > 1 else f"{', '.join(n.row)}, {n.column}: {n.note}"
                for n in self.numbers
                if n.note
            )
        )


def is_length(column: str) -> bool:
    """Return whether a column is a length in tokens."""
    return re.fullmatch(r"[0-9]{1,9}", column) is not None


def load_reported(path: Path) -> Reported:
    """Return the numbers of a file; raise CardError with the file, the line and the field."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise CardError(f"{path}:1: the columns must be {','.join(FIELDS)}")
        numbers = tuple(_printed(path, reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise CardError(f"{path}: cannot be read: {error}") from error
    keys = [(number.row, number.column, number.table) for number in numbers]
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise CardError(f"{path}: {', '.join(twice[0])}, {twice[1]} is there twice for table {twice[2]}")
    return Reported(path.stem, numbers)


def _printed(path: Path, line: int, row: Mapping[str | None, str | None]) -> Printed:
    if None in row or None in row.values():
        raise CardError(f"{path}:{line}: a line needs {len(FIELDS)} fields")
    values = {name: str(row[name]) for name in FIELDS}
    empty = [name for name in NEEDED if not values[name]]
    if empty:
        raise CardError(f"{path}:{line}: {empty[0]} is empty")
    if not _NUMBER.fullmatch(values["value"]) or float(values["value"]) > 100:
        raise CardError(f"{path}:{line}: value: {values['value']!r} is no number from 0 to 100")
    return Printed(**values)
