"""`anchoreval general`: compute every metric that lm-evaluation-harness reports for its tasks, from the records alone,
and test whether an arm lost accuracy against the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from anchoreval.cards import load_tasks
from anchoreval.errors import RunError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.reports.averages.general_losses import losses
from anchoreval.reports.outcomes import outcome_lines
from anchoreval.reports.table import table
from anchoreval.reports.words import NONE
from anchoreval.schema import Record
from anchoreval.suites.general.harness import Judge, judge_of, require_definition
from anchoreval.suites.general.scoring import results
from anchoreval.suites.suite import with_choices

SUITE = "general"
#: lm-eval's groups, whose averages weigh each task by its rows (`weight_by_size` in their YAML).
GROUPS = ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities", "bbh_cot_fewshot")
HEAD = ("task", "metric", "shots", "rows")


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
        yield Figure(first.task, metric, filter_, first.arm, value, *counts, _is_share(judge, metric, metric_values))


def _is_share(judge: Judge, metric: str, values: Sequence[Any]) -> bool:
    """Return True for metrics in [0, 1] where higher is better; these are printed x 100."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return (
        len(numbers) == len(values) and judge.higher_is_better(metric) and all(0 <= number <= 1 for number in numbers)
    )


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
    incomplete = _incomplete(task_figures)
    notes += [f"group {group}: {there} of {whole} tasks, no average" for group, (there, whole) in incomplete.items()]
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


def _incomplete(found: Sequence[Figure]) -> dict[str, tuple[int, int]]:
    """Return the groups of which only some tasks are present: group -> (present tasks, all tasks)."""
    tasks = {figure.task for figure in found}
    members = {group: set(load_tasks()[1].get(group, ())) for group in GROUPS}
    return {
        group: (len(names & tasks), len(names)) for group, names in members.items() if names & tasks and names - tasks
    }


def _rows(found: Sequence[Figure], arms: Sequence[str]) -> list[list[str]]:
    rows = []
    for task, name in dict.fromkeys((figure.task, figure.name) for figure in found):
        by_arm = {figure.arm: figure for figure in found if (figure.task, figure.name) == (task, name)}
        first = next(iter(by_arm.values()))
        count = f"{first.rows}{'*' if first.rows < first.asked else ''}"
        shown = [_shown(by_arm[arm]) if arm in by_arm else NONE for arm in arms]
        rows.append([task.removeprefix(f"{SUITE}/"), name, str(first.shots), count, *shown])
    return rows


def _shown(one: Figure) -> str:
    return f"{100 * one.value:.2f}" if one.share else f"{one.value:.4g}"
