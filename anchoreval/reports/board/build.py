"""Gathered runs -> the declared board: one group per model and setting, its maps, and its rows of column values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from operator import attrgetter
from typing import TypeVar

from anchoreval.records.header import Header
from anchoreval.reports.board.cells import (
    Gap,
    Map,
    RowCells,
    Taken,
    Value,
    columns_of,
    depth_map,
    gaps_of,
    grid_maps,
    task_map,
)
from anchoreval.reports.board.definition import BY_LENGTH, COLUMNS, IDENTITY, Declared
from anchoreval.reports.board.models import gaps_across, lines_over_seeds
from anchoreval.reports.board.store import Spool
from anchoreval.reports.board.view import RunView
from anchoreval.reports.table import TRAINED
from anchoreval.reports.words import plain, tokens
from anchoreval.stats import Cells, Compared, Place, Scores, Slots, Subject, Trained, labels

WORTH_A_PROCESS, CHUNK = 40, 10  # items
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a board keeps of one run; `path` is the folder relative to the board's.

    `subject` is what its arms have in common. `setting` describes what runs of one row share, including the sources of
    their texts; `beside` is the same without the label of one of several runs. `trained` says how the model was
    trained. `incomparable` is as in records.Header, `changed` as in records.Run, `facts` are sentences on the run.
    `places` are the cells of each arm, placebos included; `load` returns their scores, anew at each call. `viewer` and
    `page` say whether the run's folder holds its samples and a board of its own. `view` is a run that was read whole,
    which a board of runs shows with its samples.
    """

    path: str
    name: str
    subject: Subject
    setting: str
    beside: str
    created: str
    incomparable: Mapping[str, str]
    facts: tuple[str, ...]
    environments: int
    tokenizer: str
    trained: Trained | None
    places: Mapping[Subject, tuple[Place, ...]]
    load: Callable[[], Mapping[Subject, Cells]]
    changed: str = ""
    viewer: bool = False
    page: bool = False
    view: RunView | None = None

    @classmethod
    def of(
        cls, header: Header, path: str, name: str, places: Mapping[Subject, tuple[Place, ...]],
        load: Callable[[], Mapping[Subject, Cells]], changed: str, viewer: bool = False, page: bool = False,
        view: RunView | None = None,
    ) -> Gathered:  # fmt: skip
        """Return a run by its header, with its cells."""
        subject = header.subject("", name)
        source_words = (f"{key} {value}" for key, value in sorted(header.sources.items()) if key != "wordlists")
        words = (subject.dtype, subject.kernel, subject.form, header.outside_words, *source_words)
        setting = ", ".join(filter(None, words))
        form, anchor = header.form_words, header.anchor_words
        facts = (
            f"prompts: {form}" if form else "",
            header.raw_words,
            f"anchor: {anchor}" if anchor else "",
            header.environment_words,
            f"changed: {changed}" if changed else "",
        )
        return cls(
            path=path, name=name, subject=replace(subject, run=""), setting=setting, beside=setting,
            created=header.created, incomparable=view.incomparable if view else header.incomparable(),
            facts=tuple(filter(None, facts)), environments=max(1, len(header.environments)),
            tokenizer=str(header.tokenizer.get("sha256") or ""), trained=header.trained,
            places=places, load=load, changed=changed, viewer=viewer, page=page, view=view,
        )  # fmt: skip


def gathered_view(view: RunView, label: str = "") -> Gathered:
    """Return a run that was read whole; one of several on a board is a setting of its own, told by its label."""
    places = {subject: tuple(cells) for subject, cells in view.subjects.items()}
    load: Callable[[], Mapping[Subject, Cells]] = partial(dict, view.subjects)
    run = Gathered.of(view.header, view.path, view.name, places, load, view.changed, view.viewer, view=view)
    return of_its_own(run, label) if label else run


def of_its_own(run: Gathered, label: str) -> Gathered:
    """Return the run as a setting of its own, told by its label, so that it is merged with no other run."""
    return replace(run, setting=", ".join(filter(None, (run.setting, f"run {label}"))))


Members = Sequence[tuple[int, Gathered]]


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
    view: RunView | None
    grids: Mapping[str, Map]
    trained: Trained | None


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
    row: RowCells
    beside: str


@dataclass(frozen=True, slots=True)
class Board:
    """Everything that a declared board shows about measured runs; `names` and `heads` are those of its columns."""

    declared: Declared
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    heads: tuple[str, ...]
    runs: Sequence[Gathered]
    groups: Iterable[Group]
    lines: tuple[Line, ...]
    absent: tuple[str, ...]


