"""Test whether an arm lost accuracy: paired differences between arms on the general benchmarks, as equivalence tests.

"No significant difference" shows nothing. Only a 95% interval of the difference that lies within the margin shows
equivalence (two one-sided tests at 2.5% each, stats/verdicts.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from anchoreval.records.run import Run
from anchoreval.reports.compare.contrasts import compare
from anchoreval.reports.words import NONE
from anchoreval.stats import Contrast, Row

HEAD = ("arm", "baseline", "of", "pairs", "difference", "95% interval", "verdict")


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
    rows = [list(HEAD)]
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
    return [
        contrast.arm,
        contrast.baseline,
        label,
        str(paired.pairs),
        f"{100 * paired.difference:+.2f}",
        interval,
        row.says,
    ]
