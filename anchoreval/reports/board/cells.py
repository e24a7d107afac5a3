"""Scores of several runs -> means, paired differences and maps. Values are fractions 0..1; boards multiply by 100."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

from anchoreval.reports.board.gather import Gathered
from anchoreval.schema import Record
from anchoreval.stats import (
    MARGIN,
    Asked,
    Cells,
    Compared,
    Difference,
    Place,
    Row,
    Scores,
    Slots,
    Subject,
    by_arm,
    figures,
    matched,
)
from anchoreval.stats.scores import DECILES

Spot = tuple[int, int]  # (row of a map, length)
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

    @property
    def difference(self) -> Difference:
        """Return the difference alone."""
        return self.row.difference


@dataclass(frozen=True, slots=True)
class Map:
    """Means by (row, length, arm) and differences by (row, length, arm, baseline), with each pair of arms once.

    `totals` are the differences by (length, arm, baseline) over all rows.
    """

    rows: tuple[str, ...]
    means: Mapping[tuple[int, int, Subject], Mean]
    gaps: Mapping[tuple[int, int, Subject, Subject], Gap]
    totals: Mapping[tuple[int, Subject, Subject], Gap] = field(default_factory=dict)


def choose(runs: Iterable[tuple[int, Gathered]]) -> dict[Place, dict[Subject, Scores]]:
    """Return (task, length) -> arm -> scores.

    Tie-breaking, if several runs have a cell: the run with the most arms there, then with the most records there, then
    the newest, then the last by path. A cell never mixes samples of several runs.
    """
    offers_of: dict[Place, list[tuple[tuple[int, int, str, str], int, dict[Subject, Scores]]]] = {}
    for number, run in runs:
        places: dict[Place, dict[Subject, Scores]] = {}
        for arm, cells in run.cells.items():
            for place, scores in cells.items():
                scores.run = number
                places.setdefault(place, {})[arm] = scores
        for place, arms in places.items():
            rank = (len(arms), sum(len(scores.index) for scores in arms.values()), run.created, run.path)
            offers_of.setdefault(place, []).append((rank, number, arms))
    chosen: dict[Place, dict[Subject, Scores]] = {}
    for place, offers in offers_of.items():
        chosen[place] = {}
        for *_, arms in sorted(offers, key=lambda offer: offer[0], reverse=True):
            for arm, scores in arms.items():
                chosen[place].setdefault(arm, scores)
    return chosen


def mean_of(parts: Sequence[Scores]) -> Mean:
    """Return the mean over all samples of several scores."""
    return Mean(max(parts, key=lambda part: len(part.index)).run, **figures(parts))


def gaps_of(slots: Slots[Slot], pairs: Iterable[tuple[Subject, Subject]]) -> dict[tuple[Slot, Subject, Subject], Gap]:
    """Return (slot, arm, baseline) -> the difference in that slot."""
    return {
        (slot, arm, base): Gap(_most(slots.both(slot, arm, base) or []), row)
        for arm, base in pairs
        for slot, row in slots.rows(arm, base).items()
    }


def _most(both: Sequence[tuple[Scores, Scores]]) -> int:
    """Return the run that most pairs are from."""
    sizes: dict[int, int] = {}
    if len({arm.run for arm, _ in both}) > 1:
        for arm, base in both:
            sizes[arm.run] = sizes.get(arm.run, 0) + len(matched(arm, base)[0])
    return max(sizes, key=lambda run: (sizes[run], -run)) if sizes else both[0][0].run


def task_map(taken: Taken, rows: Sequence[str], arms: Sequence[Subject], compared: Compared) -> Map:
    """Return the map task x length, with the differences of every length over its tasks."""
    number, pairs = {task: i for i, task in enumerate(rows)}, pairs_of(arms)
    means = {
        (number[place[0]], place[1], arm): mean_of([scores])
        for place in sorted(taken)
        for arm, scores in taken[place].items()
        if arm in arms
    }
    gaps = sorted(gaps_of(compared.cells, pairs).items(), key=lambda item: (pairs.index(item[0][1:]), item[0][0]))
    by_place = {(number[task], n, arm, base): gap for ((task, n), arm, base), gap in gaps}
    return Map(tuple(rows), means, by_place, gaps_of(compared.lengths, pairs))


def depth_map(taken: Taken, arms: Sequence[Subject], names: Mapping[Subject, str], margin: float) -> Map:
    """Return the map tenth of the context x length, over the samples of all tasks that have a single depth."""
    by_length: dict[int, dict[Subject, dict[Place, Scores]]] = {}
    for place in sorted(taken):
        for arm, scores in taken[place].items():
            by_length.setdefault(place[1], {}).setdefault(arm, {})[place] = scores
    slots: dict[Spot, dict[Subject, Cells]] = {}
    for length, of_length in by_length.items():
        for depth in range(DECILES):
            slots[depth, length] = {arm: _at_depth(cells, depth) for arm, cells in of_length.items()}
    means = {
        (*spot, arm): mean_of(list(cells.values()))
        for spot, of in slots.items()
        for arm, cells in of.items()
        if arm in arms and cells
    }
    gaps = gaps_of(Slots(slots, names, margin, mixed=True), pairs_of(arms))
    rows = tuple(f"{100 * i // DECILES}-{100 * (i + 1) // DECILES}%" for i in range(DECILES))
    return Map(rows, means, {(*spot, arm, base): gap for (spot, arm, base), gap in gaps.items()})


def grid_maps(
    records: Iterable[Record], tasks: Sequence[str], arms: Sequence[Subject], names: Mapping[Subject, str]
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
    known, slots = {subject.arm: subject for subject in arms}, dict[tuple[str, float, int], dict[Subject, Cells]]()
    for depth in sorted(by_depth):
        for arm, cells in by_arm(by_depth[depth]).items():
            for (task, length), scores in cells.items():
                slots.setdefault((task, depth, length), {})[known[arm]] = {(task, length): scores}
    compared = Slots(slots, names, MARGIN, lambda slot: (slot[0], slot[2]))
    gaps, maps = gaps_of(compared, pairs_of(arms)), {}
    for task in tasks:
        rows = {depth: i for i, depth in enumerate(dict.fromkeys(depth for of, depth, _ in slots if of == task))}
        means = {
            (rows[depth], length, arm): mean_of(list(cells.values()))
            for (of, depth, length), by_subject in slots.items()
            for arm, cells in by_subject.items()
            if of == task
        }
        own = {(rows[slot[1]], slot[2], arm, base): gap for (slot, arm, base), gap in gaps.items() if slot[0] == task}
        if rows:
            maps[task] = Map(tuple(f"{depth:g}" for depth in rows), means, own)
    return maps


def _at_depth(cells: Cells, depth: int) -> Cells:
    return {place: scores.at_decile(depth) for place, scores in cells.items() if depth in scores.decile}


def pairs_of(arms: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
    """Return every pair of arms once, as (arm, baseline); the earlier arm is the baseline."""
    return [(arm, base) for base, arm in combinations(arms, 2)]