def build(declared: Declared, runs: Iterable[Gathered], workers: int = 1, checkpoints: bool = False) -> Board:
    """Return the board of all runs. Lengths and arms that the definition leaves open are those of the runs.

    A variant with several seeds has a row over them too. With `checkpoints`, those of a training are averaged.
    """
    gathered, definition = list(runs), declared.definition
    whole, trained = any(run.view for run in gathered), any(run.trained for run in gathered)
    others = [name for name in definition.columns if name not in TRAINED]
    named = len(others) < len(definition.columns)
    if trained != named:  # columns on training stand in front if a model has a training card, else nowhere
        definition = definition.model_copy(update={"columns": [*TRAINED, *others] if trained else others})
        declared = replace(declared, definition=definition)
    run_lengths = {length for run in gathered for places in run.places.values() for _, length in places}
    lengths = tuple(sorted(definition.lengths or run_lengths))

    # runs of one model in one setting are a group; models of one name are told apart by their labels
    grouped: dict[tuple[str, str], dict[Subject, list[tuple[int, Gathered]]]] = {}
    for number, run in enumerate(gathered):
        by_subject = grouped.setdefault((run.subject.model, run.setting), {})
        by_subject.setdefault(replace(run.subject, arm=run.subject.model), []).append((number, run))
    named_groups = [
        (subject.model, subject.weights, setting, name, by_subject[subject])
        for (_, setting), by_subject in grouped.items()
        for subject, name in labels(by_subject).items()
    ]
    named_groups.sort(key=lambda item: item[:4])
    every, base = [members for *_, members in named_groups], definition.baseline_model
    work = [
        (number, name, setting, members, baseline_of(base, members[0][1], every) if base else None)
        for number, (_, _, setting, name, members) in enumerate(named_groups)
    ]

    groups: list[Group] | Spool[Group] = Spool() if len(work) >= WORTH_A_PROCESS and not whole else []
    lines: list[Line] = []
    for group, of_group in spread_out(partial(_group, declared, lengths), work, workers):
        groups.append(group)
        lines += of_group
    if trained:
        lines = [*lines_over_seeds(lines, declared, checkpoints), *lines]

    names, titles = list[str](), list[str]()  # of the columns, one for every value of a row
    baseline = plain(definition.baseline or "baseline", 60)
    for name in definition.columns:
        if name == BY_LENGTH:
            texts = [tokens(length) for length in lengths]
        elif name in COLUMNS:
            texts = [COLUMNS[name][0].format(baseline=baseline, model=plain(base or "the first model", 60))]
        else:
            texts = [plain(declared.averages[name].title, 60)]
        names += [name] * len(texts)
        titles += texts
    for name in reversed(definition.order):  # the first name decides
        down, column = name.startswith("-"), name.removeprefix("-")
        if column in IDENTITY:
            lines.sort(key=attrgetter(column), reverse=down)
        else:
            lines.sort(key=partial(_rank, names.index(column), down))
    absent = () if whole else tuple(_absent(declared, gathered))
    return Board(declared, lengths, tuple(names), tuple(titles), gathered, groups, tuple(lines), absent)


def _rank(position: int, down: bool, line: Line) -> tuple[bool, float, str]:
    """Return the place of a line in the order by a column; lines whose value is missing or partial come last."""
    key = line.values[position].key
    if isinstance(key, str):
        return False, 0.0, key
    return key is None, 0.0 if key is None else -key if down else key, ""


def baseline_of(name: str, run: Gathered, others: Iterable[Members]) -> Members | None:
    """Return the runs of the model, or of the same seed of the variant, that a run is compared with; None for none.

    Of several checkpoints of the variant, it is the one of the same step, else the last one.
    """
    place, own = (run.beside, run.subject.engine), run.trained
    alike = [members for members in others if (members[0][1].beside, members[0][1].subject.engine) == place]
    if named := next((members for members in alike if members[0][1].subject.model == name), None):
        return None if named[0][1].subject == run.subject else named
    seeds = {it: members for members in alike if (it := members[0][1].trained) and own
             and (it.name, it.seed) == (name, own.seed)}  # fmt: skip
    if own is None or own.name == name or not seeds:
        return None
    return seeds[max(seeds, key=lambda trained: (trained.step == own.step, trained.step))]


