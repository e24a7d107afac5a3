"""Scores of several runs -> means, paired differences, maps, and the columns that a definition may name.

Values of maps are fractions 0..1; boards multiply by 100. A column shows an average over fewer tasks than it names with
a star and never ranks it; an average that lacks a length is not shown. If samples without a score are left out, the
average has a star too, the mean with those samples counted as wrong is shown below it, and the row is ranked by that
mean. Intervals are those of stats/cells.py; for a single cell, the cell's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from anchoreval.reports.board.definition import BY_LENGTH, COLUMNS
from anchoreval.reports.words import NONE, interval, lost_counts, p_number, p_value, percent, plain, sentence, tokens
from anchoreval.schema import Outcome, Record
from anchoreval.stats import (
    MARGIN,
    Asked,
    Cells,
    Compared,
    Place,
    Row,
    Scores,
    Slots,
    Subject,
    Trained,
    average_ends,
    by_arm,
    figures,
    matched,
)
from anchoreval.stats.cells import DECILES
from anchoreval.suites import Average, averages
from anchoreval.suites.ruler.scoring import AVERAGES, LENGTHS, TASKS, THRESHOLD, effective_length

Pairs = Sequence[tuple[Subject, Subject]]  # (arm, baseline)
Taken = Mapping[Place, Mapping[Subject, Scores]]
Slot = TypeVar("Slot")


@dataclass(frozen=True, slots=True)
class Mean(Asked):
    """The scores of several cells together; `run` is the run that most samples are from."""

    run: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A paired difference with its verdict; `run` is the run that most of its pairs are from."""

    run: int
    row: Row


@dataclass(frozen=True, slots=True)
class Map:
    """Means by (row, length, arm) and differences by (row, length, arm, baseline), with each pair of arms once.

    `totals` are the differences by (length, arm, baseline) over all rows.
    """

    rows: tuple[str, ...]
    means: Mapping[tuple[int, int, Subject], Mean]
    gaps: Mapping[tuple[int, int, Subject, Subject], Gap]
    totals: Mapping[tuple[int, Subject, Subject], Gap] = field(default_factory=dict)


def gaps_of(slots: Slots[Slot], pairs: Iterable[tuple[Subject, Subject]]) -> dict[tuple[Slot, Subject, Subject], Gap]:
    """Return (slot, arm, baseline) -> the difference in that slot."""
    gaps = {}
    for arm, base in pairs:
        for slot, row in slots.rows(arm, base).items():
            both = slots.both(slot, arm, base) or []
            run = both[0][0].run
            if len({scores.run for scores, _ in both}) > 1:  # the run that most pairs are from
                sizes: dict[int, int] = {}
                for ours, theirs in both:
                    sizes[ours.run] = sizes.get(ours.run, 0) + len(matched(ours, theirs)[0])
                run = max(sizes, key=lambda run: (sizes[run], -run))
            gaps[slot, arm, base] = Gap(run, row)
    return gaps


def task_map(taken: Taken, rows: Sequence[str], pairs: Pairs, arms: Sequence[Subject], compared: Compared) -> Map:
    """Return the map task x length, with the differences of every length over its tasks."""
    number = {task: i for i, task in enumerate(rows)}
    means = {
        (number[place[0]], place[1], arm): Mean(scores.run, **figures([scores]))
        for place in sorted(taken)
        for arm, scores in taken[place].items()
        if arm in arms
    }
    gaps = sorted(gaps_of(compared.cells, pairs).items(), key=lambda item: (pairs.index(item[0][1:]), item[0][0]))
    by_place = {(number[task], n, arm, base): gap for ((task, n), arm, base), gap in gaps}
    return Map(tuple(rows), means, by_place, gaps_of(compared.lengths, pairs))


def depth_map(taken: Taken, pairs: Pairs, arms: Sequence[Subject], names: Mapping[Subject, str], margin: float) -> Map:
    """Return the map tenth of the context x length, over the samples of all tasks that have a single depth."""
    slots: dict[tuple[int, int], dict[Subject, dict[Place, Scores]]] = {}
    for place in sorted(taken):
        for arm, scores in taken[place].items():
            for depth in range(DECILES):
                cells = slots.setdefault((depth, place[1]), {}).setdefault(arm, {})
                if depth in scores.decile:
                    cells[place] = scores.at_decile(depth)
    means = {}
    for spot, at_spot in slots.items():
        for arm, cells in at_spot.items():
            if arm in arms and cells:
                largest = max(cells.values(), key=lambda scores: len(scores.index))
                means[*spot, arm] = Mean(largest.run, **figures(list(cells.values())))
    gaps = gaps_of(Slots(slots, names, margin, mixed=True), pairs)
    rows = tuple(f"{100 * i // DECILES}-{100 * (i + 1) // DECILES}%" for i in range(DECILES))
    return Map(rows, means, {(*spot, arm, base): gap for (spot, arm, base), gap in gaps.items()})


