"""What one text shows under one level, as measured and as kept in probe.jsonl."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, get_args

from anchoreval.attention.measures import MEASURES
from anchoreval.probe.sheet import Against, Mode
from anchoreval.schema import Json
from anchoreval.strict_json import TEXT, WIDEST, list_of, number, or_null, row_of, whole, word

DIGITS = 6  # of every number, so that a study that was cut has the bytes of one that ran through


@dataclass(frozen=True, slots=True)
class Part:
    """The measures of one place in the model, of one text: everything of a `Row` but level, length and text."""

    mode: Mode
    against: Against
    shift: int
    other: int
    layer: str
    head: str
    key: str
    values: dict[str, float]


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Measures to DIGITS digits."""
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}


def packed(parts: list[Part]) -> list[list[Any]]:
    """The parts as JSON, the measures in the order of MEASURES."""
    return [
        [p.mode, p.against, p.shift, p.other, p.layer, p.head, p.key, [p.values.get(name) for name in MEASURES]]
        for p in parts
    ]


_NUMBER = number(-sys.float_info.max, sys.float_info.max)
_SHIFT = whole(-WIDEST)
_ROWS = list_of(
    row_of(
        word(*get_args(Mode)), word(*get_args(Against)), _SHIFT, _SHIFT, TEXT, TEXT, TEXT,
        row_of(*[or_null(_NUMBER)] * len(MEASURES)),
    )
)  # fmt: skip


def unpacked(rows: Json) -> list[Part]:
    """The parts that `packed` wrote; ValueError for anything else."""
    if (wrong := _ROWS(rows)) is not None:
        raise ValueError(str(wrong))
    return parts_of(rows)


def parts_of(rows: list[list[Any]]) -> list[Part]:
    """The parts of rows that `packed` made in this process."""
    parts = []
    for mode, against, shift, other, layer, head, key, values in rows:
        measures = {name: float(value) for name, value in zip(MEASURES, values, strict=True) if value is not None}
        parts.append(Part(mode, against, shift, other, layer, head, key, measures))
    return parts
