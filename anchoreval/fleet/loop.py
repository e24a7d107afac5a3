"""The loop of a run over many workers: the same groups as one process takes, each group under every arm a unit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from anchoreval.arms import Arm
from anchoreval.errors import RunError
from anchoreval.fleet.fleet import Fleet, Unit
from anchoreval.results import RunFolder
from anchoreval.run import Cell, Plan, Progress, key_of, requests_of, store
from anchoreval.schema import Request, Sample
from anchoreval.tokenizer import TextTokenizer


def run_cells_on(
    fleet: Fleet,
    cells: Sequence[Cell],
    plan: Plan,
    tokenizer: TextTokenizer,
    window: int | None,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Answer every sample of every cell under every arm; each record is on disk as soon as its output came back.

    Records are put into the order of `run.run_cells` when all are there.
    """
    order: list[str] = []
    fleet.work(_units(order, fleet.fingerprint, cells, plan, tokenizer, window, folder, progress))
    folder.sort(order)


def _units(
    order: list[str],
    engine: str,
    cells: Sequence[Cell],
    plan: Plan,
    tokenizer: TextTokenizer,
    window: int | None,
    folder: RunFolder,
    progress: Progress,
) -> Iterator[Unit]:
    """Every group under every arm that is not wholly on disk; the keys of all go to `order`."""
    for cell in cells:
        while samples := list(itertools.islice(cell.samples, plan.group)):
            requests = requests_of(cell, samples, plan, tokenizer, window)
            for arm in plan.arms:
                keys = {request.sample_id: key_of(request, arm, engine) for request in requests}
                order += keys.values()
                if all(key in folder.done for key in keys.values()):
                    progress(len(samples))
                else:
                    yield _unit(cell, samples, requests, arm, keys, folder, progress)


def _unit(
    cell: Cell,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    arm: Arm,
    keys: dict[str, str],
    folder: RunFolder,
    progress: Progress,
) -> Unit:
    by_id = {sample.id: (sample, request) for sample, request in zip(samples, requests, strict=True)}

    def done() -> None:
        missing = [name for name, key in keys.items() if key not in folder.done]
        if missing:
            raise RunError(f"a worker left out {missing[0]} under {arm.name}: run the same command again")
        progress(len(samples))

    return Unit(arm, requests, lambda output: store(cell.task, output, by_id, arm, keys, folder), done)
