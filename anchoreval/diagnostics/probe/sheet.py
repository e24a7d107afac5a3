"""The probe's measures as rows, and their CSV. Imports no torch."""

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
#: Stands in place of the level for the same architecture with random weights.
RANDOM = "random weights"


@dataclass(frozen=True, slots=True)
class Setting:
    """What was run and compared: everything except the place in the model where the numbers were taken.

    `dtype` is the dtype in which the model computes. `level` is the rung that was asked for and `applied` the level
    that ran: in the float32 copy of a bf16 model, the sites that the rung leaves at the model's dtype are rounded to
    bf16 explicitly. `shift` is the offset of the first run's positions and `other` that of the second; against the
    oracle both are the same and the second run is the oracle.
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
    """One line of the CSV, a mean over the texts. `layer` and `head` are numbers or "all".

    `halves` has half the width of each measure's 95% t interval over the texts; it is empty for a single text. A row of
    a head rests on the first text alone and has the measures of BY_HEAD. A row of a layer, or of all layers and heads,
    has the sums over its heads (D and D_logit, as in the paper) or the means (other measures). A row with a `key` (`0`,
    `16-31`) has the mean |difference| of one such key, summed over layers and heads.
    """

    setting: Setting
    layer: str
    head: str
    key: str
    values: dict[str, float]
    halves: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OfText:
    """The measures of one text over all layers, heads and keys; `text` is its index among the texts of its length."""

    setting: Setting
    text: int
    values: dict[str, float]


@dataclass(frozen=True)
class Study:
    """Everything measured of one model; `facts` is JSON on how it was measured."""

    model: str
    rows: tuple[Row, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    texts: tuple[OfText, ...] = ()

    def totals(self, **wanted: Any) -> list[Row]:
        """Return rows over all layers, heads and keys whose setting has these values."""
        return [r for r in self.select(**wanted) if r.layer == r.head == r.key == ALL]

    def heads(self, **wanted: Any) -> list[Row]:
        """Return rows of single heads whose setting has these values."""
        return [row for row in self.select(**wanted) if row.head != ALL]

    def keys(self, **wanted: Any) -> list[Row]:
        """Return rows of single keys, or of bins of keys, whose setting has these values."""
        return [row for row in self.select(**wanted) if row.key != ALL]

    def select(self, **wanted: Any) -> Iterable[Row]:
        """Return rows whose setting has these values."""
        pairs = tuple(wanted.items())
        return (row for row in self.rows if all(getattr(row.setting, name) == value for name, value in pairs))


_SETTING = ("dtype", "mode", "against", "level", "applied", "length", "shift", "other", "texts", "queries")


def csv_text(study: Study) -> str:
    """Return probe.csv: one line per row, numbers to six digits, an empty field if a measure does not apply.

    `D_half`, and so on for the other measures, is half the width of the interval over the texts; empty for one text.
    """
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["model", *_SETTING, "layer", "head", "key", *MEASURES, *(f"{name}_half" for name in MEASURES)])
    for row in study.rows:
        place = [getattr(row.setting, name) for name in _SETTING] + [row.layer, row.head, row.key]
        out.writerow([_inert(study.model), *place, *_numbers(row.values), *_numbers(row.halves)])
    return file.getvalue()


def texts_csv(study: Study) -> str:
    """Return texts.csv: one line per text with its totals."""
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    names = [name for name in _SETTING if name != "texts"]
    out.writerow(["model", *names, "text", *BY_HEAD])
    for totals in study.texts:
        setting = [getattr(totals.setting, name) for name in names]
        out.writerow([_inert(study.model), *setting, totals.text, *_numbers(totals.values, BY_HEAD)])
    return file.getvalue()


def _numbers(values: dict[str, float], names: Iterable[str] = MEASURES) -> list[str]:
    return [f"{values[name]:.6g}" if name in values else "" for name in names]


def _inert(text: str) -> str:
    """Return `text` in a form that a spreadsheet shows and does not compute."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
