"""The result table on stdout: rows of tasks, columns of lengths, a panel per arm and per difference, then sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import wrap

from anchoreval.records.run import Run
from anchoreval.reports.board.view import view
from anchoreval.reports.table import table
from anchoreval.reports.words import (
    NONE,
    apart_words,
    floor_words,
    logprob_difference,
    percent,
    plain,
    sentence,
    shortened,
    tally,
    tokens,
)
from anchoreval.stats import Cell, Contrast, Place
from anchoreval.stats.cells import underfilled

COLUMN = 8
GAP = 2
ALL = ""  # the task of a panel's last row, the mean over tasks
_Panel = tuple[str, Mapping[Place, str], str]  # a block of columns: title, texts, and the text of a place without one


@dataclass(frozen=True, slots=True)
class Over:
    """A mean over the cells of one arm and length: of scored samples, with the lost as wrong, and what was lost."""

    cells: Sequence[Cell]
    mean: float | None
    as_wrong: float
    lost: int
    lost_tasks: int


def run_table(run: Run, baseline: str | None = None, width: int = 100) -> str:
    """Return the result of a run as text: scores, differences to `baseline` (or the first arm), verdicts, notes."""
    shown = view(run, Path())
    base = baseline or (shown.arms[0] if shown.arms else "")
    compared = [shown.contrasts[arm, base] for arm in shown.arms if arm != base]
    contrasts = [(f"{plain(each.arm, 40)} minus {plain(each.baseline, 40)}", each) for each in compared]
    by_column: dict[tuple[int, str], list[Cell]] = {}
    for cell in shown.cells.values():
        by_column.setdefault((cell.length, cell.arm), []).append(cell)
    columns: dict[tuple[int, str], Over] = {}
    for place, cells in by_column.items():
        means = [cell.mean for cell in cells if cell.mean is not None]
        mean, as_wrong = fmean(means) if means else None, fmean(cell.as_wrong for cell in cells)
        columns[place] = Over(cells, mean, as_wrong, sum(cell.lost for cell in cells), len(cells) - len(means))

    tasks = dict.fromkeys([*(cell.task for cell in shown.cells.values()), *(task for task, _ in shown.unmakeable)])
    lengths = sorted({length for length, _ in columns} | {length for _, length in shown.unmakeable})
    lines = list(_blocks(_panels(columns, contrasts, shown.unmakeable), list(tasks), lengths, width))
    for note in _notes(shown.cells.values(), columns, shown.unmakeable):
        lines += wrap(note, width, subsequent_indent="  ")
    text = "\n".join([*lines, *_verdicts(contrasts)]).rstrip()

    notes = [line.text for line in sorted(shown.outcomes, key=lambda line: not line.quiet)]
    notes += shown.notes
    if short := underfilled(run.records):
        named = (f"{plain(task, 60)} at {tokens(length)} {share:.0%}" for (task, length), share in short.items())
        notes.append(f"Prompts and answers fill, of their lengths: {'; '.join(shortened(named))}.")
    wrapped = [line for note in notes for line in wrap(note, width, subsequent_indent="  ")]
    return "\n".join([text, *shown.ruler_words, *wrapped])


def _panels(
    columns: Mapping[tuple[int, str], Over], contrasts: Sequence[tuple[str, Contrast]], unmakeable: Mapping[Place, str]
) -> Iterator[_Panel]:
    """Yield scores x 100 per arm, then differences per contrast; a star marks what something is left out of."""
    short = {length for _, length in unmakeable}
    for arm in dict.fromkeys(arm for _, arm in columns):
        texts: dict[Place, str] = {}
        for (length, of), over in columns.items():
            if of == arm:
                for cell in over.cells:
                    texts[cell.task, length] = percent(cell.mean) + ("*" if cell.lost else " ")
                if over.mean is not None:
                    texts[ALL, length] = percent(over.mean) + ("*" if over.lost or length in short else " ")
        yield plain(arm, 60), texts, NONE
    for title, contrast in contrasts:
        texts = {}
        for row in (*contrast.cells, *contrast.lengths):
            paired = row.difference
            if paired.difference is not None and paired.length is not None:
                star = "*" if paired.left_out else " "
                texts[paired.task or ALL, paired.length] = percent(paired.difference, signed=True) + star
        yield title, texts, f"{NONE} "


def _blocks(panels: Iterable[_Panel], tasks: Sequence[str], lengths: Sequence[int], width: int) -> Iterator[str]:
    """Yield the lines of panels side by side, as many as fit, with a blank line behind each such block."""
    suites = {task.partition("/")[0] for task in tasks if "/" in task}
    suite = f"{suites.pop()}/" if len(suites) == 1 and all("/" in task for task in tasks) else ""
    names = ["", suite.rstrip("/") or "task", *(plain(task.removeprefix(suite), 40) for task in tasks), "all"]
    groups: list[list[list[str]]] = []
    used = 0
    for title, texts, missing in panels:
        rows = [[f"{tokens(length)} ".replace(",", "") for length in lengths]]
        rows += [[texts.get((task, length), missing) for length in lengths] for task in [*tasks, ALL]]
        panel = [f"{title} ", *table([[f"{text:>{COLUMN - 2}}" for text in row] for row in rows], ())]
        taken = GAP + max(map(len, panel))
        if not groups or used + taken > width:
            groups.append([])
            used = max(map(len, names))
        groups[-1].append(panel)
        used += taken
    for group in groups:
        lines = table(list(zip(names, *group, strict=True)))
        yield from (*lines[:2], "-" * max(map(len, lines)), *lines[2:], "")


def _notes(
    cells: Iterable[Cell], columns: Mapping[tuple[int, str], Over], unmakeable: Mapping[Place, str]
) -> Iterator[str]:
    """Yield what the stars mean: how much was scored, and the mean if the lost count as wrong."""
    short: dict[str, list[str]] = {}
    present: dict[int, set[str]] = {}
    for cell in cells:
        present.setdefault(cell.length, set()).add(cell.task)
        if cell.lost:
            counts = f"{plain(cell.arm, 40)} {cell.scored}/{cell.asked} ({percent(cell.as_wrong)})"
            short.setdefault(f"{plain(cell.task, 60)} at {tokens(cell.length)}", []).append(counts)
    if parts := shortened(f"{place} {', '.join(counts)}" for place, counts in short.items()):
        yield f"* scored/asked, and the mean with the lost as wrong in brackets: {'; '.join(parts)}"
    whole = [
        f"{tokens(length)} {plain(arm, 40)} {percent(over.mean)}, {percent(over.as_wrong)} with the lost as wrong"
        + (f", {over.lost_tasks} of {len(over.cells)} tasks lost whole" if over.lost_tasks else "")
        for (length, arm), over in columns.items()
        if over.lost
    ]
    if whole:
        yield f"* all: a mean of what was scored: {'; '.join(shortened(whole))}"
    for length, missing in Counter(length for _, length in unmakeable).items():
        made = len(present.get(length, ()))
        yield f"* all at {tokens(length)}: a mean over {made} of {made + missing} tasks"
    for (task, length), why in unmakeable.items():
        yield f"{NONE} {plain(task, 60)} at {tokens(length)}: {plain(why, 160)}"


def _verdicts(contrasts: Iterable[tuple[str, Contrast]]) -> Iterator[str]:
    """Yield the verdict of every contrast: over all pairs, at each of several lengths, and over its cells."""
    floors = []
    for title, contrast in contrasts:
        yield f"{title}, all pairs: {sentence(contrast.pooled)}"
        judged = [row for row in contrast.lengths if row.difference.difference is not None]
        if len(judged) > 1:
            yield from (f"  at {tokens(row.difference.length or 0)}: {sentence(row)}" for row in judged)
        by_cell = f"by task and length: {tally(contrast.cells)}" if len(contrast.cells) > 1 else ""
        more = (logprob_difference(contrast.pooled), by_cell, apart_words(contrast))
        yield from (f"  {words}" for words in more if words)
        floors.append(floor_words(contrast))
    if floors:
        yield next(filter(None, floors), "noise floor: no placebo in this run")
