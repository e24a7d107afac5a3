"""Length x depth maps of the tasks whose samples are on a grid of depths, one per arm and per difference of arms.

A sample is on a grid if its fact `depth_percent` gives the requested depth of its needle. Log-probabilities are
coloured by the probability per token. Every cell states how many samples it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from anchoreval.reports import colours
from anchoreval.reports.board.evidence import place_id
from anchoreval.reports.board.heat import Field, HeatMap, samples_of
from anchoreval.reports.board.view import RunView
from anchoreval.reports.words import NONE, cell_words, logprob_difference, percent, plain, sentence, tokens
from anchoreval.schema import Record
from anchoreval.stats import MARGIN, Cell, Cells, Row, Slots, Subject, by_arm, cells

STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # the scale of a map of nats ends at one of these times a power of ten

Spot = tuple[float, int]  # (depth in percent, length)
Fields = Callable[[Spot], Field]


@dataclass(frozen=True, slots=True)
class Against:
    """Every other arm minus a baseline: scores, and log-probabilities in nats per token."""

    scores: tuple[HeatMap, ...]
    logprobs: tuple[HeatMap, ...]


@dataclass(frozen=True, slots=True)
class DepthMaps:
    """The maps of one task; `against[baseline]` holds the differences. Rows are depths, with 0 at the top."""

    task: str
    lengths: tuple[int, ...]
    scores: tuple[HeatMap, ...]
    logprobs: tuple[HeatMap, ...]
    against: Mapping[str, Against]


@dataclass(frozen=True, slots=True)
class Depths:
    """All maps of a run by depth. Difference maps end at +-`scale` points and +-`nats` per token."""

    tasks: tuple[DepthMaps, ...]
    scale: int
    nats: float


def depth_maps(view: RunView, number: int) -> Depths | None:
    """Return the maps of run `number` on the page, or None if no sample is on a grid of depths."""
    by_depth: dict[float, list[Record]] = {}
    for record in view.records:
        depth = record.facts.get("depth_percent")
        if isinstance(depth, int | float) and not isinstance(depth, bool) and math.isfinite(depth):
            by_depth.setdefault(float(depth), []).append(record)
    if not by_depth:
        return None
    depth_cells = {
        (cell.task, cell.arm, depth, cell.length): cell
        for depth, records in by_depth.items()
        for cell in cells(records)
    }
    gaps = _gaps(view.arms, by_depth)
    scale = colours.shown_scale(gaps.values())
    nats = nats_scale(gap.difference.logprob for gap in gaps.values() if gap.difference.logprob is not None)
    maker = _Maker(view, number, depth_cells, gaps, scale, nats)
    on_grid = {task for task, *_ in depth_cells}
    return Depths(tuple(maker.task(task) for task in view.tasks if task in on_grid), scale, nats)


def nats_scale(values: Iterable[float]) -> float:
    """Return the smallest of STEPS times a power of ten that holds every value, and at least 0.001."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    power = 10.0 ** math.floor(math.log10(max(largest, 1e-3)))
    return next((step * power for step in STEPS if largest <= step * power), 10 * power)


Gaps = Mapping[tuple[str, str, str, float, int], Row]  # (task, arm, baseline, depth, length)


def _gaps(arms: Sequence[str], by_depth: Mapping[float, Sequence[Record]]) -> Gaps:
    """Return every difference with its verdict.

    Holm's correction is over all maps of two arms; noise floors are per spot.
    """
    spots: dict[tuple[str, int, float], dict[Subject, Cells]] = {}
    for depth, records in by_depth.items():
        for arm, cells_ in by_arm(records).items():
            for place, scores in cells_.items():
                spots.setdefault((*place, depth), {})[Subject(arm)] = {place: scores}
    slots = Slots(spots, {Subject(arm): arm for arm in arms}, MARGIN, lambda spot: spot[:2])
    return {
        (task, arm, base, depth, length): row
        for base, arm in permutations(arms, 2)
        for (task, length, depth), row in slots.rows(Subject(arm), Subject(base)).items()
    }


