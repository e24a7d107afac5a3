"""The probe's measures by name, as rows of a study, and in files: probe.csv, texts.csv, lines of probe.jsonl.

Imports no torch. Shape letters: H query heads, L keys. Source of D and D_logit: arXiv 2411.13476, equations 4 and 5.
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from anchoreval.files.strict_json import TEXT, WIDEST, list_of, number, or_null, row_of, whole, word
from anchoreval.reports.table import csv_lines
from anchoreval.schema import Json

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["end-to-end", "one-layer"]
Against = Literal["shift", "oracle"]

ALL = "all"
#: Stands in place of the level for the same architecture with random weights.
RANDOM = "random weights"
DIGITS = 6  # of every number, so that a resumed study has the same bytes as an uninterrupted one


@dataclass(frozen=True)
class Difference:
    """The differences between two computations of one layer; each tensor is [H], those by key are [L], all fp64.

    D             equation 4: sum over keys of the mean |weight difference| over the queries that see the key
    D_logit       equation 5: mean over queries of the |score difference| of the first key
    logit_first   the same over queries that also see another key; logit_other: per other key, same queries
    logit_top     the same for the top key. The top key is not the first key and must be seen by at least half of the
                  measured queries; it has the largest mean weight over the queries that see it. If the head has a
                  second sink-like key, this is it
    weight_first, weight_other, weight_top   the same for weights
    share_first   the first key's part of the sum of all |weight differences|
    mass_first, mass_top   mean weight of the first key and of the top key, in the first of the two computations
    key_logit, key_weight  per key: mean over the queries that see it, summed over heads
    """

    D: Tensor
    D_logit: Tensor
    logit_first: Tensor
    logit_other: Tensor
    logit_top: Tensor
    weight_first: Tensor
    weight_other: Tensor
    weight_top: Tensor
    share_first: Tensor
    mass_first: Tensor
    mass_top: Tensor
    key_logit: Tensor
    key_weight: Tensor


MEASURES = tuple(field.name for field in fields(Difference))
#: The measures with one value per key, and those with one value per head.
BY_KEY = tuple(name for name in MEASURES if name.startswith("key_"))
BY_HEAD = tuple(name for name in MEASURES if name not in BY_KEY)


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


@dataclass(frozen=True, slots=True)
class Part:
    """The measures of one text at one place in the model: everything of a `Row` except level, length and text."""

    mode: Mode
    against: Against
    shift: int
    other: int
    layer: str
    head: str
    key: str
    values: dict[str, float]


@dataclass(frozen=True)
class Study:
    """Everything measured of one model; `facts` is JSON on how it was measured."""

    model: str
    rows: tuple[Row, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    texts: tuple[OfText, ...] = ()

    @cached_property
    def levels(self) -> list[str]:
        """The levels in the order in which they were asked for, random weights last."""
        return sorted(dict.fromkeys(row.setting.level for row in self.rows), key=lambda level: level == RANDOM)

    @cached_property
    def lengths(self) -> list[int]:
        """The lengths, ascending."""
        return sorted({row.setting.length for row in self.rows})

    @cached_property
    def settings(self) -> list[tuple[str, Mode]]:
        """The (dtype, mode) that are shown: every dtype end to end, then, if measured, the last on shared states."""
        dtypes = list(dict.fromkeys(row.setting.dtype for row in self.rows))
        shown: list[tuple[str, Mode]] = [(dtype, "end-to-end") for dtype in dtypes]
        return [*shown, (dtypes[-1], "one-layer")] if any(r.setting.mode == "one-layer" for r in self.rows) else shown

    @cached_property
    def pair(self) -> tuple[int, int]:
        """The two shifts that were asked for, which are those of the rows by head or key."""
        setting = next(row.setting for row in self.select(against="shift") if (row.head, row.key) != (ALL, ALL))
        return setting.shift, setting.other

    def total(self, **wanted: Any) -> Row | None:
        """Return the only row over all layers, heads and keys whose setting has these values, or None."""
        return next(iter(self.totals(**wanted)), None)

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


_SETTING = tuple(each.name for each in fields(Setting))


def csv_text(study: Study) -> str:
    """Return probe.csv: one line per row, numbers to six digits, an empty field if a measure does not apply.

    `D_half`, and so on for the other measures, is half the width of the interval over the texts; empty for one text.
    """
    columns = ["model", *_SETTING, "layer", "head", "key", *MEASURES, *(f"{name}_half" for name in MEASURES)]
    rows = (
        {"model": study.model, **{name: getattr(row.setting, name) for name in _SETTING}}
        | {
            "layer": row.layer,
            "head": row.head,
            "key": row.key,
            **_numbers(row.values),
            **_numbers(row.halves, "_half"),
        }
        for row in study.rows
    )
    return "".join(csv_lines(columns, {"model"}, rows))


def texts_csv(study: Study) -> str:
    """Return texts.csv: one line per text with its totals."""
    names = [name for name in _SETTING if name != "texts"]
    rows = (
        {"model": study.model, **{name: getattr(of.setting, name) for name in names}, "text": of.text}
        | _numbers(of.values)
        for of in study.texts
    )
    return "".join(csv_lines(["model", *names, "text", *BY_HEAD], {"model"}, rows))


def _numbers(values: dict[str, float], behind: str = "") -> dict[str, str]:
    return {f"{name}{behind}": f"{value:.6g}" for name, value in values.items()}


def packed(parts: list[Part]) -> str:
    """Return the parts as deflated JSON, a third as long as plain JSON, with measures in the order of MEASURES."""
    rows = [
        [p.mode, p.against, p.shift, p.other, p.layer, p.head, p.key, [p.values.get(name) for name in MEASURES]]
        for p in parts
    ]
    return base64.b85encode(zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 9)).decode()


_NUMBER = number(-sys.float_info.max, sys.float_info.max)
_SHIFT = whole(-WIDEST)
_ROWS = list_of(
    row_of(
        word(*get_args(Mode)), word(*get_args(Against)), _SHIFT, _SHIFT, TEXT, TEXT, TEXT,
        row_of(*[or_null(_NUMBER)] * len(MEASURES)),
    )
)  # fmt: skip
MOST_BYTES = 64 * 2**20  # of the unpacked rows of one line


def unpacked(content: Json) -> list[Part]:
    """Return the parts that `packed` wrote, or the plain JSON of older lines; raise ValueError for anything else."""
    rows: Any = content
    if isinstance(content, str):
        try:
            opened = zlib.decompressobj()
            text = opened.decompress(base64.b85decode(content), MOST_BYTES)
            if not opened.eof:
                raise ValueError("torn, or too large")
            rows = json.loads(text)
        except (ValueError, zlib.error, RecursionError) as error:
            raise ValueError(f"expected packed rows ({error})") from error
    if (wrong := _ROWS(rows)) is not None:
        raise ValueError(str(wrong))
    parts = []
    for *place, values in rows:
        named = zip(MEASURES, values, strict=True)
        parts.append(Part(*place, {name: float(value) for name, value in named if value is not None}))  # type: ignore[call-arg]
    return parts
