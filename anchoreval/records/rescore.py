"""Scores made again from the records alone, without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.schema import SCORED, Record, Score
from anchoreval.stats import per_token
from anchoreval.suites.general.harness import require_definition
from anchoreval.suites.scorers import SCORERS, with_choices

TOLERANCE = 1e-12
#: Facts without which a rule cannot judge.
NEEDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("babilong", "babilong_corrected"), ("question", "labels")),
    "likeliest": ("gold",),
}


def earned(record: Record, scorers: Mapping[str, str], path: Path) -> Score:
    """The score that the record's output earns; None where its outcome is one that is not scored, with the reason.

    RunError when `scorers`, by task, name no known one, or when facts name code that the task's card does not; `path`
    is the run, for the message.
    """
    if record.outcome not in SCORED:
        return Score(None, record.why)
    if scorers.get(record.task) not in SCORERS:
        raise RunError(f"{path}: header.json names no known scorer for {record.task}")
    if lacks := [name for name in NEEDS.get(scorers[record.task], ()) if name not in record.facts]:
        raise RunError(f"{path / RECORDS}: {record.sample_id}: facts > {lacks[0]} is not there, and its rule reads it")
    facts = with_choices(record.facts, record.choices, per_token(record) if record.finish == "scored" else None)
    try:
        if scorers[record.task] == "lm_eval" and "lm_eval" in facts:
            require_definition(record.task, facts)
        return SCORERS[scorers[record.task]](record.output, record.references, facts)
    except RunError as error:
        raise RunError(f"{path / RECORDS}: {record.sample_id[:80]}: {error}") from error


def rescored(run: Run) -> Iterator[tuple[Record, float | None]]:
    """The records whose score on disk is not what their output earns, with the score that it does earn."""
    for record in run.records:
        value = earned(record, run.header.scorers, run.path).value
        if not same(record.score, value):
            yield record, value


def same(one: float | None, other: float | None) -> bool:
    """Whether two scores are one and the same, up to rounding."""
    return one is other is None or (one is not None and other is not None and abs(one - other) <= TOLERANCE)
