"""Score records again, without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.schema import SCORED, SILENT, Progress, Record, Score
from anchoreval.stats import per_token
from anchoreval.suites.general.harness import require_definition
from anchoreval.suites.scorers import SCORERS, with_choices

TOLERANCE = 1e-12
#: Scorer -> the facts that it needs.
NEEDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("babilong", "babilong_corrected"), ("question", "labels")),
    "likeliest": ("gold",),
}


def earned(record: Record, scorers: Mapping[str, str], path: Path) -> Score:
    """Return the score that the record's output earns; a score of None, with the reason, if its outcome is not scored.

    Raise RunError if `scorers` (task -> scorer) has no known one for the task, if a fact that it needs is missing, or
    if facts name code that the task's card does not name. `path` is the run folder, for the message.
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


def rescored(run: Run, progress: Progress = SILENT) -> Iterator[tuple[Record, float | None]]:
    """Yield each record whose score on disk is not what its output earns, with the score that it earns."""
    for record in run.records:
        value = earned(record, run.header.scorers, run.path).value
        progress(1)
        if not same(record.score, value):
            yield record, value


def same(one: float | None, other: float | None) -> bool:
    """Return True if two scores are equal up to rounding, or both None."""
    return one is other is None or (one is not None and other is not None and abs(one - other) <= TOLERANCE)
