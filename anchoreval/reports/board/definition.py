"""Strict YAML -> what a leaderboard shows: title, suites, lengths, arms, models, columns, order, baseline, reported.

An unknown or repeated key, an unknown column, or a missing suite or file raises an error of one line, which names the
file, the key and the known values.

`reported` names files of numbers that a paper printed, `leaderboards/reported/*.csv`: one line per number, with table
and source. They never enter averages, orders or differences of measured numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from anchoreval.cards import Strict, folder, load_card, pick
from anchoreval.cards.strict_yaml import read_text
from anchoreval.errors import AnchorEvalError, CardError, UnknownName
from anchoreval.suites import Average, averages
from anchoreval.suites.outside import known_tasks

IDENTITY = ("model", "setting", "arm", "suite")
BY_LENGTH = "by_length"
#: Column -> its head and what it shows, beside the published averages of the suites (`anchoreval.suites.averages`).
COLUMNS = {
    BY_LENGTH: ("the length", "one column per length: the mean over the suite's tasks there"),
    "mean": ("mean", "the mean of the columns by length"),
    "ruler_effective_length": (
        "effective length", "the longest length up to which RULER's 13 tasks average at least 85.6",
    ),
    "difference": ("minus {baseline}", "paired difference to the baseline over all samples of the row, in points"),
    "verdict": ("verdict", "what the paired difference says"),
    "p_holm": (
        "p (Holm)",
        "its p value, corrected by Holm over the suites of an arm; with one suite that of `anchoreval compare`",
    ),
    "logprob": ("log-prob", "log-probability per token of the reference answer, mean over cells"),
    "samples": ("samples", "scored of asked samples"),
    "model_difference": (
        "minus {model}",
        "the paired difference to the same arm of the model or variant `baseline_model`, in points",
    ),
    "model_verdict": ("verdict over models", "what that difference says"),
    "trained_as": (
        "trained as", "the variant that the model was trained as; this and the next three come first by themselves",
    ),
    "trained_rope": ("trained RoPE", "the RoPE level that it was trained at"),
    "seed": ("seed", "the seed of its training"),
    "steps": ("steps", "the steps of its training"),
}  # fmt: skip
ACROSS = ("model_difference", "model_verdict")
FIELDS = ("model", "trained_on", "method", "suite", "column", "value", "table", "source", "note")
NEEDED = ("model", "method", "suite", "column", "table", "source")
_NUMBER = re.compile(r"\d{1,3}(\.\d+)?")
Name = Annotated[str, Field(min_length=1)]


class Definition(Strict):
    """A file of `leaderboards/`. If `lengths`, `arms` or `models` is left out, the board takes all that the runs hold.

    Differences are taken to the arm `baseline`; `margin`, in points, is the largest difference that counts as
    equivalent. `baseline_model` is a model, or a trained variant such as `intra-doc-fp32`, whose seeds are then paired.
    """

    title: Name
    about: str = ""
    suites: Annotated[list[Name], Field(min_length=1)]
    lengths: list[Annotated[int, Field(gt=0)]] | None = None
    arms: list[Name] | None = None
    models: list[Name] | None = None
    baseline: Name
    baseline_model: Name | None = None
    margin: Annotated[float, Field(gt=0, lt=100)] = 1.0
    columns: Annotated[list[Name], Field(min_length=1)]
    order: list[Name] = Field(default_factory=list)
    reported: list[Name] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        for key in ("suites", "lengths", "arms", "models", "columns", "order", "reported"):
            values = getattr(self, key) or []
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ValueError(f"{key}: {twice[0]!r} is there twice")
        for name in self.columns:
            _known("columns", name, [*COLUMNS, *averages()])
        sortable = [*IDENTITY, *(name for name in self.columns if name != BY_LENGTH)]
        for name in self.order:
            _known("order", name.removeprefix("-"), sortable)
        across = next((name for name in self.columns if name in ACROSS), None)
        if across and self.baseline_model is None:
            raise ValueError(f"baseline_model: {across} needs the model to compare with")
        if self.arms is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: {self.baseline!r} is not among the arms {', '.join(self.arms)}")
        return self


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


@dataclass(frozen=True, slots=True)
class Declared:
    """A definition with its name (the file's stem), the tasks of every suite, the reported tables and the averages."""

    name: str
    definition: Definition
    suites: Mapping[str, tuple[str, ...]]
    reported: tuple[Reported, ...]
    averages: Mapping[str, Average]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks of all suites, each once."""
        return tuple(dict.fromkeys(task for tasks in self.suites.values() for task in tasks))


def find_definition(name: Path) -> Path:
    """Return the file of a board, from a path or from the name of a board of the package.

    Raise UnknownName with the nearest name, or CardError for a path that does not exist.
    """
    if name.exists():
        return name
    shipped = {path.stem: path for path in folder("leaderboards").glob("*.yaml")}
    if len(name.parts) > 1:
        raise CardError(f"{name}: no such file; boards of the package are named alone: {', '.join(sorted(shipped))}")
    if (stem := name.name.removesuffix(".yaml")) not in shipped:
        raise UnknownName("board (no file and no definition of that name)", name.name, shipped)
    return shipped[stem]


def load_definition(path: Path) -> Declared:
    """Return the board that a file declares; raise CardError with the file and the key."""
    definition = load_card(path, Definition)
    suites: dict[str, tuple[str, ...]] = {}
    for name in definition.suites:
        try:
            suites[name] = tuple(task.address for task in pick(name, *known_tasks())[0])
        except AnchorEvalError as error:
            raise CardError(f"{path}: suites: {error}") from error
    tables = []
    for name in definition.reported:
        try:
            tables.append(load_reported(path.parent / name))
        except CardError as error:
            raise CardError(f"{path}: reported: {error}") from error
    return Declared(path.stem, definition, suites, tuple(tables), averages())


def _known(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{key}: {UnknownName('column', name, known)}")


def is_length(column: str) -> bool:
    """Return whether a column is a length in tokens."""
    return re.fullmatch(r"[0-9]{1,9}", column) is not None


def load_reported(path: Path) -> Reported:
    """Return the numbers of a file; raise CardError with the file, the line and the field."""
    numbers = []
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise CardError(f"{path}:1: the columns must be {','.join(FIELDS)}")
        for row in reader:
            at = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise CardError(f"{at}: a line needs {len(FIELDS)} fields")
            if empty := [name for name in NEEDED if not row[name]]:
                raise CardError(f"{at}: {empty[0]} is empty")
            if not _NUMBER.fullmatch(row["value"]) or float(row["value"]) > 100:
                raise CardError(f"{at}: value: {row['value']!r} is no number from 0 to 100")
            numbers.append(Printed(**row))
    except csv.Error as error:
        raise CardError(f"{path}: cannot be read: {error}") from error
    keys = [(number.row, number.column, number.table) for number in numbers]
    if len(set(keys)) < len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise CardError(f"{path}: {', '.join(twice[0])}, {twice[1]} is there twice for table {twice[2]}")
    return Reported(path.stem, tuple(numbers))