@dataclass(frozen=True, slots=True)
class _Maker:
    view: RunView
    number: int
    cells: Mapping[tuple[str, str, float, int], Cell]
    gaps: Gaps
    scale: int
    nats: float

    def task(self, task: str) -> DepthMaps:
        spots = {(depth, length) for of, _, depth, length in self.cells if of == task}
        depths, lengths = sorted({depth for depth, _ in spots}), sorted({length for _, length in spots})

        def drawn(title: str, field: Fields) -> HeatMap:
            rows = ((f"{depth:g}", tuple(field((depth, length)) for length in lengths)) for depth in depths)
            return HeatMap(title, tuple(rows))

        arms = self.view.arms
        against = {}
        for base in arms if len(arms) > 1 else ():
            others = [arm for arm in arms if arm != base]
            titles = {arm: f"{plain(arm, 60)} minus {plain(base, 60)}" for arm in others}
            against[plain(base, 60)] = Against(
                tuple(drawn(titles[arm], self._changed(task, arm, base, True)) for arm in others),
                tuple(drawn(titles[arm], self._changed(task, arm, base, False)) for arm in others),
            )
        return DepthMaps(
            plain(task, 80),
            tuple(lengths),
            tuple(drawn(plain(arm, 60), self._scored(task, arm, True)) for arm in arms),
            tuple(drawn(plain(arm, 60), self._scored(task, arm, False)) for arm in arms),
            against,
        )

    def _scored(self, task: str, arm: str, score: bool) -> Fields:
        """Return the fields of an arm: scores, or log-probabilities per token."""

        def field(spot: Spot) -> Field:
            where, href = self._where(task, arm, spot)
            cell = self.cells.get((task, arm, *spot))
            value = None if cell is None else cell.mean if score else cell.logprob
            if cell is None or value is None:
                return Field(NONE, "none", f"{where}: {'no score' if cell else 'no records'}", href)
            text = f"{100 * value:.0f}" if score else _nats(value)
            shade = value if score else math.exp(min(0.0, value))
            return Field(text, colours.score_class(shade), f"{where}: {cell_words(cell)}", href)

        return field

    def _changed(self, task: str, arm: str, base: str, score: bool) -> Fields:
        """Return the fields of a difference: points, or nats per token."""

        def field(spot: Spot) -> Field:
            where, href = self._where(task, arm, spot)
            gap = self.gaps.get((task, arm, base, *spot))
            value = None if gap is None else gap.difference.difference if score else gap.difference.logprob
            if gap is None or value is None:
                return Field(NONE, "none", f"{where}: no pairs", href)
            words = "; ".join(filter(None, [sentence(gap), logprob_difference(gap)]))
            if score:
                text, told = percent(value, True).removesuffix(".0"), gap.told
                style = colours.difference_class(100 * value, self.scale, told)
            else:
                text, told = _nats(value, True), gap.logprob_says in ("lower", "higher")
                style = colours.difference_class(value, self.nats, told)
            return Field(text, style, f"{where} minus {plain(base, 60)}: {words}", href, told)

        return field

    def _where(self, task: str, arm: str, spot: Spot) -> tuple[str, str]:
        depth, length = spot
        where = f"{plain(task, 80)}, length {tokens(length)}, depth {depth:g}%, {plain(arm, 60)}"
        here = f"#{place_id(self.view, self.number, task, length)}"
        return where, samples_of(self.view, here, task=task, length=length, arm=arm)


def _nats(value: float, signed: bool = False) -> str:
    """Format with two decimals, or with one significant digit if those would print zero."""
    sign = "+" if signed else ""
    if value == 0:
        return "0"
    return f"{value:{sign}.2f}" if abs(value) >= 0.005 else f"{value:{sign}.0e}"
