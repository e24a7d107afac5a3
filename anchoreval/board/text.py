"""The result table on stdout: task rows x length columns, a panel per arm and per difference, then words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from anchoreval.board.view import Run, RunView, view
from anchoreval.board.words import NONE, column, percent, plain, sentence, shortened, tokens
from anchoreval.stats import Cell, Comparison, Place
from anchoreval.stats.fill import underfilled

COLUMN = 8
GAP = "   "
INCOMPARABLE = "Not comparable with published scores: "


@dataclass(frozen=True, slots=True)
class _Panel:
    """One block of columns: `text(task, length)` fills it, `mean(length)` its last row."""

    title: str
    lengths: tuple[int, ...]
    text: Callable[[str, int], str]
    mean: Callable[[int], str]

    @property
    def width(self) -> int:
        return max(len(self.title), COLUMN * len(self.lengths))

    def row(self, texts: Iterable[str]) -> str:
        return "".join(f"{text:>{COLUMN}}" for text in texts).rjust(self.width)


def run_table(run: Run, baseline: str | None = None, width: int = 100) -> str:
    """The whole result of a run as text: scores, differences to `baseline` (the first arm), notes."""
    shown = view(run, Path())
    base = baseline or (shown.arms[0] if shown.arms else "")
    comparisons = [shown.comparisons[arm, base] for arm in shown.arms if arm != base]
    lines = [table(list(shown.cells.values()), comparisons, shown.unmakeable, width)]
    summaries = {average.summary for average in shown.averages.values() if average.by_length}
    if len(summaries) == 1:
        lines.append(f"RULER: {summaries.pop()}")
    else:
        lines += [f"{plain(arm, 40)}: RULER {average.summary}" for arm, average in shown.averages.items()]
    if not shown.comparable:
        lines.append(INCOMPARABLE + sources(shown) + ".")
    if shown.extension:
        lines.append(shown.extension)
    if short := underfilled(run.records):
        named = (f"{plain(task, 60)} at {tokens(length)} {share:.0%}" for (task, length), share in short.items())
        lines.append(f"Prompts and answers fill, of their lengths: {'; '.join(shortened(named))}.")
    return "\n".join(lines)


def sources(shown: RunView) -> str:
    """Which source texts the package made itself: `haystack generated, qa generated`."""
    given = shown.header.get("sources")
    named = given.items() if isinstance(given, Mapping) else ()
    made = [
        f"{plain(name, 40)} {plain(value, 60)}" for name, value in named if value != "published" and name != "wordlists"
    ]
    return ", ".join(made) or "see header.json"


def table(
    cells: Sequence[Cell],
    comparisons: Sequence[Comparison] = (),
    unmakeable: Mapping[Place, str] | None = None,
    width: int = 100,
) -> str:
    """Scores x 100 per arm and differences per comparison, then what was left out, and verdicts in words."""
    why = unmakeable or {}
    tasks = list(dict.fromkeys([cell.task for cell in cells] + [task for task, _ in why]))
    lengths = tuple(sorted({cell.length for cell in cells} | {length for _, length in why}))
    panels = [_scores(arm, cells, lengths) for arm in dict.fromkeys(cell.arm for cell in cells)]
    panels += [_differences(comparison, lengths) for comparison in comparisons]
    lines = [line for group in _grouped(panels, tasks, width) for line in (*_block(group, tasks), "")]
    notes = [wrapped for note in _notes(cells, why) for wrapped in wrap(note, width, subsequent_indent="  ")]
    return "\n".join([*lines, *notes, *_verdicts(comparisons)]).rstrip()


def _scores(arm: str, cells: Sequence[Cell], lengths: tuple[int, ...]) -> _Panel:
    found = {(cell.task, cell.length): cell for cell in cells if cell.arm == arm}

    def text(task: str, length: int) -> str:
        cell = found.get((task, length))
        return NONE if cell is None else percent(cell.mean) + ("*" if cell.scored < cell.asked else " ")

    def mean(length: int) -> str:
        values = [cell.mean for (_, of), cell in found.items() if of == length and cell.mean is not None]
        return f"{percent(sum(values) / len(values))} " if values else NONE

    return _Panel(plain(arm, 60), lengths, text, mean)


def _differences(comparison: Comparison, lengths: tuple[int, ...]) -> _Panel:
    cells = {(cell.task, cell.length): cell.difference for cell in comparison.cells}
    pooled = {cell.length: cell.difference for cell in comparison.lengths}
    return _Panel(
        f"{plain(comparison.arm, 40)} minus {plain(comparison.baseline, 40)}",
        lengths,
        lambda task, length: percent(cells.get((task, length)), signed=True) + " ",
        lambda length: percent(pooled.get(length), signed=True) + " ",
    )


def _grouped(panels: Sequence[_Panel], tasks: Sequence[str], width: int) -> Iterator[list[_Panel]]:
    """Panels side by side, as many as fit in `width` characters."""
    group: list[_Panel] = []
    for panel in panels:
        used = _label_width(tasks) + sum(len(GAP) + one.width for one in (*group, panel))
        if group and used > width:
            yield group
            group = []
        group.append(panel)
    if group:
        yield group


def _block(group: Sequence[_Panel], tasks: Sequence[str]) -> list[str]:
    label, suite = _label_width(tasks), _suite(tasks)

    def line(name: str, fields: Iterable[str]) -> str:
        return GAP.join([f"{name:<{label}}", *fields]).rstrip()

    heads = [panel.row(f"{column(length)} " for length in panel.lengths) for panel in group]
    lines = [line("", [panel.title.rjust(panel.width - 1) + " " for panel in group])]
    lines += [line(suite.rstrip("/") or "task", heads), "-" * len(line("", heads))]
    for task in tasks:
        rows = [panel.row(panel.text(task, length) for length in panel.lengths) for panel in group]
        lines.append(line(plain(task.removeprefix(suite), 40), rows))
    rows = [panel.row(panel.mean(length) for length in panel.lengths) for panel in group]
    return [*lines, line("all", rows)]


def _suite(tasks: Sequence[str]) -> str:
    """`ruler/` when every task is of that suite, else nothing."""
    suites = {task.partition("/")[0] + "/" for task in tasks if "/" in task}
    return suites.pop() if len(suites) == 1 and all("/" in task for task in tasks) else ""


def _label_width(tasks: Sequence[str]) -> int:
    suite = _suite(tasks)
    return max([len(plain(task.removeprefix(suite), 40)) for task in tasks] + [len(suite), 4])


def _notes(cells: Sequence[Cell], unmakeable: Mapping[Place, str]) -> list[str]:
    short: dict[str, list[str]] = {}
    for cell in cells:
        if cell.scored < cell.asked:
            counts = f"{plain(cell.arm, 40)} {cell.scored}/{cell.asked}"
            short.setdefault(f"{plain(cell.task, 60)} at {tokens(cell.length)}", []).append(counts)
    parts = shortened(f"{place} {', '.join(counts)}" for place, counts in short.items())
    lines = [f"* scored/asked: {'; '.join(parts)}"] if parts else []
    for (task, length), why in unmakeable.items():
        lines.append(f"{NONE} {plain(task, 60)} at {tokens(length)}: {plain(why, 160)}")
    return lines


def _verdicts(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """The pooled difference of every comparison in words, and the worst length when there are several."""
    for comparison in comparisons:
        name = f"{plain(comparison.arm, 40)} vs {plain(comparison.baseline, 40)}"
        yield f"{name}, pooled: {sentence(comparison.pooled)}"
        judged = [one for one in comparison.lengths if one.difference is not None]
        if len(judged) > 1:
            yield from (f"  at {tokens(one.length or 0)}: {sentence(one)}" for one in judged)
