"""What was measured of one text under one level, a line of probe.jsonl each, so that a study that was cut goes on.

A line is named by all that decides its numbers: weights, dtype, level as applied, token ids, shifts and query rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchoreval.attention.measures import MEASURES
from anchoreval.errors import RunError
from anchoreval.probe.sheet import Against, Mode

DIGITS = 6  # of every number; a resumed study has the bytes of one that ran through


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


def name_of(facts: dict[str, Any]) -> str:
    """The name of a line, from what decides its numbers."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Kept:
    """The lines of a file by name, to which more are added; without a file they are kept in memory alone."""

    file: Path | None = None
    lines: dict[str, list[Part]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the file; a line that was torn by a kill is measured again."""
        if self.file and self.file.is_file():
            self.lines.update(_read(self.file))

    def add(self, name: str, parts: list[Part]) -> None:
        """Keep a line, on the disk before this returns; RunError where it cannot be written."""
        self.lines[name] = parts
        if self.file is None:
            return
        rows = [[*_place(one), [one.values.get(measure) for measure in MEASURES]] for one in parts]
        line = json.dumps({"name": name, "rows": rows}, separators=(",", ":"))
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torn = self.file.is_file() and self.file.stat().st_size and self.file.read_bytes()[-1:] != b"\n"
            with self.file.open("a", encoding="utf-8") as out:
                out.write(("\n" if torn else "") + line + "\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise RunError(f"{self.file}: cannot be written: {error.strerror or error}") from error


def _place(one: Part) -> list[str | int]:
    return [one.mode, one.against, one.shift, one.other, one.layer, one.head, one.key]


def _read(file: Path) -> Iterator[tuple[str, list[Part]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from error
    for line in lines:
        try:
            content = json.loads(line)
            yield str(content["name"]), [_part(row) for row in content["rows"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue


def _part(row: list[Any]) -> Part:
    mode, against, shift, other, layer, head, key, values = row
    measures = {name: float(value) for name, value in zip(MEASURES, values, strict=True) if value is not None}
    return Part(mode, against, shift, other, layer, head, key, measures)
