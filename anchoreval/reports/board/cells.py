"""Scores of several runs -> means, paired differences and maps. Values are fractions 0..1; boards multiply by 100."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

from anchoreval.reports.board.gather import Gathered
from anchoreval.schema import Outcome
from anchoreval.stats import (
    Asked,
    Cells,
    Difference,
    Method,
    Place,
    Row,
    Sampled,
    Scores,
    Slots,
    Subject,
    figures,
    matched,
)
from anchoreval.stats.scores import DECILES

Spot = tuple[int, int]  # (row of a map, length)
Taken = Mapping[Place, Mapping[Subject, Scores]]
Slot = TypeVar("Slot")


@dataclass(frozen=True, slots=True)
class Mean(Asked):
    """A mean with its interval, both None if no sample has a score; `run` is the run that most samples are from."""

    run: int
    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    logprob: float | None
    outcomes: Mapping[Outcome, int] = field(default_factory=dict, hash=False)
    sampled: Sampled | None = None
    method: Method | None = None
    sources: int = 0


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
    """Means by (row, length, arm) and differences by (row, length, arm, baseline), with each pair of arms once."""

    rows: tuple[str, ...]
    means: Mapping[tuple[int, int, Subject], Mean]
    gaps: Mapping[tuple[int, int, Subject, Subject], Gap]


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


def task_map(
    taken: Taken, tasks: Sequence[str], arms: Sequence[Subject], names: Mapping[Subject, str], margin: float
) -> Map:
    """Return the map task x length."""
    rows = tuple(task for task in tasks if any(place[0] == task for place in taken))
    number = {task: i for i, task in enumerate(rows)}
    places = sorted(taken)
    means = {
        (number[place[0]], place[1], arm): mean_of([scores])
        for place in places
        for arm, scores in taken[place].items()
        if arm in arms
    }
    cells = {place: {arm: {place: scores} for arm, scores in taken[place].items()} for place in places}
    gaps = gaps_of(Slots(cells, names, margin, lambda place: place, ruled=True, mixed=True), pairs_of(arms))
    return Map(rows, means, {(number[task], n, arm, base): gap for ((task, n), arm, base), gap in gaps.items()})


def depth_map(taken: Taken, arms: Sequence[Subject], names: Mapping[Subject, str], margin: float) -> Map:
    """Return the map tenth of the context x length, over the samples of all tasks that have a single depth."""
    by_length: dict[int, dict[Subject, dict[Place, Scores]]] = {}
    for place in sorted(taken):
        for arm, scores in taken[place].items():
            by_length.setdefault(place[1], {}).setdefault(arm, {})[place] = scores
    slots: dict[Spot, dict[Subject, Cells]] = {}
    for length, by_arm in by_length.items():
        for depth in range(DECILES):
            slots[depth, length] = {arm: _at_depth(cells, depth) for arm, cells in by_arm.items()}
    means = {
        (*spot, arm): mean_of(list(cells.values()))
        for spot, of in slots.items()
        for arm, cells in of.items()
        if arm in arms and cells
    }
    gaps = gaps_of(Slots(slots, names, margin, mixed=True), pairs_of(arms))
    rows = tuple(f"{100 * i // DECILES}-{100 * (i + 1) // DECILES}%" for i in range(DECILES))
    return Map(rows, means, {(*spot, arm, base): gap for (spot, arm, base), gap in gaps.items()})


def _at_depth(cells: Cells, depth: int) -> Cells:
    return {place: scores.at_decile(depth) for place, scores in cells.items() if depth in scores.decile}


def pairs_of(arms: Sequence[Subject]) -> list[tuple[Subject, Subject]]:
    """Return every pair of arms once, as (arm, baseline); the earlier arm is the baseline."""
    return [(arm, base) for base, arm in combinations(arms, 2)]
