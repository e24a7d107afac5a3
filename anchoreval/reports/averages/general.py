"""`anchoreval general`: compute every metric that lm-evaluation-harness reports for its tasks, from the records alone,
and test whether an arm lost accuracy against the first.

"No significant difference" shows nothing. Only a 95% interval of the difference that lies within the margin shows
equivalence (two one-sided tests at 2.5% each, stats/verdicts.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anchoreval.cards import load_tasks
from anchoreval.errors import RunError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.reports.board.view import outcome_lines
from anchoreval.reports.compare.contrasts import compare
from anchoreval.reports.table import table
from anchoreval.reports.words import NONE
from anchoreval.schema import Record
from anchoreval.stats import Contrast, Row
from anchoreval.suites import with_choices
from anchoreval.suites.general.harness import judge_of, require_definition, results

SUITE = "general"
#: lm-eval's groups, whose averages weigh each task by its rows (`weight_by_size` in their YAML).
GROUPS = ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities", "bbh_cot_fewshot")
HEAD = ("task", "metric", "shots", "rows")
LOSS_HEAD = ("arm", "baseline", "of", "pairs", "difference", "95% interval", "verdict")


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a task under an arm, over `rows` of its `asked` samples. Values of shares are fractions of 1."""

    task: str
    metric: str
    filter: str
    arm: str
    value: float
    rows: int
    asked: int
    shots: int
    share: bool

    @property
    def name(self) -> str:
        """Return `acc_norm,none`, as lm-eval writes it."""
        return f"{self.metric},{self.filter}"


def figures(run: Run) -> list[Figure]:
    """Return all metrics of all general tasks and arms of a run; samples without an answer are left out."""
    by_task_and_arm: dict[tuple[str, str], list[Record]] = {}
    for record in run.records:
        if "lm_eval" in record.facts:
            by_task_and_arm.setdefault((record.task, record.arm), []).append(record)
    try:
        return [figure for records in by_task_and_arm.values() for figure in _figures(records)]
    except RunError as error:
        raise RunError(f"{run.path / RECORDS}: {error}") from error


def _figures(records: Sequence[Record]) -> Iterator[Figure]:
    answered = [record for record in records if record.finish != "error"]
    if not answered:
        return
    first, values = answered[0], dict[tuple[str, str], list[Any]]()
    require_definition(first.task, first.facts)
    lm_eval_facts = first.facts["lm_eval"]
    judge = judge_of(lm_eval_facts["task"], lm_eval_facts["folder"], first.facts["doc"])
    for record in answered:
        require_definition(record.task, record.facts)
        for name, value in results(record.output, with_choices(record.facts, record.choices)).items():
            values.setdefault(name, []).append(value)
    for (metric, filter_), metric_values in values.items():
        value = judge.aggregate(metric, metric_values)
        shots = first.facts.get("shots")
        counts = len(answered), len(records), shots if isinstance(shots, int) else 0
        # A share is in [0, 1] and better if it is higher; it is printed x 100.
        numbers = [float(each) for each in metric_values if isinstance(each, int | float)]
        share = len(numbers) == len(metric_values) and all(0 <= number <= 1 for number in numbers)
        share = share and judge.higher_is_better(metric)
        yield Figure(first.task, metric, filter_, first.arm, value, *counts, share)


def groups(found: Sequence[Figure]) -> list[Figure]:
    """Return the averages, over all rows, of the groups of lm-eval whose tasks are all present."""
    averages = []
    for group in GROUPS:
        members = load_tasks()[1].get(group, ())
        for arm, name in dict.fromkeys((figure.arm, figure.name) for figure in found if figure.task in members):
            parts = [figure for figure in found if (figure.arm, figure.name) == (arm, name) and figure.task in members]
            if {part.task for part in parts} == set(members):
                rows, asked = sum(part.rows for part in parts), sum(part.asked for part in parts)
                mean = math.fsum(part.value * part.rows for part in parts) / rows
                share, first = all(part.share for part in parts), parts[0]
                averages.append(Figure(group, first.metric, first.filter, arm, mean, rows, asked, first.shots, share))
    return averages


