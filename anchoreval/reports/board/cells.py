"""Scores per cell -> means, paired differences and maps. Values are fractions 0..1; boards multiply by 100."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import NamedTuple, TypeVar

from anchoreval.errors import RunError
from anchoreval.reports.board.gather import DECILES, Gathered, Scores
from anchoreval.schema import OUTCOMES, Outcome, original_of
from anchoreval.stats import (
    ALONE,
    Asked,
    Difference,
    Row,
    Sampled,
    beyond_of,
    family,
    judged,
    left_out,
    mean_interval,
    noise_floor,
    placebo_of,
    sampled,
    why_lost,
    with_logprobs,
)

Place = tuple[str, int]  # (task, length)
Spot = tuple[int, int]  # (row of a map, length)
Taken = Mapping[Place, Mapping[str, "Chosen"]]
Stopped = Callable[[int, str, str, str, int], str]
Slot = TypeVar("Slot")


class Side(NamedTuple):
    """Two arms of one run at one place, the positions of their common samples, how many only one of them has."""

    arm: Scores
    base: Scores
    pairs: Sequence[tuple[int, int]]
    alone: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The scores that stand for one (task, length, arm), and the number of the run that they are from."""

    run: int
    scores: Scores


@dataclass(frozen=True, slots=True)
class Mean(Asked):
    """A mean with its interval, None where nothing was scored; `run` is the one most samples are from."""

    run: int
    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    logprob: float | None
    outcomes: Mapping[Outcome, int] = field(default_factory=dict, hash=False)
    sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """A paired difference with its verdict, and the run that most of its pairs are from."""

    run: int
    row: Row

    @property
    def difference(self) -> Difference:
        """The difference alone."""
        return self.row.difference


@dataclass(frozen=True, slots=True)
class Map:
    """Means by (row, length, arm) and differences by (row, length, arm, baseline), each pair of arms once."""

    rows: tuple[str, ...]
    means: Mapping[tuple[int, int, str], Mean]
    gaps: Mapping[tuple[int, int, str, str], Gap]


def choose(runs: Iterable[tuple[int, Gathered]]) -> dict[Place, dict[str, Chosen]]:
    """(task, length) -> arm -> scores; where several runs have them, the run with the most arms, then records there.

    Then the newest, then the last by path: samples of several runs are never put together in one cell.
    """
    found: dict[Place, list[tuple[tuple[int, int, str, str], int, dict[str, Scores]]]] = {}
    for number, run in runs:
        places: dict[Place, dict[str, Scores]] = {}
        for (task, length, arm), scores in run.cells.items():
            places.setdefault((task, length), {})[arm] = scores
        for place, arms in places.items():
            rank = (len(arms), sum(len(scores.index) for scores in arms.values()), run.created, run.path)
            found.setdefault(place, []).append((rank, number, arms))
    chosen: dict[Place, dict[str, Chosen]] = {}
    for place, offers in found.items():
        chosen[place] = {}
        for _, number, arms in sorted(offers, key=lambda offer: offer[0], reverse=True):
            for arm, scores in arms.items():
                chosen[place].setdefault(arm, Chosen(number, scores))
    return chosen


def mean_of(parts: Sequence[tuple[Chosen, Sequence[int]]]) -> Mean | None:
    """The mean over the named positions of several scores; None where there is no position."""
    at = [(one.scores, i) for one, positions in parts for i in positions]
    if not at:
        return None
    scores = [value for part, i in at if (value := part.score[i]) == value]
    logprobs = [value for part, i in at if (value := part.logprob[i]) == value]
    sources = [part.cluster[i] for part, i in at if part.score[i] == part.score[i]]
    low, high = mean_interval(scores, sources)[:2] if scores else (None, None)
    mean, varying = (fmean(scores), sampled(scores, sources)) if scores else (None, None)
    run = max(parts, key=lambda part: len(part[1]))[0].run
    logprob = fmean(logprobs) if logprobs else None
    found = Counter(part.outcome[i] for part, i in at)
    outcomes = {outcome: found[number] for number, outcome in enumerate(OUTCOMES) if found[number]}
    return Mean(run, len(at), len(scores), mean, low, high, logprob, outcomes, varying)