def grid_maps(
    records: Iterable[Record], tasks: Sequence[str], pairs: Pairs, names: Mapping[Subject, str]
) -> dict[str, Map]:
    """Return task -> the map asked depth x length, with depth 0 first, of the tasks whose samples are on such a grid.

    A sample is on a grid if its fact `depth_percent` gives the requested depth of its needle. Holm's correction is over
    all maps of two arms; noise floors are per spot.
    """
    by_depth: dict[float, list[Record]] = {}
    for record in records:
        depth = record.facts.get("depth_percent")
        if isinstance(depth, int | float) and not isinstance(depth, bool) and math.isfinite(depth):
            by_depth.setdefault(float(depth), []).append(record)
    known, slots = {subject.arm: subject for subject in names}, dict[tuple[str, float, int], dict[Subject, Cells]]()
    for depth in sorted(by_depth):
        for arm, cells in by_arm(by_depth[depth]).items():
            for (task, length), scores in cells.items():
                slots.setdefault((task, depth, length), {})[known[arm]] = {(task, length): scores}
    compared = Slots(slots, names, MARGIN, lambda slot: (slot[0], slot[2]))
    gaps, maps = gaps_of(compared, pairs), {}
    for task in tasks:
        rows = {depth: i for i, depth in enumerate(dict.fromkeys(depth for of, depth, _ in slots if of == task))}
        means = {
            (rows[depth], length, arm): Mean(scores.run, **figures([scores]))
            for (of, depth, length), by_subject in slots.items()
            for arm, cells in by_subject.items()
            for scores in cells.values()
            if of == task
        }
        own = {(rows[slot[1]], slot[2], arm, base): gap for (slot, arm, base), gap in gaps.items() if slot[0] == task}
        if rows:
            maps[task] = Map(tuple(f"{depth:g}" for depth in rows), means, own)
    return maps


@dataclass(frozen=True, slots=True)
class Value:
    """One field of a row: text, sort key, sentence, low and high in points, and the location of its samples.

    `run` is None if no samples are behind the value; `query` holds the viewer's filter. `bound` is shown below the
    text: the value if samples without a score count as wrong, by which the row is ranked. `mean` is the unrounded value
    of the text, in points. `why` is the reason for a dash that is shown below it.
    """

    text: str
    key: float | str | None
    label: str
    low: float | None = None
    high: float | None = None
    run: int | None = None
    query: tuple[tuple[str, str], ...] = ()
    bound: str = ""
    mean: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class RowCells:
    """The input of the columns: one arm of a group on one suite.

    `across` is its difference to `baseline_model`. `seeds` and `steps` list those of a row over several.
    """

    arm: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    means: Mapping[Place, Mean]
    gap: Gap | None
    baseline: str
    across: Gap | None = None
    trained: Trained | None = None
    seeds: str = ""
    steps: str = ""


@dataclass(frozen=True, slots=True)
class Mixed:
    """A weighted mean of cells, 0..1, with its interval; `whole` is True if no cell that it names is missing.

    `lost` counts samples without a score. `as_wrong` is the mean if they count as wrong, including cells that lost all.
    """

    mean: float
    low: float
    high: float
    whole: bool
    lost: int
    as_wrong: float