def _group(
    declared: Declared, lengths: tuple[int, ...], work: tuple[int, str, str, Members, Members | None]
) -> tuple[Group, list[Line]]:
    """Return the maps of one model in one setting, and its rows; `work` ends with the runs that it is compared with."""
    number, model, setting, members, others = work
    definition, taken, runs = declared.definition, choose(members), dict(members)
    margin, first = definition.margin / 100, members[0][1]
    view = first.view
    present = sorted({arm for at_place in taken.values() for arm in at_place}, key=lambda arm: (arm.arm, arm.outside))
    wanted = definition.arms or dict.fromkeys([definition.baseline, *(arm.arm for arm in present)])
    arms = tuple(view.subjects if view else (arm for name in wanted for arm in present if arm.arm == name))
    names, pairs = labels(arms if view else present), [(arm, base) for base, arm in combinations(arms, 2)]
    if view:
        compared, tasks = view.compared, view.tasks
    else:
        merged = {arm: {place: taken[place][arm] for place in sorted(taken) if arm in taken[place]} for arm in names}
        compared = Compared(merged, margin, names, mixed=True)
        tasks = tuple(task for task in declared.tasks if any(place[0] == task for place in taken))
    offers = [
        (arm, place) for run in runs.values() for arm, places in run.places.items() if arm in arms for place in places
    ]
    incomparable = {
        task
        for (task, _), by_arm in taken.items()
        for scores in by_arm.values()
        if not {task, "all tasks"}.isdisjoint(runs[scores.run].incomparable)
    }
    group = Group(
        model=model, setting=setting, arms=arms, names=names, runs=tuple(runs), incomparable=frozenset(incomparable),
        environments=max(run.environments for run in runs.values()), repeated=len(offers) - len(set(offers)),
        tasks=task_map(taken, tasks, pairs, arms, compared),
        depths=depth_map(taken, pairs, arms, names, margin),
        grids=grid_maps(view.records, view.tasks, pairs, names) if view else {},
        lengths=view.lengths if view else lengths,
        baseline=definition.baseline or next((arm.arm for arm in arms), ""), view=view, trained=first.trained,
    )  # fmt: skip
    across: Mapping[tuple[str, str], Gap] = {}
    if others:
        silent = others[0][1].tokenizer != first.tokenizer
        across = gaps_across(taken, choose(others), declared.suites, margin, silent)
    return group, list(_lines(declared, lengths, number, group, taken, runs, across))


def _lines(
    declared: Declared, lengths: tuple[int, ...], number: int, group: Group, taken: Taken,
    runs: Mapping[int, Gathered], across: Mapping[tuple[str, str], Gap],
) -> Iterator[Line]:  # fmt: skip
    """Yield a row for each suite and arm of a group, with its difference to the baseline over all pairs.

    Holm's correction is over the suites of an arm.
    """
    definition, first = declared.definition, runs[group.runs[0]]
    slots: dict[str, dict[Subject, Cells]] = {}
    for suite, tasks in declared.suites.items():
        places = [place for place in sorted(taken) if place[0] in tasks]
        slots[suite] = {arm: {place: taken[place][arm] for place in places if arm in taken[place]}
                        for arm in group.names}  # fmt: skip
    pairs = [(arm, base) for base in group.arms if base.arm == group.baseline for arm in group.arms if arm != base]
    gaps = gaps_of(Slots(slots, group.names, definition.margin / 100, mixed=True), pairs)
    pooled = {(suite, arm): gap for (suite, arm, _), gap in gaps.items()}
    for suite, tasks in declared.suites.items():
        for arm in group.arms:
            cells = {(group.tasks.rows[p], length): mean for (p, length, of), mean in group.tasks.means.items()
                     if of == arm}  # fmt: skip
            means = {place: mean for place, mean in cells.items() if place[0] in tasks}
            if not means:
                continue
            to_model = across.get((suite, arm.arm))
            row = RowCells(
                arm.arm, tasks, lengths, means, pooled.get((suite, arm)), group.baseline, to_model, first.trained
            )
            yield Line(
                group=number,
                model=group.model,
                setting=group.setting,
                arm=group.names[arm],
                suite=suite,
                comparable=not group.incomparable & {task for task, _ in means},
                environments=max(runs[mean.run].environments for mean in means.values()),
                values=columns_of(row, definition.columns, declared.averages),
                row=row if first.trained else replace(row, means={}),
                beside=first.beside,
            )


def choose(runs: Iterable[tuple[int, Gathered]]) -> dict[Place, dict[Subject, Scores]]:
    """Return (task, length) -> arm -> scores.

    Tie-breaking, if several runs have a cell: the run with the most arms there, then with the most records there, then
    the newest, then the last by path. A cell never mixes samples of several runs.
    """
    offers_of: dict[Place, list[tuple[tuple[int, int, str, str], dict[Subject, Scores]]]] = {}
    for number, run in runs:
        places: dict[Place, dict[Subject, Scores]] = {}
        for arm, cells in run.load().items():
            for place, scores in cells.items():
                scores.run = number
                places.setdefault(place, {})[arm] = scores
        for place, arms in places.items():
            rank = (len(arms), sum(len(scores.index) for scores in arms.values()), run.created, run.path)
            offers_of.setdefault(place, []).append((rank, arms))
    chosen: dict[Place, dict[Subject, Scores]] = {}
    for place, offers in offers_of.items():
        chosen[place] = {}
        for _, arms in sorted(offers, key=lambda offer: offer[0], reverse=True):
            for arm, scores in arms.items():
                chosen[place].setdefault(arm, scores)
    return chosen


def spread_out(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield `work(item)` for every item, in order; use `workers` processes for WORTH_A_PROCESS items or more."""
    if workers < 2 or len(items) < WORTH_A_PROCESS:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, items, chunksize=CHUNK)


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
