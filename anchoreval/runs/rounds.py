"""The loop of a run with a stopping rule: compute rounds of all open cells in turn, until each cell has its verdict.

A round is 16 samples of one cell under every arm. Rounds go over all open cells in the plan's order, so every prefix of
the run is balanced over tasks and lengths. Within a cell, blocks of 32 samples are dealt into rounds by their rank in
depth, so each round is balanced over depths. Samples that share a source go into the same round and count once
(dealing.py). Verdicts depend only on the records in that order, so a run that was killed and resumed ends with the same
verdicts.
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

WIDTH = 100  # characters of a line on the terminal, as in the result table
REFERS = (
    "each verdict by itself, of one arm against the first at one task and length: the probability that it is ever "
    "false, whatever the truth and however often it was looked at; not the whole table"
)


@dataclass(slots=True)
class _Open:
    """A cell without a verdict: its remaining rounds, a watcher per arm, and the number of samples used."""

    cell: Cell
    rounds: Iterator[list[Sample]]
    watchers: Mapping[str, Watcher]
    used: int = field(default=0)

    def decided(self) -> bool:
        return all(watcher.word != "undecided" for watcher in self.watchers.values())


def rule_of(until: Until) -> dict[str, Json]:
    """Return the header's `until` before anything is computed: the rule, without cells."""
    return {"rule": str(until), "method": METHOD, "round": ROUND, "block": BLOCK, "refers": REFERS}


def run_rounds(cells: Iterable[Cell], until: Until, units: Units, backend: Backend) -> None:
    """Compute rounds until each cell has its verdict, and write the verdicts to the header.

    Placebo arms need no verdict. In a resumed run a verdict may come earlier than before, because samples that had
    failed now have answers; records behind it that have no answer are dropped.
    """
    folder, spec = units.folder, units.prompts.spec
    arms = [arm.name for arm in spec.arms if not arm.placebo]
    base, others = arms[0], arms[1:]
    opened = [_Open(cell, dealt(cell.samples), {arm: Watcher(until) for arm in others}) for cell in cells]
    going, taken = list(opened), set[str]()
    while going:
        for open_cell in list(going):
            samples = next(open_cell.rounds, [])
            if samples:
                work_here(backend, units.of_group(open_cell.cell, samples))
                by_arm = {arm.name: [folder.of(sample.id, arm.name) for sample in samples] for arm in spec.arms}
                taken.update(record.key for records in by_arm.values() for record in records)
                open_cell.used += len(samples)
                sources = [source(sample) for sample in samples]
                for arm, watcher in open_cell.watchers.items():
                    watcher.add(*bets(_scores(by_arm[arm]), _scores(by_arm[base]), sources))
            if not samples or open_cell.decided():
                going.remove(open_cell)
    folder.drop([key for key in folder.done if key not in taken and not folder.answered(key)])
    rows = [
        cell_said(*open_cell.cell.place, open_cell.cell.asked, open_cell.used, open_cell.watchers)
        for open_cell in opened
    ]
    folder.update_header(until=rule_of(until) | {"cells": rows})


def _scores(records: Iterable[Record]) -> list[float | None]:
    return [record.score for record in records]


def cell_said(task: str, length: int, asked: int, used: int, watchers: Mapping[str, Watcher]) -> dict[str, Json]:
    """Return the header's row of one cell: samples used, and each arm's verdict with its numbers.

    `sources` is included if several pairs share a source; difference, low and high are then those of the source means.
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
    """Return a line per cell and arm of a run with a stopping rule, and the rule; an empty list for other runs."""
    rule = header.get("until") or {}
    lines = [
        f"{cell['task']} at {cell['length']}: {arm} {verdict['verdict']} after "
        + (f"{verdict['sources']} sources, " if verdict.get("sources") else "")
        + f"{verdict['pairs']} of {cell['asked']} pairs"
        for cell in rule.get("cells", [])
        for arm, verdict in cell["arms"].items()
    ]
    return [*lines, *wrap(f"{rule['rule']}: {rule['refers']}", WIDTH, subsequent_indent="  ")] if lines else []