def columns_of(
    row: RowCells, names: Sequence[str], published: Mapping[str, Average] | None = None
) -> tuple[Value, ...]:
    """Return the values of a row, in the order of `names`: of COLUMNS, or of a published average of a suite."""
    means, behind = row.means.values(), (("arm", row.arm),)
    sizes: Counter[int] = Counter()
    for mean in means:
        sizes[mean.run] += mean.asked
    run = max(sizes, key=lambda run: (sizes[run], -run), default=None)  # that most samples of the row are from
    every_task, every_length = dict.fromkeys(row.tasks, 1.0), dict.fromkeys(row.lengths, 1.0)
    values: list[Value] = []
    for name in names:
        if name == BY_LENGTH:
            for length in row.lengths:
                what, at_length = f"mean at {tokens(length)}", ("length", str(length))
                values.append(_averaged(row, every_task, {length: 1.0}, what, at_length))
        elif name == "mean":
            values.append(_averaged(row, every_task, every_length, "mean over lengths"))
        elif name == "ruler_effective_length":
            values.append(_effective(row, run))
        elif name in ("difference", "verdict", "p_holm", "model_difference", "model_verdict"):
            values.append(_compared(row, name))
        elif name == "logprob":
            logprobs = [mean.logprob for mean in means if mean.logprob is not None]
            if logprobs:
                value = math.fsum(logprobs) / len(logprobs)
                count = f"mean over {len(logprobs)} cells"
                label = f"log-probability {value:.4f} per token of the reference, {count}"
                values.append(Value(f"{value:.3f}", value, label, run=run, query=behind))
            else:
                values.append(Value(NONE, None, "no log-probability"))
        elif name == "samples":
            scored, asked = sum(mean.scored for mean in means), sum(mean.asked for mean in means)
            counts = sum((Counter(mean.outcomes) for mean in means), Counter[Outcome]())
            label = f"{scored:,} of {asked:,} samples scored"
            if scored < asked:
                label += f": {lost_counts(counts, asked - scored)}"
            label += "".join(f"; {counts[outcome]:,} {outcome}" for outcome in ("cut", "empty") if counts[outcome])
            text = f"{scored:,}" if scored == asked else f"{scored:,}/{asked:,}"
            values.append(Value(text, float(scored), label, run=run, query=behind))
        elif name in COLUMNS:
            values.append(_of_training(row, name))
        else:
            values.append(_published(row, (averages() if published is None else published)[name]))
    return tuple(values)


def average(
    means: Mapping[Place, Mean], tasks: Mapping[str, float] | Collection[str], weights: Mapping[int, float]
) -> Mixed | None:
    """Return the weighted mean over the tasks of every length, weighted over lengths, or None without a cell.

    A collection of `tasks` weighs them equally.

    Cells are first rounded to two decimals of points, as RULER does. Missing cells are left out, and the average is
    then not `whole`.
    """
    shares = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
    parts: list[tuple[float, Mean]] = []
    wrong: list[tuple[float, Mean]] = []
    for length, weight in weights.items():
        with_cells = [(share, mean) for task, share in shares.items() if (mean := means.get((task, length)))]
        with_means = [(share, mean) for share, mean in with_cells if mean.mean is not None]
        parts += [(weight * share / sum(one for one, _ in with_means), mean) for share, mean in with_means]
        wrong += [(weight * share / sum(one for one, _ in with_cells), mean) for share, mean in with_cells]
    total = math.fsum(weight for weight, _ in parts)
    if not parts:
        return None
    value = math.fsum(weight * round(mean.mean or 0.0, 4) for weight, mean in parts) / total
    low, high = average_ends(parts)
    whole = len(parts) == len(tasks) * len(weights)
    as_wrong = math.fsum(weight * mean.as_wrong for weight, mean in wrong) / math.fsum(weight for weight, _ in wrong)
    return Mixed(value, low, high, whole, sum(mean.lost for _, mean in wrong), as_wrong)