def side(arm: Chosen, base: Chosen, where: str) -> Side | None:
    """Common samples of two arms of one run, None for two runs; RunError where their prompts differ."""
    if arm.run != base.run:
        return None
    a, b = arm.scores, base.scores
    if a.index == b.index:
        both = [(i, i) for i in range(len(a.index))]
    else:
        at = {index: j for j, index in enumerate(b.index)}
        both = [(i, at[index]) for i, index in enumerate(a.index) if index in at]
    differ = [a.index[i] for i, j in both if a.prompt[i] != b.prompt[j]]
    if differ:
        raise RunError(f"{where}: {len(differ)} samples had different prompts in the two arms, the first: {differ[0]}")
    return Side(a, b, both, len(a.index) + len(b.index) - 2 * len(both))


def difference_of(sides: Iterable[Side], arm: str, baseline: str) -> Difference:
    """`arm` minus `baseline` over every pair of the sides that both have scored."""
    scores: list[tuple[float, float]] = []
    clusters: list[int] = []
    strata: list[int] = []
    logprobs: list[tuple[float, int, int]] = []
    reasons: list[str] = []
    same = 0
    for place, (a, b, pairs, alone) in enumerate(sides):
        reasons += [ALONE] * alone
        for i, j in pairs:
            if (x := a.score[i]) == x and (y := b.score[j]) == y:
                scores.append((x, y))
                clusters.append(a.cluster[i])
                strata.append(place)
                same += a.output[i] == b.output[j]
            else:
                reasons.append(why_lost(OUTCOMES[a.outcome[i] if x != x else b.outcome[j]]))
            if (value := a.logprob[i] - b.logprob[j]) == value:
                logprobs.append((value, a.cluster[i], place))
    unscored = left_out(Difference(None, None, arm, baseline, same_outputs=same), reasons)
    whole = with_logprobs(unscored, *(list(column) for column in zip(*logprobs, strict=True))) if logprobs else unscored
    return judged(whole, scores, clusters, strata)


def versus(
    slots: Mapping[Slot, Mapping[str, Mapping[Place, Chosen]]],
    pairs: Sequence[tuple[str, str]],
    cut: Callable[[Slot, Side], Side],
    margin: float,
    stopped: Callable[[Slot, str, str], str] = lambda *_: "",
) -> dict[tuple[Slot, str, str], Gap]:
    """(slot, arm, baseline) -> the difference there; `cut` leaves of a side the pairs that belong to the slot.

    Holm's correction is over the slots of two arms; the noise floor of a slot is that of every placebo there, also of
    those that are not among `pairs`. `stopped` gives the words of a rule that ended an arm's cell.
    """
    raw: dict[tuple[str, str], dict[Slot, tuple[int, Difference]]] = {}
    arms = {arm for found in slots.values() for arm in found}
    placebos = [(arm, own) for arm in sorted(arms) if (own := original_of(arm)) is not None]
    beyond = {pair: beyond_of(*pair, [arm for arm, _ in placebos]) for pair in pairs}
    for arm, base in dict.fromkeys([*pairs, *placebos, *(other for found in beyond.values() for other in found)]):
        for slot, found in slots.items():
            if arm in found and base in found and (offered := _at(found[arm], found[base], slot, cut)):
                run, sides = offered
                raw.setdefault((arm, base), {})[slot] = run, difference_of(sides, arm, base)
    gaps: dict[tuple[Slot, str, str], Gap] = {}
    for arm, base in pairs:
        of = raw.get((arm, base), {})
        floors = [noise_floor(raw[key][slot][1] for key in placebos if slot in raw.get(key, {})) for slot in of]
        words = [stopped(slot, arm, base) for slot in of]
        others = [[raw[key][slot][1] if slot in raw.get(key, {}) else None for slot in of] for key in beyond[arm, base]]
        rows = family([each for _, each in of.values()], margin, floors, placebo_of(arm, base), words, others)
        gaps |= {(slot, arm, base): Gap(run, row) for (slot, (run, _)), row in zip(of.items(), rows, strict=True)}
    return gaps


