"""Records -> the list of a viewer: one row per sample, with its lines of records.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anchoreval.records.run import Run
from anchoreval.schema import Json, Record
from anchoreval.stats import per_token

COLUMNS = ("id", "task", "length", "index", "file", "prompt", "scores", "logprobs", "outputs")


@dataclass(frozen=True, slots=True)
class Line:
    """One record and the number of its line in records.jsonl, from 1."""

    number: int
    record: Record


@dataclass(frozen=True, slots=True)
class Row:
    """One sample with every line on it, in the order of the file; `answers` holds the last line of each arm."""

    sample_id: str
    lines: tuple[Line, ...]
    answers: Mapping[str, Record]

    @property
    def first(self) -> Record:
        """Return a record of the sample."""
        return self.lines[0].record

    @property
    def repeated(self) -> int:
        """Return the number of lines beyond one per arm."""
        return len(self.lines) - len(self.answers)

    @property
    def disagree(self) -> bool:
        """Return whether scores or outputs differ between the arms."""
        return len({(record.score, record.output) for record in self.answers.values()}) > 1


def rows_of(run: Run) -> list[Row]:
    """Return one row per sample id: tasks in the header's order, then by length and index."""
    lines: dict[str, list[Line]] = {}
    for number, record in enumerate(run.records, 1):
        lines.setdefault(record.sample_id, []).append(Line(number, record))
    place = {task: at for at, task in enumerate(run.tasks)}

    def order(row: Row) -> tuple[int, int, int, str]:
        return place[row.first.task], row.first.length, row.first.index, row.sample_id

    rows = (
        Row(name, tuple(sample_lines), {line.record.arm: line.record for line in sample_lines})
        for name, sample_lines in lines.items()
    )
    return sorted(rows, key=order)


def listed(row: Row, arms: Sequence[str], file: int, prompt: int) -> list[Json]:
    """Return the row as COLUMNS has it.

    `scores` hold a number, None (no score) or -1 (no record). `logprobs` are per reference token. Equal numbers in
    `outputs` mean equal outputs; None means no record. `prompt` is the number of the file that holds the prompt, or
    -1 - i if no file does, for reason i of the viewer.
    """
    first = row.first
    kinds: dict[str, int] = {}
    answers = [row.answers.get(arm) for arm in arms]
    outputs = [None if record is None else kinds.setdefault(record.output, len(kinds)) for record in answers]
    scores = [-1 if record is None else record.score for record in answers]
    place = [row.sample_id, first.task, first.length, first.index, file, prompt]
    return [*place, scores, [_per_token(record) for record in answers], outputs]


def _per_token(record: Record | None) -> float | None:
    value = None if record is None else per_token(record)
    return None if value is None else round(value, 6)