def _averaged(
    row: RowCells, tasks: Mapping[str, float], weights: Mapping[int, float], what: str, *also: tuple[str, str]
) -> Value:
    """Return the column of a weighted mean, called `what`; `also` narrows the list of the samples behind it."""
    if not set(tasks) <= set(row.tasks):
        return Value(NONE, None, f"{what}: this row's suite lacks some of the tasks")
    cells = {place: mean for place, mean in row.means.items() if place[0] in tasks and place[1] in weights}
    result = average(row.means, tasks, weights)
    if result is None:
        lost = sum((Counter(mean.outcomes) for mean in cells.values()), Counter[Outcome]())
        why = lost_counts(lost, sum(mean.lost for mean in cells.values()))
        return Value(NONE, None, f"{what}: no score: {why}" if why else f"{what}: no samples", why=why)
    count = f"{len({task for task, _ in cells})} of {len(tasks)} tasks"
    if len(weights) > 1:
        count += f", {len({length for _, length in cells})} of {len(weights)} lengths"
    if not result.whole and len(weights) > 1:
        return Value(NONE, None, f"{what}: cells are missing or lost whole, {count}", why="cells missing")

    key, bound, text = 100 * result.mean, "", percent(result.mean)
    label = f"{what}: {text} {interval(result.low, result.high)}, {count}"
    if result.lost:
        wrong = percent(result.as_wrong)
        key, bound = 100 * result.as_wrong, f"{wrong} as wrong"
        label += f"; {result.lost:,} samples without a score left out, {wrong} where they count as wrong"
    if not result.whole:
        label += "; not ranked: cells are missing or lost whole"
    runs = [mean.run for mean in cells.values()]
    return Value(
        text=text + ("*" if result.lost or not result.whole else ""),
        key=key if result.whole else None,
        label=label,
        low=100 * result.low,
        high=100 * result.high,
        run=max(sorted(set(runs)), key=runs.count),
        query=(*also, ("arm", row.arm)),
        bound=bound,
        mean=100 * result.mean,
    )


def _published(row: RowCells, published: Average) -> Value:
    weights = published.lengths or dict.fromkeys(row.lengths, 1.0)
    value = _averaged(row, published.tasks, weights, published.about)
    if published.lengths is None or value.key is not None:
        return value
    span = f"{tokens(min(weights))} to {tokens(max(weights))}"
    return Value(NONE, None, f"{published.about}: needs {len(published.tasks)} tasks at {span}")


def _effective(row: RowCells, run: int | None) -> Value:
    title, tasks = "effective length", AVERAGES["ruler_13"].tasks
    by_length, lost = {}, 0
    for length in LENGTHS:
        result = average(row.means, tasks, {length: 1.0})
        if result is not None and result.whole:
            by_length[length] = 100 * result.mean
            lost += result.lost
    text = effective_length(by_length)
    if text is None:
        return Value(NONE, None, f"{title}: hangs on a length, 4K to 128K, at which not all {TASKS} tasks were run")
    longest = 0 if text.startswith("<") else 1024 * int(text.strip("<>K"))
    label = f"{title} {text}: the last length up to which {TASKS} tasks average at least {THRESHOLD}"
    if lost:
        text, label = f"{text}*", f"{label}; {lost:,} samples without a score are left out"
    return Value(text, float(longest + text.startswith(">")), label, run=run, query=(("arm", row.arm),))


def _compared(row: RowCells, name: str) -> Value:
    """Return a column of the difference to the baseline, or to the baseline model, with the samples behind it."""
    across = name in ("model_difference", "model_verdict")
    gap = row.across if across else row.gap
    if across:
        nothing = Value(NONE, None, "this is the baseline model, or no pairs with it")
    else:
        at_baseline = row.arm == row.baseline
        nothing = Value(NONE, None, "this is the baseline" if at_baseline else "no pairs with the baseline")
    if gap is None:
        return nothing
    judged, paired = gap.row, gap.row.difference
    behind = (("arm", row.arm),) if across else (("arm", row.arm), ("differ", "1"))
    if name == "p_holm":
        if (p := judged.p_holm) is None:
            return nothing
        label = f"{p_value(p)}: all pairs of a suite are one question, corrected by Holm over the arm's suites"
        return Value(p_number(p), p, label, run=gap.run, query=behind)
    if paired.difference is None and name != "verdict":
        return nothing
    if name in ("verdict", "model_verdict"):
        return Value(judged.word, judged.word, judged.says, run=gap.run, query=behind)
    low, high = (None if end is None else 100 * end for end in (paired.low, paired.high))
    label = f"minus {plain(paired.baseline, 60)}: {sentence(judged)}"
    text = percent(paired.difference, True) + ("*" if paired.left_out else "")
    return Value(text, 100 * (paired.difference or 0.0), label, low, high, gap.run, behind)


def _of_training(row: RowCells, name: str) -> Value:
    """Return a column of how the model was trained."""
    if (card := row.trained) is None:
        return Value(NONE, None, "no training card beside the weights")
    shown: str | int
    if name == "seed":
        shown = row.seeds or card.seed
    elif name == "steps":
        shown = row.steps or card.step_words
    else:
        shown = card.variant if name == "trained_as" else card.rope
    return Value(str(shown), shown if isinstance(shown, str) else float(shown), f"{shown}: from the training card")
