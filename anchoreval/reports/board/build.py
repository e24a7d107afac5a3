"""Gathered runs -> the declared board: one group per model and setting, its maps, and its rows of column values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from anchoreval.reports.board.cells import Gap, Map, Taken, choose, depth_map, gaps_of, grid_maps, task_map
from anchoreval.reports.board.columns import Row, Value, columns_of, heads
from anchoreval.reports.board.definition import IDENTITY, Declared
from anchoreval.reports.board.gather import WORTH_A_PROCESS, Gathered, spread_out
from anchoreval.reports.board.models import (
    Members,
    averaged,
    baseline_of,
    gaps_across,
    over_seeds,
    over_words,
    variant_of,
)
from anchoreval.reports.board.store import Spool
from anchoreval.reports.board.view import RunView
from anchoreval.reports.rows import TRAINED
from anchoreval.stats import Cells, Compared, Slots, Subject, Trained, labels, variant_names
from anchoreval.stats.seeds import missing_seeds


@dataclass(frozen=True, slots=True)
class Source:
    """A run that the board shows, without its scores; `path` is relative to the board, `facts` are sentences on it.

    `viewer` and `page` say whether the run's folder holds its samples and a board of its own.
    """

    path: str
    name: str
    viewer: bool
    facts: tuple[str, ...]
    page: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one model in one setting, merged. `names` holds the labels of its arms.

    On a board of runs a group is one run, with its `view` and its maps by asked depth (`grids`).
    """

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
    lengths: tuple[int, ...]
    baseline: str
    view: RunView | None = None
    grids: Mapping[str, Map] = field(default_factory=dict)
    trained: Trained | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the board's table; `beside` is the setting without the label of a run.

    `row` is what its values are made of; it has the means for trained models alone, whose rows over seeds need them.
    """

    group: int
    model: str
    setting: str
    arm: str
    suite: str
    comparable: bool
    environments: int
    values: tuple[Value, ...]
    row: Row
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """Everything that a declared board shows about measured runs."""

    declared: Declared
    lengths: tuple[int, ...]
    heads: tuple[str, ...]
    sources: tuple[Source, ...]
    groups: Sequence[Group]
    lines: tuple[Line, ...]
    absent: tuple[str, ...]


def build(declared: Declared, runs: Iterable[Gathered], workers: int = 1, checkpoints: bool = False) -> Board:
    """Return the board of all runs. Lengths and arms that the definition leaves open are those of the runs.

    A variant with several seeds has a row over them too. With `checkpoints`, those of a training are averaged.
    """
    gathered = list(runs)
    declared = _with_training(declared, any(run.trained for run in gathered))
    definition = declared.definition
    run_lengths = {length for run in gathered for places in run.places.values() for _, length in places}
    lengths = tuple(sorted(definition.lengths or run_lengths))
    grouped: dict[tuple[str, str], dict[Subject, list[tuple[int, Gathered]]]] = {}
    for number, run in enumerate(gathered):
        by_subject = grouped.setdefault((run.subject.model, run.setting), {})
        by_subject.setdefault(replace(run.subject, arm=run.subject.model), []).append((number, run))
    lines: list[Line] = []
    work = [
        (name, setting, by_subject[subject])
        for (_, setting), by_subject in grouped.items()
        for subject, name in labels(by_subject).items()
    ]
    work.sort(key=lambda item: (item[2][0][1].subject.model, item[2][0][1].subject.weights, item[1], item[0]))
    every = [members for *_, members in work]
    compared = [(*item, baseline_of(definition.baseline_model, item[2][0][1], every)) for item in work]
    whole = any(run.view for run in gathered)
    groups: list[Group] | Spool[Group] = Spool() if len(work) >= WORTH_A_PROCESS and not whole else []
    for group, rows in spread_out(partial(_group, declared, lengths), compared, workers):
        lines += [replace(line, group=len(groups)) for line in rows]
        groups.append(group)
    return Board(
        declared,
        lengths,
        heads(
            definition.columns, lengths, definition.baseline or "baseline", declared.averages, definition.baseline_model
        ),
        tuple(Source(run.path, run.name, run.viewer, run.facts, run.page) for run in gathered),
        groups,
        tuple(_ordered([*_over_seeds(lines, declared, checkpoints), *lines], declared, lengths)),
        () if whole else tuple(_absent(declared, gathered)),
    )


def _with_training(declared: Declared, trained: bool) -> Declared:
    """Return the definition with the columns on training in front if a model has a training card, else without them."""
    definition = declared.definition
    others = [name for name in definition.columns if name not in TRAINED]
    named = len(others) < len(definition.columns)
    if named if trained else not named:
        return declared
    columns = [*(TRAINED if trained else ()), *others]
    return replace(declared, definition=definition.model_copy(update={"columns": columns}))


def _group(
    declared: Declared, lengths: tuple[int, ...], work: tuple[str, str, Members, Members | None]
) -> tuple[Group, list[Line]]:
    model, setting, members, base = work
    definition, taken, runs = declared.definition, choose(members), dict(members)
    view = members[0][1].view
    present = sorted(
        {arm for arms in taken.values() for arm in arms}, key=lambda subject: (subject.arm, subject.outside)
    )
    wanted = definition.arms or dict.fromkeys([definition.baseline, *(subject.arm for subject in present)])
    arms = tuple(view.subjects if view else (one for name in wanted for one in present if one.arm == name))
    names, margin = labels(arms if view else present), definition.margin / 100
    offers = [
        (subject, place)
        for _, run in members
        for subject, places in run.places.items()
        if subject in arms
        for place in places
    ]
    merged = {arm: {place: taken[place][arm] for place in sorted(taken) if arm in taken[place]} for arm in names}
    compared = view.compared if view else Compared(merged, margin, names, mixed=True)
    rows = view.tasks if view else [task for task in declared.tasks if any(place[0] == task for place in taken)]
    group = Group(
        model,
        setting,
        arms,
        names,
        tuple(number for number, _ in members),
        frozenset(_incomparable(taken, runs)),
        max(run.environments for run in runs.values()),
        task_map(taken, rows, arms, compared),
        depth_map(taken, arms, names, margin),
        len(offers) - len(set(offers)),
        view.lengths if view else lengths,
        definition.baseline or next((subject.arm for subject in arms), ""),
        view,
        grid_maps(view.records, view.tasks, arms, names) if view else {},
        members[0][1].trained,
    )
    lines = []
    pooled = _pooled(taken, declared.suites, group, margin)
    first = members[0][1]
    silent = base is not None and base[0][1].tokenizer != first.tokenizer
    across = gaps_across(taken, choose(base), declared.suites, margin, silent) if base else {}
    for suite, tasks in declared.suites.items():
        gaps = {arm: gap for (of, arm), gap in pooled.items() if of == suite}
        for arm in arms:
            means = {(p, length): mean for (p, length, of), mean in group.tasks.means.items() if of == arm}
            cells = {(group.tasks.rows[p], length): mean for (p, length), mean in means.items()}
            shown = {key: mean for key, mean in cells.items() if key[0] in tasks}
            to_model = across.get((suite, arm.arm))
            row = Row(arm.arm, tasks, lengths, shown, gaps.get(arm), group.baseline, to_model, first.trained)
            if row.means:
                values = columns_of(row, definition.columns, declared.averages)
                comparable = not group.incomparable & {task for task, _ in row.means}
                most_environments = max(runs[mean.run].environments for mean in row.means.values())
                kept = row if first.trained else replace(row, means={})
                told = model, setting, names[arm], suite, comparable, most_environments, values, kept, first.beside
                lines.append(Line(0, *told))
    return group, lines


def _over_seeds(lines: Sequence[Line], declared: Declared, checkpoints: bool) -> Iterator[Line]:
    """Yield a line for each arm and suite of every variant that has several seeds, or checkpoints to be averaged."""
    definition, members = declared.definition, dict[tuple[Trained, str, str, str], list[Line]]()
    for line in lines:
        if line.row.trained:
            key = variant_of(line.row.trained, checkpoints), line.beside, line.suite, line.row.arm
            members.setdefault(key, []).append(line)
    seeds = {key: {line.row.trained.seed for line in of if line.row.trained} for key, of in members.items()}
    names = variant_names(dict.fromkeys(variant for variant, *_ in members))
    for key, of in members.items():
        if len(of) < 2:
            continue
        rows, name = [line.row for line in of], names[key[0]]
        row = over_seeds(rows, definition.margin / 100)
        base = {names[each[0]]: own for each, own in seeds.items() if each[0].name == definition.baseline_model
                and each[1:] == key[1:]}  # fmt: skip
        said = f"{name}, {over_words(rows)}"
        if lacking := missing_seeds({name: seeds[key]} | base):
            said += f" ({lacking})"
        values = columns_of(row, definition.columns, declared.averages)
        yield replace(
            of[0],
            model=said,
            setting=key[1],
            comparable=all(line.comparable for line in of),
            environments=max(line.environments for line in of),
            values=averaged(rows, [line.values for line in of], values),
            row=row,
        )


def _incomparable(taken: Taken, runs: Mapping[int, Gathered]) -> Iterator[str]:
    """Yield the tasks that a group shows and whose scores are not comparable with published ones."""
    for (task, _), by_arm in taken.items():
        if any(
            task in reasons or "all tasks" in reasons
            for reasons in (runs[scores.run].incomparable for scores in by_arm.values())
        ):
            yield task


def _pooled(
    taken: Taken, suites: Mapping[str, Sequence[str]], group: Group, margin: float
) -> dict[tuple[str, Subject], Gap]:
    """Return (suite, arm) -> difference to the baseline over all pairs, with Holm's correction over an arm's suites."""
    slots: dict[str, dict[Subject, Cells]] = {}
    for suite, tasks in suites.items():
        places = [place for place in sorted(taken) if place[0] in tasks]
        slots[suite] = {arm: {place: taken[place][arm] for place in places if arm in taken[place]}
                        for arm in group.names}  # fmt: skip
    pairs = [(arm, base) for base in group.arms if base.arm == group.baseline for arm in group.arms if arm != base]
    gaps = gaps_of(Slots(slots, group.names, margin, mixed=True), pairs)
    return {(suite, arm): gap for (suite, arm, _), gap in gaps.items()}


def _ordered(lines: Sequence[Line], declared: Declared, lengths: Sequence[int]) -> list[Line]:
    """Return the lines sorted by the definition's `order`, first name first.

    Lines whose value is missing or partial come last.
    """
    ordered = list(lines)
    names = heads(declared.definition.columns, lengths, declared.definition.baseline)
    for name in reversed(declared.definition.order):
        down, column = name.startswith("-"), name.removeprefix("-")
        if column in IDENTITY:
            ordered.sort(key=lambda line: str(getattr(line, column)), reverse=down)
            continue
        position = names.index(column)
        ordered.sort(key=lambda line: _rank(line.values[position].key, down))
    return ordered


def _rank(key: float | str | None, down: bool) -> tuple[bool, float, str]:
    if isinstance(key, str):
        return False, 0.0, key
    return key is None, 0.0 if key is None else -key if down else key, ""


def _absent(declared: Declared, runs: Sequence[Gathered]) -> Iterable[str]:
    """Yield, in words, what the definition names and no run holds."""
    definition = declared.definition
    keys = {(*place, one.arm) for run in runs for one, places in run.places.items() for place in places}
    variants = {run.trained.name for run in runs if run.trained}
    wanted = (
        ("arm", definition.arms or (), {arm for _, _, arm in keys}),
        ("length", definition.lengths or (), {length for _, length, _ in keys}),
        ("model", definition.models or (), models := {run.subject.model for run in runs}),
        ("baseline model", filter(None, [definition.baseline_model]), models | variants),
        ("task", declared.tasks, {task for task, _, _ in keys}),
    )
    for kind, names, present in wanted:
        missing = [str(name) for name in names if name not in present]
        if missing:
            yield f"{kind}{'s' * (len(missing) > 1)} {', '.join(missing)}"
