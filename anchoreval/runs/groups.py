"""In which groups the samples of a run are computed, one after the other, and in which order their records stand."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from anchoreval.backends import Backend
from anchoreval.records.folder import RunFolder
from anchoreval.records.record import key_of
from anchoreval.runs.loop import Cell, Plan, Progress, requests_of, run_group
from anchoreval.schema import SCORED, Record, Sample
from anchoreval.tokenizer import TextTokenizer


def run_cells(
    cells: Sequence[Cell],
    plan: Plan,
    backend: Backend,
    tokenizer: TextTokenizer,
    window: int | None,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Answer every sample of every cell under every arm; each record is on disk before the next is made."""
    there = answered_of(folder)
    for cell in cells:
        if whole(cell, plan, there, backend.fingerprint, tokenizer, folder):
            progress.had(cell.asked * len(plan.arms))
            continue
        for samples in groups_of(cell, plan):
            run_group(cell, samples, plan, backend, tokenizer, window, folder, progress)


def answered_of(folder: RunFolder) -> Counter[tuple[str, int, str]]:
    """(task, length, arm) -> how many of its samples lie on disk with an answer."""
    answered = (record for record in folder.done.values() if record.outcome in SCORED)
    return Counter((record.task, record.length, record.arm) for record in answered)


def whole(
    cell: Cell,
    plan: Plan,
    there: Mapping[tuple[str, int, str], int],
    engine: str,
    tokenizer: TextTokenizer,
    folder: RunFolder,
) -> bool:
    """Whether every sample of a cell has its answer under every arm, so that none of its prompts is made again.

    The first, which is made already, has to be the one that lies there: RunError as from `RunFolder.waiting`.
    """
    if any(there.get((cell.task.address, cell.length, arm.name), 0) < cell.asked for arm in plan.arms):
        return False
    first = next(cell.samples, None)
    if first is None:
        return True
    cell.samples = itertools.chain([first], cell.samples)
    [request] = requests_of(cell, [first], plan, tokenizer)
    return not any(folder.waiting(arm.name, {first.id: key_of(request, arm, engine)}) for arm in plan.arms)


def groups_of(cell: Cell, plan: Plan) -> Iterator[list[Sample]]:
    """The samples of a cell in the groups that are computed together.

    A group ends at every multiple of `plan.group`, and where the run had ended before it went on with more samples.
    """
    at = 0
    while True:
        ends = [(at // plan.group + 1) * plan.group, *(end for end in plan.grown if end > at)]
        if not (samples := list(itertools.islice(cell.samples, min(ends) - at))):
            return
        yield samples
        at += len(samples)


def in_order(records: Iterable[Record], cells: Sequence[Cell], plan: Plan) -> list[Record]:
    """The records in the order in which one process takes the groups of every cell, each under every arm."""
    places = {(cell.task.address, cell.length): place for place, cell in enumerate(cells)}
    arms = {arm.name: place for place, arm in enumerate(plan.arms)}

    def place(record: Record) -> tuple[int, ...]:
        return places[record.task, record.length], record.index // plan.group, arms[record.arm], record.index

    return sorted(records, key=place)
