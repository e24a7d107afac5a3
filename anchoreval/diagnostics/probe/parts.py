"""The measures of one text under one level, in memory and as a line of probe.jsonl."""

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

DIGITS = 6  # of every number, so that a resumed study has the same bytes as an uninterrupted one


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


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Round measures to DIGITS digits."""
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}


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
