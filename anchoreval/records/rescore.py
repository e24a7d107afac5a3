"""Score records again, without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from anchoreval.cards import Origin
from anchoreval.errors import RunError
from anchoreval.records.header import Header
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.schema import SCORED, SILENT, Progress, Record, Score
from anchoreval.stats import per_token
from anchoreval.suites import Scorer, scorers, with_choices
from anchoreval.suites.outside import named

TOLERANCE = 1e-12


def scorers_of(header: Header) -> dict[str, Scorer]:
    """Return task -> scorer, without tasks whose scorer this version does not know.

    Raise CardError for a task of a suite from outside the package that the user did not name.
    """
    names, outside = header.scorers, header.outside
    own = {task: named(Origin(**origin), task).suite.scorers for task, origin in outside.items() if task in names}
    known = {task: own.get(task, {}).get(name) or scorers().get(name) for task, name in names.items()}
    return {task: scorer for task, scorer in known.items() if scorer is not None}


def earned(record: Record, scorers: Mapping[str, Scorer], path: Path) -> Score:
    """Return the score that the record's output earns; a score of None, with the reason, if its outcome is not scored.

    Raise RunError if `scorers` (task -> scorer) has none for the task, if a fact that it needs is missing, or if facts
    name code that the task's card does not name. `path` is the run folder, for the message.
    """
    if record.outcome not in SCORED:
        return Score(None, record.why)
    scorer = scorers.get(record.task)
    if scorer is None:
        raise RunError(f"{path}: header.json names no known scorer for {record.task}")
    if lacks := [name for name in scorer.needs if name not in record.facts]:
        raise RunError(f"{path / RECORDS}: {record.sample_id}: facts > {lacks[0]} is not there, and its rule reads it")
    facts = with_choices(record.facts, record.choices, per_token(record) if record.finish == "scored" else None)
    try:
        if scorer.refuse is not None:
            scorer.refuse(record.task, facts)
        return scorer.rule(record.output, record.references, facts)
    except RunError as error:
        raise RunError(f"{path / RECORDS}: {record.sample_id[:80]}: {error}") from error


def rescored(run: Run, progress: Progress = SILENT) -> Iterator[tuple[Record, float | None]]:
    """Yield each record whose score on disk is not what its output earns, with the score that it earns."""
    scorers = scorers_of(run.header)
    for record in run.records:
        value = earned(record, scorers, run.path).value
        progress(1)
        if not same(record.score, value):
            yield record, value


def same(one: float | None, other: float | None) -> bool:
    """Return True if two scores are equal up to rounding, or both None."""
    return one is other is None or (one is not None and other is not None and abs(one - other) <= TOLERANCE)
