"""Gathered runs -> the declared board: one group per model and setting, its maps, and its rows of column values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from anchoreval.reports.board.cells import Chosen, Gap, Map, Place, Taken, choose, depth_map, task_map, versus
from anchoreval.reports.board.columns import Row, Value, columns_of, heads
from anchoreval.reports.board.definition import IDENTITY, Declared
from anchoreval.reports.board.gather import Gathered, spread_out
from anchoreval.schema import original_of


@dataclass(frozen=True, slots=True)
class Source:
    """A run that the board shows, without its scores; `path` is relative to the board, `facts` are sentences on it."""

    path: str
    name: str
    viewer: bool
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one model in one setting, put together."""

    model: str
    setting: str
    arms: tuple[str, ...]
    runs: tuple[int, ...]
    incomparable: frozenset[str]
    environments: int
    tasks: Map
    depths: Map
    repeated: int


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the board's table."""

    group: int
    model: str
    setting: str
    arm: str
    suite: str
    comparable: bool
    environments: int
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """Everything that a declared board shows of what was measured."""

    declared: Declared
    lengths: tuple[int, ...]
    heads: tuple[str, ...]
    sources: tuple[Source, ...]
    groups: tuple[Group, ...]
    lines: tuple[Line, ...]
    absent: tuple[str, ...]


def build(declared: Declared, runs: Iterable[Gathered], workers: int = 1) -> Board:
    """The board of all runs; lengths and arms that the definition leaves open are those found."""
    found = list(runs)
    definition = declared.definition
    lengths = tuple(sorted(definition.lengths or {length for run in found for _, length, _ in run.cells}))
    grouped: dict[tuple[str, str, str], list[tuple[int, Gathered]]] = {}
    for number, run in enumerate(found):
        grouped.setdefault((run.model, run.weights, run.setting), []).append((number, run))
    groups: list[Group] = []
    lines: list[Line] = []
    names = Counter((model, setting) for model, _, setting in grouped)
    work = []
    for (model, weights, setting), members in sorted(grouped.items()):
        several = names[model, setting] > 1
        work.append((f"{model} ({weights})" if several else model, setting, members))
    for group, rows in spread_out(partial(_group, declared, lengths), work, workers):
        lines += [replace(line, group=len(groups)) for line in rows]
        groups.append(group)
    return Board(
        declared,
        lengths,
        heads(definition.columns, lengths, definition.baseline),
        tuple(Source(run.path, run.name, run.viewer, run.facts) for run in found),
        tuple(groups),
        tuple(_ordered(lines, declared, lengths)),
        tuple(_absent(declared, found)),
    )


def _group(
    declared: Declared, lengths: tuple[int, ...], work: tuple[str, str, Sequence[tuple[int, Gathered]]]
) -> tuple[Group, list[Line]]:
    model, setting, members = work
    definition, taken = declared.definition, choose(members)
    present = {arm for arms in taken.values() for arm in arms}
    wished = definition.arms or [definition.baseline, *sorted(present - {definition.baseline})]
    arms = tuple(arm for arm in wished if arm in present)
    margin = definition.margin / 100
    offers = [(task, length, arm) for _, run in members for task, length, arm in run.cells if arm in arms]
    runs = dict(members)

    def stopped(run: int, arm: str, base: str, task: str, length: int) -> str:
        unruled = original_of(base) is not None or runs[run].stopped.get(base)
        said = {} if unruled else runs[run].stopped.get(arm, {})
        return said.get((task, length), "")

    group = Group(
        model,
        setting,
        arms,
        tuple(number for number, _ in members),
        frozenset(_incomparable(taken, runs)),
        max(run.environments for run in runs.values()),
        task_map(taken, declared.tasks, arms, margin, stopped),
        depth_map(taken, arms, margin),
        len(offers) - len(set(offers)),
    )
    lines = []
    pooled = _pooled(taken, declared.suites, arms, definition.baseline, margin)
    for suite, tasks in declared.suites.items():
        gaps = {arm: gap for (of, arm), gap in pooled.items() if of == suite}
        for arm in arms:
            means = {(p, length): mean for (p, length, of), mean in group.tasks.means.items() if of == arm}
            cells = {(group.tasks.rows[p], length): mean for (p, length), mean in means.items()}
            shown = {key: mean for key, mean in cells.items() if key[0] in tasks}
            row = Row(arm, tasks, lengths, shown, gaps.get(arm), definition.baseline)
            if row.means:
                values = columns_of(row, definition.columns)
                comparable = not group.incomparable & {task for task, _ in row.means}
                several = max(runs[mean.run].environments for mean in row.means.values())
                lines.append(Line(0, model, setting, arm, suite, comparable, several, values))
    return group, lines


def _incomparable(taken: Taken, runs: Mapping[int, Gathered]) -> Iterator[str]:
    """The tasks that a group shows and whose scores do not stand beside published ones."""
    for (task, _), of in taken.items():
        if any(task in said or "all tasks" in said for said in (runs[one.run].incomparable for one in of.values())):
            yield task


def _pooled(
    taken: Taken, suites: Mapping[str, Sequence[str]], arms: Sequence[str], baseline: str, margin: float
) -> dict[tuple[str, str], Gap]:
    """(suite, arm) -> its difference to the baseline over all pairs; the suites of an arm are asked together."""
    slots: dict[str, dict[str, dict[Place, Chosen]]] = {suite: {} for suite in suites}
    for place, of in sorted(taken.items()):
        for suite, tasks in suites.items():
            for arm, one in of.items() if place[0] in tasks else ():
                slots[suite].setdefault(arm, {})[place] = one
    pairs = [(arm, baseline) for arm in arms if arm != baseline]
    return {(suite, arm): gap for (suite, arm, _), gap in versus(slots, pairs, lambda _, whole: whole, margin).items()}


def _ordered(lines: Sequence[Line], declared: Declared, lengths: Sequence[int]) -> list[Line]:
    """The lines by the definition's `order`, the first name first; what has no value, or a partial one, last."""
    found = list(lines)
    names = heads(declared.definition.columns, lengths, declared.definition.baseline, plain_names=True)
    for name in reversed(declared.definition.order):
        down, column = name.startswith("-"), name.removeprefix("-")
        if column in IDENTITY:
            found.sort(key=lambda line: str(getattr(line, column)), reverse=down)
            continue
        at = names.index(column)
        found.sort(key=lambda line: _rank(line.values[at].key, down))
    return found


def _rank(key: float | str | None, down: bool) -> tuple[bool, float, str]:
    if isinstance(key, str):
        return False, 0.0, key
    return key is None, 0.0 if key is None else -key if down else key, ""


def _absent(declared: Declared, runs: Sequence[Gathered]) -> Iterable[str]:
    """What the definition names and no run holds, in words."""
    definition = declared.definition
    keys = {key for run in runs for key in run.cells}
    wanted = (
        ("arm", definition.arms or (), {arm for _, _, arm in keys}),
        ("length", definition.lengths or (), {length for _, length, _ in keys}),
        ("model", definition.models or (), {run.model for run in runs}),
        ("task", declared.tasks, {task for task, _, _ in keys}),
    )
    for kind, names, held in wanted:
        missing = [str(name) for name in names if name not in held]
        if missing:
            yield f"{kind}{'s' * (len(missing) > 1)} {', '.join(missing)}"
