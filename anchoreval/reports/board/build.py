"""Gathered runs -> the declared board: one group per model and setting, its maps, and its rows of column values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from anchoreval.reports.board.cells import Gap, Map, Taken, choose, depth_map, gaps_of, task_map
from anchoreval.reports.board.columns import Row, Value, columns_of, heads
from anchoreval.reports.board.definition import IDENTITY, Declared
from anchoreval.reports.board.gather import Gathered, spread_out
from anchoreval.stats import Cells, Slots, Subject, labels


@dataclass(frozen=True, slots=True)
class Source:
    """A run that the board shows, without its scores; `path` is relative to the board, `facts` are sentences on it."""

    path: str
    name: str
    viewer: bool
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one model in one setting, put together; `names` is what its arms are called."""

    model: str
    setting: str
    arms: tuple[Subject, ...]
    names: Mapping[Subject, str]
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
    held = {length for run in found for cells in run.cells.values() for _, length in cells}
    lengths = tuple(sorted(definition.lengths or held))
    grouped: dict[tuple[str, str], dict[Subject, list[tuple[int, Gathered]]]] = {}
    for number, run in enumerate(found):
        alike = grouped.setdefault((run.subject.model, run.setting), {})
        alike.setdefault(replace(run.subject, arm=run.subject.model), []).append((number, run))
    groups: list[Group] = []
    lines: list[Line] = []
    work = [
        (name, setting, alike[subject])
        for (_, setting), alike in grouped.items()
        for subject, name in labels(alike).items()
    ]
    work.sort(key=lambda one: (one[2][0][1].subject.model, one[2][0][1].subject.weights, one[1], one[0]))
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
    present = sorted({arm for arms in taken.values() for arm in arms}, key=lambda one: (one.arm, one.outside))
    wished = definition.arms or dict.fromkeys([definition.baseline, *(one.arm for one in present)])
    arms = tuple(one for name in wished for one in present if one.arm == name)
    names, margin, runs = labels(present), definition.margin / 100, dict(members)
    offers = [(one, place) for _, run in members for one, cells in run.cells.items() if one in arms for place in cells]
    group = Group(
        model,
        setting,
        arms,
        names,
        tuple(number for number, _ in members),
        frozenset(_incomparable(taken, runs)),
        max(run.environments for run in runs.values()),
        task_map(taken, declared.tasks, arms, names, margin),
        depth_map(taken, arms, names, margin),
        len(offers) - len(set(offers)),
    )
    lines = []
    pooled = _pooled(taken, declared.suites, group, definition.baseline, margin)
    for suite, tasks in declared.suites.items():
        gaps = {arm: gap for (of, arm), gap in pooled.items() if of == suite}
        for arm in arms:
            means = {(p, length): mean for (p, length, of), mean in group.tasks.means.items() if of == arm}
            cells = {(group.tasks.rows[p], length): mean for (p, length), mean in means.items()}
            shown = {key: mean for key, mean in cells.items() if key[0] in tasks}
            row = Row(arm.arm, tasks, lengths, shown, gaps.get(arm), definition.baseline)
            if row.means:
                values = columns_of(row, definition.columns)
                comparable = not group.incomparable & {task for task, _ in row.means}
                several = max(runs[mean.run].environments for mean in row.means.values())
                lines.append(Line(0, model, setting, names[arm], suite, comparable, several, values))
    return group, lines


def _incomparable(taken: Taken, runs: Mapping[int, Gathered]) -> Iterator[str]:
    """The tasks that a group shows and whose scores do not stand beside published ones."""
    for (task, _), of in taken.items():
        if any(task in said or "all tasks" in said for said in (runs[one.run].incomparable for one in of.values())):
            yield task


def _pooled(
    taken: Taken, suites: Mapping[str, Sequence[str]], group: Group, baseline: str, margin: float
) -> dict[tuple[str, Subject], Gap]:
    """(suite, arm) -> its difference to the baseline over all pairs; the suites of an arm are asked together."""
    slots: dict[str, dict[Subject, Cells]] = {}
    for suite, tasks in suites.items():
        places = [place for place in sorted(taken) if place[0] in tasks]
        slots[suite] = {arm: {place: taken[place][arm] for place in places if arm in taken[place]}
                        for arm in group.names}  # fmt: skip
    pairs = [(arm, base) for base in group.arms if base.arm == baseline for arm in group.arms if arm != base]
    gaps = gaps_of(Slots(slots, group.names, margin, mixed=True), pairs)
    return {(suite, arm): gap for (suite, arm, _), gap in gaps.items()}


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
    keys = {(*place, one.arm) for run in runs for one, cells in run.cells.items() for place in cells}
    wanted = (
        ("arm", definition.arms or (), {arm for _, _, arm in keys}),
        ("length", definition.lengths or (), {length for _, length, _ in keys}),
        ("model", definition.models or (), {run.subject.model for run in runs}),
        ("task", declared.tasks, {task for task, _, _ in keys}),
    )
    for kind, names, held in wanted:
        missing = [str(name) for name in names if name not in held]
        if missing:
            yield f"{kind}{'s' * (len(missing) > 1)} {', '.join(missing)}"
