"""The result table on stdout: rows of tasks, columns of lengths, a panel per arm and per difference, then sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    column,
    floor_words,
    logprob_difference,
    percent,
    plain,
    sentence,
    shortened,
    tally,
    tokens,
)
from anchoreval.stats import Cell, Contrast, Difference, Place
from anchoreval.stats.cells import underfilled

COLUMN = 8
GAP = 2


@dataclass(frozen=True, slots=True)
class _Panel:
    """One block of columns: `text(task, length)` fills its cells, `mean(length)` its last row."""

    title: str
    lengths: tuple[int, ...]
    text: Callable[[str, int], str]
    mean: Callable[[int], str]

    def lines(self, tasks: Sequence[str]) -> list[str]:
        """Return the block below its title, with a place for a star behind each number."""
        rows = [[f"{column(length)} " for length in self.lengths]]
        rows += [[self.text(task, length) for length in self.lengths] for task in tasks]
        rows.append([self.mean(length) for length in self.lengths])
        lines = table([[f"{text:>{COLUMN - 2}}" for text in row] for row in rows], ())
        return [f"{self.title} ", *lines]


def run_table(run: Run, baseline: str | None = None, width: int = 100) -> str:
    """Return the result of a run as text: scores, differences to `baseline` (or the first arm), verdicts, notes."""
    shown = view(run, Path())
    base = baseline or (shown.arms[0] if shown.arms else "")
    contrasts = [shown.contrasts[arm, base] for arm in shown.arms if arm != base]
    lines = [result_table(list(shown.cells.values()), contrasts, shown.unmakeable, width)]
    lines += shown.ruler_words
    notes = [line.text for line in sorted(shown.outcomes, key=lambda line: not line.quiet)]
    notes += shown.notes
    if short := underfilled(run.records):
        named = (f"{plain(task, 60)} at {tokens(length)} {share:.0%}" for (task, length), share in short.items())
        notes.append(f"Prompts and answers fill, of their lengths: {'; '.join(shortened(named))}.")
    return "\n".join(lines + [line for note in notes for line in wrap(note, width, subsequent_indent="  ")])


def result_table(
    cells: Sequence[Cell],
    contrasts: Sequence[Contrast] = (),
    unmakeable: Mapping[Place, str] | None = None,
    width: int = 100,
) -> str:
    """Return scores x 100 per arm and differences per contrast, then what was left out, and verdicts in words."""
    why = unmakeable or {}
    tasks = list(dict.fromkeys([cell.task for cell in cells] + [task for task, _ in why]))
    lengths = tuple(sorted({cell.length for cell in cells} | {length for _, length in why}))
    panels = [_scores(arm, cells, lengths, why) for arm in dict.fromkeys(cell.arm for cell in cells)]
    panels += [_differences(contrast, lengths) for contrast in contrasts]
    lines = list(_blocks(panels, tasks, width))
    notes = [wrapped for note in _notes(cells, why) for wrapped in wrap(note, width, subsequent_indent="  ")]
    return "\n".join([*lines, *notes, *_verdicts(contrasts)]).rstrip()


def _scores(arm: str, cells: Sequence[Cell], lengths: tuple[int, ...], unmakeable: Mapping[Place, str]) -> _Panel:
    arm_cells = {(cell.task, cell.length): cell for cell in cells if cell.arm == arm}

    def text(task: str, length: int) -> str:
        cell = arm_cells.get((task, length))
        return NONE if cell is None else percent(cell.mean) + _mark(cell.lost)

    def mean(length: int) -> str:
        over = means_over([cell for (_, of), cell in arm_cells.items() if of == length])
        short = over.lost or any(of == length for _, of in unmakeable)
        return NONE if over.mean is None else percent(over.mean) + _mark(short)

    return _Panel(plain(arm, 60), lengths, text, mean)


def _mark(short: int | bool) -> str:
    """Return a star for a number from which something is left out, else a blank."""
    return "*" if short else " "


@dataclass(frozen=True, slots=True)
class Over:
    """A mean over tasks: of scored samples, with the lost as wrong, and how many samples and whole tasks were lost."""

    mean: float | None
    as_wrong: float
    lost: int
    lost_tasks: int


def means_over(cells: Sequence[Cell]) -> Over:
    """Return the mean over the tasks of one arm and length."""
    means = [cell.mean for cell in cells if cell.mean is not None]
    return Over(
        fmean(means) if means else None,
        fmean(cell.as_wrong for cell in cells) if cells else 0.0,
        sum(cell.lost for cell in cells),
        len(cells) - len(means),
    )


def _differences(contrast: Contrast, lengths: tuple[int, ...]) -> _Panel:
    cells = {(row.difference.task, row.difference.length): row.difference for row in contrast.cells}
    pooled = {row.difference.length: row.difference for row in contrast.lengths}

    def shown(difference: Difference | None) -> str:
        if difference is None or difference.difference is None:
            return NONE + " "
        return percent(difference.difference, signed=True) + _mark(difference.left_out)

    return _Panel(
        title(contrast),
        lengths,
        lambda task, length: shown(cells.get((task, length))),
        lambda length: shown(pooled.get(length)),
    )


def _grouped(panels: Sequence[Sequence[str]], room: int) -> Iterator[list[Sequence[str]]]:
    """Yield panels side by side, as many as fit in `room` characters."""
    group: list[Sequence[str]] = []
    for panel in panels:
        used = sum(GAP + max(map(len, member)) for member in (*group, panel))
        if group and used > room:
            yield group
            group = []
        group.append(panel)
    if group:
        yield group


def _blocks(panels: Sequence[_Panel], tasks: Sequence[str], width: int) -> Iterator[str]:
    suite = _suite(tasks)
    names = [suite.rstrip("/") or "task", *(plain(task.removeprefix(suite), 40) for task in tasks), "all"]
    room = width - max(map(len, names))
    for group in _grouped([panel.lines(tasks) for panel in panels], room):
        lines = table(list(zip(["", *names], *group, strict=True)))
        yield from (*lines[:2], "-" * max(map(len, lines)), *lines[2:], "")


def _suite(tasks: Sequence[str]) -> str:
    """Return `ruler/` if every task is of that suite, else an empty string."""
    suites = {task.partition("/")[0] + "/" for task in tasks if "/" in task}
    return suites.pop() if len(suites) == 1 and all("/" in task for task in tasks) else ""


def _notes(cells: Sequence[Cell], unmakeable: Mapping[Place, str]) -> Iterator[str]:
    """Yield what the stars mean: how much was scored, and the mean if the lost count as wrong."""
    short: dict[str, list[str]] = {}
    for cell in cells:
        if cell.lost:
            counts = f"{plain(cell.arm, 40)} {cell.scored}/{cell.asked} ({percent(cell.as_wrong)})"
            short.setdefault(f"{plain(cell.task, 60)} at {tokens(cell.length)}", []).append(counts)
    if parts := shortened(f"{place} {', '.join(counts)}" for place, counts in short.items()):
        yield f"* scored/asked, and the mean with the lost as wrong in brackets: {'; '.join(parts)}"
    whole = [
        f"{tokens(length)} {plain(arm, 40)} {percent(over.mean)}, {percent(over.as_wrong)} with the lost as wrong"
        + (f", {over.lost_tasks} of {len(column_cells)} tasks lost whole" if over.lost_tasks else "")
        for (length, arm), column_cells in _by_column(cells).items()
        if (over := means_over(column_cells)).lost
    ]
    if whole:
        yield f"* all: a mean of what was scored: {'; '.join(shortened(whole))}"
    for length in dict.fromkeys(length for _, length in unmakeable):
        missing = sum(of == length for _, of in unmakeable)
        present = len({cell.task for cell in cells if cell.length == length})
        yield f"* all at {tokens(length)}: a mean over {present} of {present + missing} tasks"
    for (task, length), why in unmakeable.items():
        yield f"{NONE} {plain(task, 60)} at {tokens(length)}: {plain(why, 160)}"


def _by_column(cells: Sequence[Cell]) -> dict[tuple[int, str], list[Cell]]:
    by_column: dict[tuple[int, str], list[Cell]] = {}
    for cell in cells:
        by_column.setdefault((cell.length, cell.arm), []).append(cell)
    return by_column


def _verdicts(contrasts: Sequence[Contrast]) -> Iterator[str]:
    """Yield the verdict of every contrast: over all pairs, at each of several lengths, and over its cells."""
    for contrast in contrasts:
        yield f"{title(contrast)}, all pairs: {sentence(contrast.pooled)}"
        judged = [row for row in contrast.lengths if row.difference.difference is not None]
        if len(judged) > 1:
            yield from (f"  at {tokens(row.difference.length or 0)}: {sentence(row)}" for row in judged)
        if logprob := logprob_difference(contrast.pooled):
            yield f"  {logprob}"
        if len(contrast.cells) > 1:
            yield f"  by task and length: {tally(contrast.cells)}"
        if apart := apart_words(contrast):
            yield f"  {apart}"
    if contrasts:
        yield next(filter(None, map(floor_words, contrasts)), "noise floor: no placebo in this run")


def title(contrast: Contrast) -> str:
    """Return `fp32 minus bf16`."""
    return f"{plain(contrast.arm, 40)} minus {plain(contrast.baseline, 40)}"
