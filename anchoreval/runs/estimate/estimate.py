"""Plan a run: make every prompt, count every pass of the hf backend, estimate hours and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.backends.hf.batches import Limits
from anchoreval.runs.estimate.cost import Machine, Shape, peak_bytes
from anchoreval.runs.estimate.dry import Counted, DryArm
from anchoreval.runs.prompts import Cell, Cells, Prompts
from anchoreval.runs.units import groups_of
from anchoreval.schema import SILENT, Progress, Request


@dataclass(frozen=True, slots=True)
class CellPlan:
    """One task at one length: the number of prompts that fit, their tokens, and the answers' total budget."""

    task: str
    length: int
    prompts: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One arm: prompt tokens computed, prompt tokens reused from earlier prompts, seconds, peak memory in bytes."""

    arm: str
    computed_tokens: int
    reused_tokens: int
    seconds: float | None
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run takes; `unmakeable` gives the reasons why cells and prompts are left out.

    Without a `shape`, as of a server's model, memory is not estimated, and without a `machine` no time.
    """

    cells: tuple[CellPlan, ...]
    arms: tuple[ArmPlan, ...]
    shape: Shape | None
    machine: Machine | None
    unmakeable: tuple[str, ...]


def limits_of(options: Mapping[str, Any], shape: Shape | None) -> Limits:
    """Return how much of a model is computed at once with these options of a backend."""
    names = (field.name for field in fields(Limits))
    asked = Limits(**{name: options[name] for name in names if name in options})
    chunks = "chunk_tokens" in options or options.get("kernel") not in (None, "default", "auto", "fused", "sdpa")
    return asked if chunks or shape is None else replace(asked, pass_tokens=shape.pass_tokens)


def plan_run(
    prompts: Prompts,
    made: Cells,
    shape: Shape | None,
    machine: Machine | None,
    limits: Limits,
    progress: Progress = SILENT,
) -> RunPlan:
    """Return the plan of a run as backend hf computes it: exact tokens, estimated seconds and bytes (cost.py)."""
    whole = shape is not None and shape.whole_prompts
    arms = {arm: DryArm(_limits(arm, limits), arm.arrangement, whole) for arm in prompts.spec.arms}
    notices = [line.removeprefix("left out: ") for line in made.notices]
    cells, left_out = [], [*(str(row["why"]) for row in made.unmakeable), *notices]
    for cell in made.cells:
        count = prompt_tokens = answer_tokens = 0
        progress.at(f"{cell.task.address} at {cell.length:,}")
        for group in _groups(cell, prompts):
            count += len(group)
            prompt_tokens += sum(len(request.token_ids) for request in group)
            answer_tokens += sum(request.max_new_tokens for request in group)
            for dry in arms.values():
                dry.count(group)
            progress(len(group))
        cells.append(CellPlan(*cell.place, count, prompt_tokens, answer_tokens))
        if over := cell.asked - count:
            left_out.append(
                f"{cell.task.address}: {over} of {cell.asked} prompts do not fit the model's {prompts.window} positions"
            )
    rows = tuple(_arm(arm, dry.counted, shape, machine) for arm, dry in arms.items())
    return RunPlan(tuple(cells), rows, shape, machine, tuple(left_out))


def _arm(arm: Arm, counted: Counted, shape: Shape | None, machine: Machine | None) -> ArmPlan:
    tokens = (arm.name, counted.prefilled_tokens, counted.reused_tokens)
    if shape is None:
        return ArmPlan(*tokens, None, None)
    seconds = machine.seconds(shape, counted.passes) if machine else None
    return ArmPlan(*tokens, seconds, (machine.libraries if machine else 0) + peak_bytes(shape, counted))


def _groups(cell: Cell, prompts: Prompts) -> Iterator[list[Request]]:
    """Yield the requests of a cell that fit the model, in the groups that the run computes."""
    for samples in groups_of(cell, prompts.spec):
        requests = [prompts.request(cell.task, sample) for sample in samples]
        yield [request for request in requests if not prompts.does_not_fit(cell.task, request)]


def _limits(arm: Arm, limits: Limits) -> Limits:
    return limits.placebo() if arm.placebo else limits
