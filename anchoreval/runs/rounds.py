"""The loop under a stopping rule: rounds of every open cell in turn, until each cell's verdict is in.

A round is 16 samples of one cell under every arm. Rounds go over all open cells in the plan's order, so every prefix
is balanced over tasks and lengths; within a cell, blocks of 32 samples are dealt into rounds by rank of
depth, so each round is balanced over depths; samples that share a source are dealt whole and count once (dealing.py).
Verdicts follow from the records in that order alone: a killed run that goes on ends with the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from anchoreval.backends import Backend
from anchoreval.runs.dealing import BLOCK, ROUND, bets, dealt, source
from anchoreval.runs.prompts import Cell
from anchoreval.runs.units import Units, work_here
from anchoreval.schema import Json, Record, Sample
from anchoreval.stats.sequential import METHOD, Until, Watcher

WIDTH = 100  # of a sentence on the terminal, as in the result table
REFERS = (
    "each verdict by itself, of one arm against the first at one task and length: the probability that it is ever "
    "false, whatever the truth and however often it was looked at; not the whole table"
)


@dataclass(slots=True)
class _Open:
    """A cell that has no verdict yet: the rounds to come, a watcher per arm, samples used."""

    cell: Cell
    rounds: Iterator[list[Sample]]
    watchers: Mapping[str, Watcher]
    used: int = field(default=0)

    def decided(self) -> bool:
        return all(watcher.word != "undecided" for watcher in self.watchers.values())


def rule_of(until: Until) -> dict[str, Json]:
    """What the header says of the rule before anything is computed."""
    return {"rule": str(until), "method": METHOD, "round": ROUND, "block": BLOCK, "refers": REFERS}


def run_rounds(cells: Iterable[Cell], until: Until, units: Units, backend: Backend) -> None:
    """Compute until each cell's verdict is in, which the header then says; placebo arms do not hold a cell open.

    Records behind a verdict that have no answer are dropped: it came earlier, once samples had one that had none.
    """
    folder, spec = units.folder, units.prompts.spec
    arms = [arm.name for arm in spec.arms if not arm.placebo]
    base, others = arms[0], arms[1:]
    opened = [_Open(cell, dealt(cell.samples), {arm: Watcher(until) for arm in others}) for cell in cells]
    going, taken = list(opened), set[str]()
    while going:
        for one in list(going):
            samples = next(one.rounds, [])
            if samples:
                work_here(backend, units.of_group(one.cell, samples))
                found = {arm.name: [folder.of(sample.id, arm.name) for sample in samples] for arm in spec.arms}
                taken.update(record.key for records in found.values() for record in records)
                one.used += len(samples)
                sources = [source(sample) for sample in samples]
                for arm, watcher in one.watchers.items():
                    watcher.add(*bets(_scores(found[arm]), _scores(found[base]), sources))
            if not samples or one.decided():
                going.remove(one)
    folder.drop([key for key in folder.done if key not in taken and not folder.answered(key)])
    cells_said = [cell_said(*one.cell.place, one.cell.asked, one.used, one.watchers) for one in opened]
    folder.update_header(until=rule_of(until) | {"cells": cells_said})


def _scores(records: Iterable[Record]) -> list[float | None]:
    return [record.score for record in records]


def cell_said(task: str, length: int, asked: int, used: int, watchers: Mapping[str, Watcher]) -> dict[str, Json]:
    """What the header says of one cell: samples used, and each arm's verdict with the numbers behind it.

    `sources` stands there where several pairs share one; difference, low and high are then those of a source's mean.
    """
    arms: dict[str, Any] = {}
    for arm, watcher in watchers.items():
        result = watcher.result
        arms[arm] = {
            "verdict": str(result),
            "pairs": result.pairs,
            **({"sources": result.bets} if result.bets < result.pairs else {}),
            "difference": result.difference,
            "low": result.low,
            "high": result.high,
        }
    return {"task": task, "length": length, "asked": asked, "used": used, "arms": arms}


def words(header: Mapping[str, Json]) -> list[str]:
    """A line per cell and arm of a run that stopped by its rule; empty for other runs."""
    rule = header.get("until") or {}
    lines = [
        f"{cell['task']} at {cell['length']}: {arm} {said['verdict']} after "
        + (f"{said['sources']} sources, " if said.get("sources") else "")
        + f"{said['pairs']} of {cell['asked']} pairs"
        for cell in rule.get("cells", [])
        for arm, said in cell["arms"].items()
    ]
    return [*lines, *wrap(f"{rule['rule']}: {rule['refers']}", WIDTH, subsequent_indent="  ")] if lines else []
