"""What one text shows under one level, as measured and as kept in probe.jsonl."""

from __future__ import annotations

import base64
import json
import sys
import zlib
from dataclasses import dataclass
from typing import Any, get_args

from anchoreval.diagnostics.probe.measures import MEASURES
from anchoreval.diagnostics.probe.sheet import Against, Mode
from anchoreval.files.strict_json import TEXT, WIDEST, list_of, number, or_null, row_of, whole, word
from anchoreval.schema import Json

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


def packed(parts: list[Part]) -> str:
    """The parts as JSON, the measures in the order of MEASURES, deflated: a third of its letters."""
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
MOST_BYTES = 64 * 2**20  # of the rows of one line, unpacked


def unpacked(content: Json) -> list[Part]:
    """The parts that `packed` wrote, or that stand as plain JSON on lines of before; ValueError for anything else."""
    rows: Any = _rows_of(content) if isinstance(content, str) else content
    if (wrong := _ROWS(rows)) is not None:
        raise ValueError(str(wrong))
    return [_part(*row) for row in rows]


def _rows_of(text: str) -> Any:
    try:
        opened = zlib.decompressobj()
        content = opened.decompress(base64.b85decode(text), MOST_BYTES)
        if not opened.eof:
            raise ValueError("torn, or too large")
        return json.loads(content)
    except (ValueError, zlib.error, RecursionError) as error:
        raise ValueError(f"expected packed rows ({error})") from error


def _part(
    mode: Mode, against: Against, shift: int, other: int, layer: str, head: str, key: str, values: list[float | None]
) -> Part:
    measures = {name: float(value) for name, value in zip(MEASURES, values, strict=True) if value is not None}
    return Part(mode, against, shift, other, layer, head, key, measures)
