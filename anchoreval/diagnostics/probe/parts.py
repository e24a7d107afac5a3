"""What one text shows under one level, as measured and as kept in probe.jsonl."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

from anchoreval.diagnostics.probe.measures import MEASURES
from anchoreval.diagnostics.probe.sheet import Against, Mode
from anchoreval.errors import RunError
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


def unpacked(content: Json) -> list[Part]:
    """The parts that `packed` wrote, or that stand as plain JSON on lines of before; RunError for anything else."""
    try:
        rows: Any = json.loads(zlib.decompress(base64.b85decode(content))) if isinstance(content, str) else content
        return [_part(*row) for row in rows]
    except (ValueError, TypeError, zlib.error) as error:
        raise RunError(f"a kept line of the probe cannot be read ({error}): delete it, or the file") from error


def _part(
    mode: Mode, against: Against, shift: int, other: int, layer: str, head: str, key: str, values: list[float | None]
) -> Part:
    measures = {name: float(value) for name, value in zip(MEASURES, values, strict=True) if value is not None}
    return Part(mode, against, shift, other, layer, head, key, measures)