def _at(
    arm: Mapping[Place, Chosen], base: Mapping[Place, Chosen], slot: Slot, cut: Callable[[Slot, Side], Side]
) -> tuple[int, list[Side]] | None:
    """The run of most pairs and the sides of one slot; None without a pair."""
    sides: list[Side] = []
    sizes: dict[int, int] = {}
    for place in [place for place in arm if place in base]:
        whole = side(arm[place], base[place], f"{place[0]} at {place[1]}")
        part = cut(slot, whole) if whole else None
        if part and (part.pairs or part.alone):
            sides.append(part)
            sizes[arm[place].run] = sizes.get(arm[place].run, 0) + len(part.pairs)
    return (max(sizes, key=lambda run: (sizes[run], -run)), sides) if sides else None


def task_map(
    taken: Taken, tasks: Sequence[str], arms: Sequence[str], margin: float, stopped: Stopped = lambda *_: ""
) -> Map:
    """Task x length; `stopped` gives the words of a rule that ended (run, arm, baseline, task, length)."""
    rows = tuple(task for task in tasks if any(place[0] == task for place in taken))
    number = {task: i for i, task in enumerate(rows)}
    means, slots = {}, {}
    for place, found in sorted(taken.items()):
        spot = number[place[0]], place[1]
        slots[spot] = {arm: {place: one} for arm, one in found.items()}
        for arm, one in found.items():
            mean = mean_of([(one, range(len(one.scores.index)))])
            if mean and arm in arms:
                means[*spot, arm] = mean

    def words(spot: Spot, arm: str, base: str) -> str:
        place = rows[spot[0]], spot[1]
        return stopped(taken[place][arm].run, arm, base, *place)

    gaps = versus(slots, pairs_of(arms), lambda _, whole: whole, margin, words)
    return Map(rows, means, {(*spot, arm, base): gap for (spot, arm, base), gap in gaps.items()})


def depth_map(taken: Taken, arms: Sequence[str], margin: float) -> Map:
    """Tenth of the context x length, over the samples of all tasks that have one single depth."""
    slots: dict[Spot, dict[str, dict[Place, Chosen]]] = {}
    means: dict[tuple[int, int, str], Mean] = {}
    by_length: dict[int, dict[str, dict[Place, Chosen]]] = {}
    for place, found in sorted(taken.items()):
        for arm, one in found.items():
            by_length.setdefault(place[1], {}).setdefault(arm, {})[place] = one
    for length, by_arm in by_length.items():
        for depth in range(DECILES):
            slots[depth, length] = by_arm
            for arm, cells in by_arm.items():
                if arm not in arms:
                    continue
                parts = [(one, [i for i, at in enumerate(one.scores.decile) if at == depth]) for one in cells.values()]
                if mean := mean_of([part for part in parts if part[1]]):
                    means[depth, length, arm] = mean
    gaps = versus(slots, pairs_of(arms), _at_depth, margin)
    names = tuple(f"{100 * i // DECILES}-{100 * (i + 1) // DECILES}%" for i in range(DECILES))
    return Map(names, means, {(*spot, arm, base): gap for (spot, arm, base), gap in gaps.items()})


def _at_depth(spot: Spot, whole: Side) -> Side:
    return Side(whole.arm, whole.base, [(i, j) for i, j in whole.pairs if whole.arm.decile[i] == spot[0]])


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair of arms once, as (arm, baseline): the earlier one is the baseline."""
    return [(arm, base) for base, arm in combinations(arms, 2)]
