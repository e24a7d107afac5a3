"""What the probe measured, as rows, and their CSV. Imports no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from anchoreval.diagnostics.probe.measures import BY_HEAD, MEASURES

Mode = Literal["end-to-end", "one-layer"]
Against = Literal["shift", "oracle"]

ALL = "all"
#: The level's place is taken by this in the series of the same architecture with random weights.
RANDOM = "random weights"


@dataclass(frozen=True, slots=True)
class Setting:
    """What was run and compared: all but where in the model the numbers were taken.

    `dtype` is what the model computes in; `level` is the rung asked for, `applied` the level that ran: in the
    float32 copy of a bf16 model, what the rung leaves at the model's dtype is rounded to bf16 explicitly.
    `shift` is the offset of the first run's positions and `other` that of the second; against the oracle both
    are the same and the second run is the oracle.
    """

    dtype: str
    mode: Mode
    against: Against
    level: str
    applied: str
    length: int
    shift: int
    other: int
    texts: int
    queries: int


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV, mean over the texts. `layer` and `head` are numbers or "all".

    `halves` has half the width of the 95% t interval over the texts of each measure; none of a single text. A row of a
    head rests on the first text alone and has the measures of BY_HEAD. A row of a layer, and one of all layers and
    heads, has their sums (D, D_logit, as the paper) or means (the others); a row with a `key` (`0`, `16-31`) has the
    mean |difference| of one such key, summed over layers and heads.
    """

    setting: Setting
    layer: str
    head: str
    key: str
    values: dict[str, float]
    halves: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfText:
    """What one text shows over all layers, heads and keys; `text` is its place among those of its length."""

    setting: Setting
    text: int
    values: dict[str, float]


@dataclass(frozen=True)
class Study:
    """Everything measured of one model; `facts` is JSON about how."""

    model: str
    rows: tuple[Row, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    texts: tuple[OfText, ...] = ()

    def totals(self, **wanted: Any) -> list[Row]:
        """Rows over all layers, heads and keys whose setting has these values."""
        return [r for r in self.select(**wanted) if r.layer == r.head == r.key == ALL]

    def heads(self, **wanted: Any) -> list[Row]:
        """Rows of single heads whose setting has these values."""
        return [row for row in self.select(**wanted) if row.head != ALL]

    def keys(self, **wanted: Any) -> list[Row]:
        """Rows of single keys, or bins of keys, whose setting has these values."""
        return [row for row in self.select(**wanted) if row.key != ALL]

    def select(self, **wanted: Any) -> Iterable[Row]:
        """Rows whose setting has these values."""
        pairs = tuple(wanted.items())
        return (row for row in self.rows if all(getattr(row.setting, name) == value for name, value in pairs))


_SETTING = ("dtype", "mode", "against", "level", "applied", "length", "shift", "other", "texts", "queries")


def csv_text(study: Study) -> str:
    """probe.csv: one line per row, numbers to six digits, empty where a measure does not apply.

    `D_half` is half the width of the interval of `D` over the texts, and so with the others; empty for a single text.
    """
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["model", *_SETTING, "layer", "head", "key", *MEASURES, *(f"{name}_half" for name in MEASURES)])
    for row in study.rows:
        place = [getattr(row.setting, name) for name in _SETTING] + [row.layer, row.head, row.key]
        out.writerow([_inert(study.model), *place, *_numbers(row.values), *_numbers(row.halves)])
    return file.getvalue()


def texts_csv(study: Study) -> str:
    """texts.csv: the totals of every single text, a line each."""
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    names = [name for name in _SETTING if name != "texts"]
    out.writerow(["model", *names, "text", *BY_HEAD])
    for one in study.texts:
        setting = [getattr(one.setting, name) for name in names]
        out.writerow([_inert(study.model), *setting, one.text, *_numbers(one.values, BY_HEAD)])
    return file.getvalue()


def _numbers(values: dict[str, float], names: Iterable[str] = MEASURES) -> list[str]:
    return [f"{values[name]:.6g}" if name in values else "" for name in names]


def _inert(text: str) -> str:
    """`text` as a spreadsheet shows it and does not compute it."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
