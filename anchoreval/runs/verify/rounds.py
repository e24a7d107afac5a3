"""Verify runs with a stopping rule: which samples they took, in which order, and the verdicts, from records alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Sequence

from anchoreval.errors import AnchorEvalError
from anchoreval.records.parts import AskedCell, HeaderParts, StoppedCell, VerdictSaid
from anchoreval.records.run import Run
from anchoreval.runs.dealing import bets, dealt, dealt_by_depth, shuffled, source
from anchoreval.runs.rebuild import Remake
from anchoreval.runs.rounds import cell_said, rule_of
from anchoreval.schema import Sample
from anchoreval.stats.sequential import Until, Watcher, parse_until

TOLERANCE = 1e-6  # bounds of a mean are computed to 1e-9; machines may round differently
Rounds = Sequence[Sequence[int]]  # the rounds of a cell, each the numbers of its samples
Scores = Callable[[int, str], float | None]  # number of a sample, arm -> score
SourceOf = Callable[[int], Hashable]  # number of a sample -> its source


def rounds_taken(remake: Remake) -> Iterator[tuple[int, Sample]]:
    """Yield (place of the round among the rounds of all cells, sample) for every sample that the run took.

    Rounds go over the open cells in the plan's order, so the place follows from turn and cell. As long as the header
    does not tell how many samples a cell used, the run may have taken all that were asked for.
    """
    asked, until = remake.header.asked, remake.header.until
    used = {(cell.task, cell.length): cell.used for cell in until.cells} if until else {}
    for number, cell in enumerate(asked):
        left = used.get((cell.task, cell.length), cell.samples)
        all_samples = remake.samples(cell.task, cell.length)
        rounds = dealt(shuffled(all_samples, remake.spec.seed)) if _whole(remake, cell) else dealt_by_depth(all_samples)
        for turn, samples in enumerate(rounds):
            yield from ((turn * len(asked) + number, sample) for sample in samples)
            left -= len(samples)
            if left <= 0:
                break


def _whole(remake: Remake, cell: AskedCell) -> bool:
    """Return True if the run shuffled the samples of a cell and dealt them by source; older runs did not."""
    return f"{cell.task}@{cell.length}" in remake.header.identity.shuffled


def source_bet_on(remake: Remake, sample: Sample) -> Hashable:
    """Return what the run's rule bet on: the sample's source, or its id in a run that bets on single samples."""
    cell = AskedCell(task=sample.task, length=sample.length, samples=0)
    return source(sample) if _whole(remake, cell) else sample.id


def rule_differences(run: Run, parts: HeaderParts) -> Iterator[str]:
    """Yield contradictions between a header's rule, its identity, its cells and how this version takes samples."""
    if parts.identity.until is None or parts.until is None:
        yield "until: stands in the header or in its identity, not in both"
        return
    try:
        rule = rule_of(parse_until(parts.identity.until))
    except AnchorEvalError as error:
        yield f"until: {error}"
        return
    for name, value in rule.items():
        if run.header["until"].get(name) != value:
            yield f"until: {name}: not that of {parts.identity.until} in this version"
    cells = [(cell.task, cell.length, cell.asked) for cell in parts.until.cells]
    if cells and cells != [(cell.task, cell.length, cell.samples) for cell in parts.asked]:
        yield "until: cells: not those that were asked for"
    if parts.finished and not cells:
        yield "until: the run finished and no verdict stands here"


def verdict_differences(
    remake: Remake, rounds: dict[tuple[str, int], Rounds], sources: SourceOf, scores: Scores
) -> Iterator[str]:
    """Apply the rule again from the first round; yield where the header's cells differ from the records."""
    parts = remake.header
    if parts.until is None or parts.identity.until is None:
        return
    rule = parse_until(parts.identity.until)
    arms = [arm.name for arm in remake.spec.arms if not arm.placebo]
    for said in parts.until.cells:
        again = stopped(said, rule, arms, rounds.get((said.task, said.length), ()), sources, scores)
        place = f"until: {said.task} at {said.length}"
        if again.used != said.used:
            yield f"{place}: used is {said.used}, by the rule {again.used}"
        if again.used < said.asked and any(verdict.verdict == "undecided" for verdict in again.arms.values()):
            yield f"{place}: stopped after {again.used} of {said.asked} samples with no verdict"
        if said.arms.keys() != again.arms.keys():
            yield f"{place}: verdicts on {', '.join(said.arms)}, not on {', '.join(again.arms)}"
        for arm in said.arms.keys() & again.arms.keys():
            yield from (f"{place}: {arm}: {what}" for what in _apart(said.arms[arm], again.arms[arm]))


def stopped(
    cell: StoppedCell, rule: Until, arms: Sequence[str], rounds: Rounds, sources: SourceOf, scores: Scores
) -> StoppedCell:
    """Return the cell as the rule leaves it: rounds in order until every arm has its verdict against the first."""
    base, others = arms[0], arms[1:]
    watchers, used = {arm: Watcher(rule) for arm in others}, 0
    for samples in rounds:
        used += len(samples)
        first = [scores(sample, base) for sample in samples]
        for arm, watcher in watchers.items():
            watcher.add(*bets([scores(sample, arm) for sample in samples], first, map(sources, samples)))
        if all(watcher.word != "undecided" for watcher in watchers.values()):
            break
    return StoppedCell.model_validate(cell_said(cell.task, cell.length, cell.asked, used, watchers))


def in_rounds(places: Iterator[tuple[str, int, int]]) -> dict[tuple[str, int], Rounds]:
    """Return (task, length) -> its rounds, from the task, length and round of every sample in order."""
    rounds: dict[tuple[str, int], list[list[int]]] = {}
    for (task, length, _), samples in itertools.groupby(enumerate(places), key=lambda numbered: numbered[1]):
        rounds.setdefault((task, length), []).append([number for number, _ in samples])
    return dict(rounds)


def _apart(said: VerdictSaid, again: VerdictSaid) -> Iterator[str]:
    """Yield the fields of a verdict in the header that differ from the verdict of the records."""
    for name, value in said.model_dump().items():
        other = getattr(again, name)
        near = isinstance(value, float) and isinstance(other, float) and math.isclose(value, other, abs_tol=TOLERANCE)
        if value != other and not near:
            yield f"{name} is {value}, from the records {other}"
