"""`anchoreval general`: every metric that lm-evaluation-harness reports for its tasks, made from the records alone,
and whether an arm lost anything against the first.
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
from anchoreval.reports.words import NONE, aligned
from anchoreval.schema import Record
from anchoreval.suites.general.harness import Judge, judge_of, require_definition
from anchoreval.suites.general.scoring import results
from anchoreval.suites.scorers import with_choices

SUITE = "general"
#: lm-eval's groups, whose averages weigh each task by its rows (`weight_by_size` in their YAML).
GROUPS = ("mmlu", "mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities", "bbh_cot_fewshot")
HEAD = ("task", "metric", "shots", "rows")


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of a task under an arm, over `rows` of its `asked` samples; shares of 1 as such."""

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
        """`acc_norm,none`, as lm-eval writes it."""
        return f"{self.metric},{self.filter}"


def figures(run: Run) -> list[Figure]:
    """All metrics of all general tasks and arms of a run; samples without an answer are left out."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in run.records:
        if "lm_eval" in record.facts:
            found.setdefault((record.task, record.arm), []).append(record)
    try:
        return [figure for records in found.values() for figure in _figures(records)]
    except RunError as error:
        raise RunError(f"{run.path / RECORDS}: {error}") from error


def _figures(records: Sequence[Record]) -> Iterator[Figure]:
    answered = [record for record in records if record.finish != "error"]
    if not answered:
        return
    first, values = answered[0], dict[tuple[str, str], list[Any]]()
    require_definition(first.task, first.facts)
    said = first.facts["lm_eval"]
    judge = judge_of(said["task"], said["folder"], first.facts["doc"])
    for record in answered:
        require_definition(record.task, record.facts)
        for name, value in results(record.output, with_choices(record.facts, record.choices)).items():
            values.setdefault(name, []).append(value)
    for (metric, filter_), each in values.items():
        value = judge.aggregate(metric, each)
        shots = first.facts.get("shots")
        counts = len(answered), len(records), shots if isinstance(shots, int) else 0
        yield Figure(first.task, metric, filter_, first.arm, value, *counts, _is_share(judge, metric, each))


def _is_share(judge: Judge, metric: str, values: Sequence[Any]) -> bool:
    """Whether the figure is a mean of numbers between 0 and 1 of which more is better."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return len(numbers) == len(values) and judge.higher_is_better(metric) and all(0 <= one <= 1 for one in numbers)


def groups(found: Sequence[Figure]) -> list[Figure]:
    """The averages of lm-eval's groups of which every task is there; means over all rows."""
    made = []
    for group in GROUPS:
        members = load_tasks()[1].get(group, ())
        for arm, name in dict.fromkeys((one.arm, one.name) for one in found if one.task in members):
            own = [one for one in found if (one.arm, one.name) == (arm, name) and one.task in members]
            if {one.task for one in own} == set(members):
                rows, asked = sum(one.rows for one in own), sum(one.asked for one in own)
                mean = math.fsum(one.value * one.rows for one in own) / rows
                share = all(one.share for one in own)
                made.append(Figure(group, own[0].metric, own[0].filter, arm, mean, rows, asked, own[0].shots, share))
    return made


def report(run: Run, margin: float = 1.0) -> str:
    """The text for one run: a row for each task and metric, a column for each arm; shares x 100; then what was lost."""
    found = figures(run)
    name = f"{run.name} of {run.model}"
    if not found:
        return f"{name}: no task of the suite {SUITE}"
    release = run.header.part("scorer_packages").get("lm-eval", "")
    arms = list(dict.fromkeys(one.arm for one in found))
    rows = [list(HEAD) + arms, *_rows(found, arms)]
    own = groups(found)
    rows += [[f"group {row[0]}", *row[1:]] for row in _rows(own, arms)]
    notes = [f"changed: {run.changed}"] if run.changed else []
    notes += ["shares x 100; groups are means over all their rows, as lm-eval weighs them"]
    if any(one.rows < one.asked for one in found):
        notes.append("* some rows have no score and are left out of the mean:")
    own_records = [record for record in run.records if "lm_eval" in record.facts]
    notes += [f"  {line.text}" for line in outcome_lines(run.header, own_records) if not line.quiet]
    incomplete = _incomplete(found)
    notes += [f"group {group}: {there} of {whole} tasks, no average" for group, (there, whole) in incomplete.items()]
    text = [f"{name}, metrics of lm-eval {release}".rstrip(), *aligned(rows, range(2)), *notes]
    members = {group.task: load_tasks()[1][group.task] for group in own}
    if lost := losses(run, members, margin):
        text += [
            "",
            f"was anything lost? the scores of the cards, paired, margin {margin:g} points; Holm over an arm's tasks "
            "outside groups; a group, and all together, are one question each",
            *aligned(lost, (0, 1, 2, len(lost[0]) - 1)),
        ]
    return "\n".join(text)


def _incomplete(found: Sequence[Figure]) -> dict[str, tuple[int, int]]:
    """Groups of which some tasks are there: how many of how many."""
    tasks = {one.task for one in found}
    members = {group: set(load_tasks()[1].get(group, ())) for group in GROUPS}
    return {group: (len(own & tasks), len(own)) for group, own in members.items() if own & tasks and own - tasks}


def _rows(found: Sequence[Figure], arms: Sequence[str]) -> list[list[str]]:
    rows = []
    for task, name in dict.fromkeys((one.task, one.name) for one in found):
        own = {one.arm: one for one in found if (one.task, one.name) == (task, name)}
        first = next(iter(own.values()))
        count = f"{first.rows}{'*' if first.rows < first.asked else ''}"
        shown = [_shown(own[arm]) if arm in own else NONE for arm in arms]
        rows.append([task.removeprefix(f"{SUITE}/"), name, str(first.shots), count, *shown])
    return rows


def _shown(one: Figure) -> str:
    return f"{100 * one.value:.2f}" if one.share else f"{one.value:.4g}"
