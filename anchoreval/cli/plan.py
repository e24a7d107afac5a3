"""`anchoreval plan`: estimate prompts, tokens, hours and memory of a run before anything is computed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown
from anchoreval.cli.run import flags as of_runs
from anchoreval.reports.table import table
from anchoreval.schema import Watch, work

if TYPE_CHECKING:
    from anchoreval.runs.estimate.cost import Machine
    from anchoreval.runs.estimate.estimate import ArmPlan, CellPlan, RunPlan


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `run`, the flag that describes the machine, and the one that makes every prompt."""
    of_runs(parser)
    about = (
        "estimate from data sheets for these GPUs, such as 8xH200, each with a copy of the model "
        "(default: load the model and measure this machine)"
    )
    exact = "make every prompt, which takes as long as in a run (default: a few of each task and length, scaled)"
    shared.add(parser, own={"gpus": shared.Option(about, metavar="NxNAME"), "exact": shared.Option(exact, False)})


def main(options: argparse.Namespace) -> int:
    """Print the plan of every model on stdout, and the cells that cannot be made on stderr."""
    from anchoreval.runs.several import models_named

    models, seconds = models_named(options.model), list[float | None]()
    for number, model in enumerate(models):
        run_plan = _planned(options, model, partial(shown, unit="cells"))
        for why in run_plan.unmakeable:
            note(f"left out: {why}")
        say(("\n" * (number > 0) + f"{model}\n" if len(models) > 1 else "") + page(run_plan, options.backend))
        seconds += [arm.seconds for arm in run_plan.arms]
    if len(models) > 1:
        known = [each for each in seconds if each is not None]
        say(f"\n{len(models)} models, one after the other: {_time(sum(known) if known else None)}")
    return 0


def _planned(options: argparse.Namespace, model: str, watch: Watch) -> RunPlan:
    from anchoreval.backends import capabilities_of
    from anchoreval.runs.estimate.cost import parse_gpus, shape_of
    from anchoreval.runs.estimate.estimate import limits_of, plan_run
    from anchoreval.runs.estimate.machine import this_machine
    from anchoreval.runs.evaluate import ask

    machine = parse_gpus(options.gpus) if options.gpus else None
    asked = ask(**{name: getattr(options, name) for name in shared.OF_RUNS} | {"model": model}, tell=note)
    given, known = asked.opening.options, capabilities_of(options.backend)
    prompts = asked.prompts.asking(until=None)  # a stopping rule takes all samples at most, and shuffles files
    with work(watch, 0, "making the first prompt of every task and length"):
        cells = prompts.cells()
    device = "cuda" if options.gpus else "cpu"
    shape = shape_of(prompts.model.folder, given["dtype"], device) if known.loads_checkpoint else None
    limits = limits_of(given, shape)
    if machine is None and shape is not None and known.kernels_of_torch:
        with work(watch, 0, f"measuring this machine with {prompts.model.name}"):
            machine = this_machine(prompts.model.checkpoint, given["dtype"], shape, limits.chunk_tokens)
    with work(watch, len(cells)) as progress:
        return plan_run(prompts, cells, shape, machine, limits, asked.output, options.exact, progress)


def page(plan: RunPlan, backend: str) -> str:
    """Return the plan as text."""
    from anchoreval.backends import BACKENDS
    from anchoreval.runs.estimate.estimate import half_width

    shape, machine, lines = plan.shape, plan.machine, list[str]()
    if shape is not None:
        size = f"{shape.parameters:,} parameters in {shape.dtype}"
        lines += [f"{size}; {shape.token_bytes:,} bytes a token in the cache", ""]
    rows = [["task", "length", "prompts", "made", "prompt tokens", "", "answer, at most"]]
    for cell in plan.cells:
        rows.append(_cell(cell.task, str(cell.length or "natural"), [cell], half_width([cell.error])))
    rows.append(_cell("all", "", plan.cells, half_width(cell.error for cell in plan.cells)))
    lines += [*table(rows), ""]
    own = plan.prompt_seconds + plan.record_seconds
    seconds = [arm.seconds for arm in plan.arms if arm.seconds is not None]
    rows = [["arm", "tokens computed", "taken from before", "", "time", "", "at once", ""]]
    for arm in plan.arms:
        part = half_width(arm.errors) / (arm.computed_tokens if arm.seconds is None else arm.seconds or 1)
        rows.append(_arm(machine, arm, part))
    rows.append(["prompts and records", "", "", "", _time(own)])
    rows.append(["all", "", "", "", _time(sum(seconds) + own if seconds else None)])
    lines += [*table(rows, (0, 7)), ""]
    says = f"{machine.count} x {machine.name}; {machine.says}" if machine else "time: not estimated"
    if not BACKENDS[backend].kernels_of_torch:
        says += f"; computed tokens are those of backend hf, {backend} is not measured"
    made, asked = sum(cell.made for cell in plan.cells), sum(cell.asked for cell in plan.cells)
    if made != asked:
        lines += [
            f"made the first {made:,} of {asked:,} prompts and scaled each task and length; +- is the 95% interval, "
            "from their spread in tokens;",
            "of more prompts neighbours share longer beginnings, so that a run may compute less; "
            "--exact makes them all",
        ]
    return "\n".join([*lines, says])


def _cell(task: str, length: str, cells: Sequence[CellPlan], half: float) -> list[str]:
    prompts, made, tokens, answers = (
        sum(getattr(cell, name) for cell in cells) for name in ("prompts", "made", "prompt_tokens", "answer_tokens")
    )
    return [task, length, f"{prompts:,}", f"{made:,}", f"{tokens:,}", _part(half / max(1, tokens)), f"{answers:,}"]


def _part(part: float) -> str:
    """Return `+- 0.3%`; nothing for an exact number."""
    return f"+- {100 * part:.2g}%" if part else ""


def _arm(machine: Machine | None, arm: ArmPlan, part: float) -> list[str]:
    share = arm.reused_tokens / max(1, arm.reused_tokens + arm.computed_tokens)
    fits = machine is None or machine.memory is None or (arm.peak_bytes or 0) <= machine.memory
    counts = [f"{arm.computed_tokens:,.0f}", f"{arm.reused_tokens:,.0f}", f"{share:.0%}"]
    ends = [_size(arm.peak_bytes), "" if fits else "does not fit one device"]
    return [arm.arm, *counts, _time(arm.seconds), _part(part), *ends]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / (1 << 20):,.0f} MiB" if count < 10 << 30 else f"{count / (1 << 30):,.1f} GiB"