def report(run: Run, margin: float = 1.0) -> str:
    """Return the text for one run.

    It has a row for each task and metric and a column for each arm, with shares x 100; then the test whether an arm
    lost accuracy.
    """
    task_figures = figures(run)
    name = f"{run.name} of {run.model}"
    if not task_figures:
        return f"{name}: no task of the suite {SUITE}"
    release = run.header.part("scorer_packages").get("lm-eval", "")
    arms = list(dict.fromkeys(figure.arm for figure in task_figures))
    rows = [list(HEAD) + arms, *_rows(task_figures, arms)]
    group_figures = groups(task_figures)
    rows += [[f"group {row[0]}", *row[1:]] for row in _rows(group_figures, arms)]
    notes = [f"changed: {run.changed}"] if run.changed else []
    notes += ["shares x 100; groups are means over all their rows, as lm-eval weighs them"]
    if any(figure.rows < figure.asked for figure in task_figures):
        notes.append("* some rows have no score and are left out of the mean:")
    own_records = [record for record in run.records if "lm_eval" in record.facts]
    notes += [f"  {line.text}" for line in outcome_lines(run.header, own_records) if not line.quiet]
    tasks = {figure.task for figure in task_figures}
    for group in GROUPS:
        whole = set(load_tasks()[1].get(group, ()))
        if whole & tasks and whole - tasks:
            notes.append(f"group {group}: {len(whole & tasks)} of {len(whole)} tasks, no average")
    text = [f"{name}, metrics of lm-eval {release}".rstrip(), *table(rows, range(2)), *notes]
    members = {group.task: load_tasks()[1][group.task] for group in group_figures}
    if loss_rows := losses(run, members, margin):
        text += [
            "",
            f"was anything lost? the scores of the cards, paired, margin {margin:g} points; Holm over an arm's tasks "
            "outside groups; a group, and all together, are one question each",
            *table(loss_rows, (0, 1, 2, len(loss_rows[0]) - 1)),
        ]
    return "\n".join(text)


def _rows(found: Sequence[Figure], arms: Sequence[str]) -> list[list[str]]:
    rows = []
    for task, name in dict.fromkeys((figure.task, figure.name) for figure in found):
        by_arm = {figure.arm: figure for figure in found if (figure.task, figure.name) == (task, name)}
        first = next(iter(by_arm.values()))
        count = f"{first.rows}{'*' if first.rows < first.asked else ''}"
        row = [task.removeprefix(f"{SUITE}/"), name, str(first.shots), count]
        for arm in arms:
            figure = by_arm.get(arm)
            row.append(
                NONE if figure is None else f"{100 * figure.value:.2f}" if figure.share else f"{figure.value:.4g}"
            )
        rows.append(row)
    return rows


def losses(run: Run, groups: Mapping[str, Sequence[str]], margin: float) -> list[list[str]]:
    """Return a header and a row for each task outside `groups`, each group, and all together.

    There are no rows for a run of one arm. `groups` maps a name to its tasks, all of which the run has. `margin` is in
    points; scores are the cards' metrics, x 100. Holm's correction is over the tasks. A group, or the whole, is one
    question each, over all its pairs.
    """
    general_records = [record for record in run.records if "lm_eval" in record.facts]
    if len({record.arm for record in general_records}) < 2:
        return []
    grouped = {task for tasks in groups.values() for task in tasks}
    rows = [list(LOSS_HEAD)]
    alone = replace(run, records=tuple(record for record in general_records if record.task not in grouped))
    rows += [_line(contrast, row) for contrast in _compared(alone, margin) for row in contrast.cells]
    for name, tasks in groups.items():
        group_run = replace(run, records=tuple(record for record in general_records if record.task in tasks))
        rows += [_line(contrast, contrast.pooled, f"group {name}") for contrast in _compared(group_run, margin)]
    whole = replace(run, records=tuple(general_records))
    return rows + [_line(contrast, contrast.pooled, "all, by rows") for contrast in _compared(whole, margin)]


def _compared(run: Run, margin: float) -> Iterator[Contrast]:
    """Yield the contrasts of a part of a run, if at least two arms have records in it."""
    if len({record.arm for record in run.records}) > 1:
        yield from compare(run, margin=margin)


def _line(contrast: Contrast, row: Row, name: str = "") -> list[str]:
    paired = row.difference
    label = name or str(paired.task).partition("/")[2]
    if paired.difference is None or paired.low is None or paired.high is None:
        return [contrast.arm, contrast.baseline, label, str(paired.pairs), NONE, NONE, row.says]
    interval = f"[{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
    size = f"{100 * paired.difference:+.2f}"
    return [contrast.arm, contrast.baseline, label, str(paired.pairs), size, interval, row.says]
