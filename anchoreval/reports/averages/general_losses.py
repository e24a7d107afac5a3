"""Whether anything was lost: paired differences of the general benchmarks between arms, each an equivalence test.

"No significant difference" shows nothing; that the 95% interval of the difference lies within the margin does (two
one-sided tests at 2.5% each, stats/verdicts.py).
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
    """A header and a row for each task outside `groups`, each group, and all together; empty for a run of one arm.

    `groups`: name -> its tasks, all of which the run has. `margin` is in points; scores are the cards' metrics, x 100.
    Tasks are corrected by Holm among each other; a group and the whole are one question each, over all their pairs.
    """
    own = [record for record in run.records if "lm_eval" in record.facts]
    if len({record.arm for record in own}) < 2:
        return []
    grouped = {task for tasks in groups.values() for task in tasks}
    rows = [list(HEAD)]
    alone = replace(run, records=tuple(record for record in own if record.task not in grouped))
    rows += [_line(contrast, row) for contrast in _compared(alone, margin) for row in contrast.cells]
    for name, tasks in groups.items():
        of = replace(run, records=tuple(record for record in own if record.task in tasks))
        rows += [_line(contrast, contrast.pooled, f"group {name}") for contrast in _compared(of, margin)]
    whole = replace(run, records=tuple(own))
    return rows + [_line(contrast, contrast.pooled, "all, by rows") for contrast in _compared(whole, margin)]


def _compared(run: Run, margin: float) -> Iterator[Contrast]:
    """The contrasts of a part of a run in which two arms answered something."""
    if len({record.arm for record in run.records}) > 1:
        yield from compare(run, margin=margin)


def _line(contrast: Contrast, row: Row, name: str = "") -> list[str]:
    one = row.difference
    said = name or str(one.task).partition("/")[2]
    if one.difference is None or one.low is None or one.high is None:
        return [contrast.arm, contrast.baseline, said, str(one.pairs), NONE, NONE, row.says]
    interval = f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
    return [contrast.arm, contrast.baseline, said, str(one.pairs), f"{100 * one.difference:+.2f}", interval, row.says]
