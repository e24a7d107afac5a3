"""board.csv: one tidy row per (run, task, length, arm), then one per average. Same runs, same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anchoreval.reports.board.view import RunView
from anchoreval.reports.rows import TRAINED, compared, csv_lines, number, scored, trained
from anchoreval.schema import OUTCOMES, SCORED
from anchoreval.stats import UNSCORED
from anchoreval.stats import Row as Compared

Row = dict[str, str]

COLUMNS = (
    "run", "kind", "task", "length", "arm", "asked", "scored", "mean_x100", "low", "high", "interval",
    "logprob_per_token", "baseline", "pairs", "left_out", "difference", "difference_low", "difference_high",
    "discordant", "p", "detectable", "logprob_difference", "tasks", "comparable", "unmakeable", "path",
    "header", "as_wrong_x100", *OUTCOMES, "p_holm", "verdict", "says", "logprob_says", "same_outputs", "lost", "floor",
    "form", "environments", *TRAINED,
)  # fmt: skip
TEXTS = ("run", "task", "arm", "baseline", "unmakeable", "path", "says", "form", *TRAINED)


def csv_text(views: Sequence[RunView]) -> str:
    """Return all runs as CSV.

    Scores and differences are x 100; differences are to the run's first arm, with the verdicts of `compare`.
    `as_wrong_x100` is the mean if samples without a score count as wrong. The columns named for outcomes count them.

    kind: `cell`; `mean` (over tasks, per length), `wavg_inc`, `wavg_dec`; `effective_length`, with its value in the
    column `length`; `difference` (all pairs of an arm, or of a length). `tasks` is the number of RULER's 13 tasks in an
    average.
    """
    rows = (row for view in views for row in (*_cells(view), *_averages(view), *_pooled(view)))
    return "".join(csv_lines(COLUMNS, TEXTS, rows))


def _cells(view: RunView) -> Iterator[Row]:
    differences = {arm: view.differences(arm, view.arms[0]) for arm in view.arms[1:]}
    for task in view.tasks:
        for length in view.lengths:
            why = view.unmakeable.get((task, length), "")
            for arm in view.arms:
                row = _of(view, "cell", task) | {"task": task, "length": str(length), "arm": arm, "unmakeable": why}
                cell = view.cells.get((task, length, arm))
                if cell is not None:
                    row |= scored(cell) | {"interval": cell.method or "", "mean_x100": number(cell.mean, 100)}
                    row["as_wrong_x100"] = number(cell.as_wrong, 100)
                difference = differences.get(arm, {}).get((task, length))
                if difference is not None:
                    row |= _compared(difference)
                if cell is not None or why:
                    yield row


def _compared(row: Compared) -> Row:
    paired = row.difference
    return compared(row) | {
        "baseline": paired.baseline,
        "difference": number(paired.difference, 100),
        "difference_low": number(paired.low, 100),
        "difference_high": number(paired.high, 100),
        "discordant": str(paired.discordant),
        "logprob_difference": number(paired.logprob, digits=6),
    }


def _pooled(view: RunView) -> Iterator[Row]:
    """Yield differences of every arm to the first, over all pairs and at every length."""
    for arm in view.arms[1:]:
        contrast = view.contrasts[arm, view.arms[0]]
        for row in (*contrast.lengths, contrast.pooled):
            length = "" if row.difference.length is None else str(row.difference.length)
            yield {**_of(view, "difference"), "arm": arm, "length": length} | _compared(row)


def _averages(view: RunView) -> Iterator[Row]:
    for arm, average in view.averages.items():
        for length, mean in average.by_length.items():
            row = {**_of(view, "mean"), "arm": arm, "length": str(length), "mean_x100": f"{mean:.4f}"}
            bound = f"{average.as_wrong[length]:.4f}"
            low, high = (number(end, 100) for end in average.ends[length])
            ends = {"low": low, "high": high, "interval": "pseudo-scores"}
            tasks = {"tasks": str(average.tasks[length]), "as_wrong_x100": bound}
            yield row | ends | tasks | _behind(view, arm, length)
        row = {"arm": arm, "tasks": average.coverage}
        yield _of(view, "wavg_inc") | row | {"mean_x100": number(average.increasing)}
        yield _of(view, "wavg_dec") | row | {"mean_x100": number(average.decreasing)}
        yield _of(view, "effective_length") | row | {"length": average.effective or ""}


def _behind(view: RunView, arm: str, length: int) -> Row:
    """Return the counts behind a mean over tasks: samples asked, scored, and lost by outcome."""
    cells = [cell for cell in view.cells.values() if (cell.length, cell.arm) == (length, arm)]
    cells = [cell for cell in cells if cell.task.startswith("ruler/")]
    counts = {outcome: sum(cell.outcomes.get(outcome, 0) for cell in cells) for outcome in OUTCOMES}
    lost: dict[str, int] = {outcome: count for outcome, count in counts.items() if count and outcome not in SCORED}
    if others := sum(cell.lost for cell in cells) - sum(lost.values()):
        lost[UNSCORED] = others
    return {
        "asked": str(sum(cell.asked for cell in cells)),
        "scored": str(sum(cell.scored for cell in cells)),
        "lost": ", ".join(f"{count} {reason}" for reason, count in lost.items()),
    }


def _of(view: RunView, kind: str, task: str | None = None) -> Row:
    comparable = "yes" if view.comparable([task] if task else view.tasks) else "no"
    return {
        "run": view.name,
        "kind": kind,
        "comparable": comparable,
        "path": view.path,
        "header": view.fingerprint,
        "form": view.header.form,
        "environments": str(max(1, len(view.header.environments))),
        **trained(view.header.trained),
    }
