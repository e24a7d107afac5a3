"""`anchoreval plan`: estimate prompts, tokens, hours and memory of a run before anything is computed."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown
from anchoreval.reports.table import table
from anchoreval.schema import Watch, work

if TYPE_CHECKING:
    from anchoreval.runs.estimate.cost import Machine
    from anchoreval.runs.estimate.estimate import ArmPlan, RunPlan


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `run`, and the flag that describes the machine."""
    shared.add(parser, *shared.OF_RUNS, headings=True)
    about = (
        "estimate from data sheets for these GPUs, such as 8xH200, each with a copy of the model "
        "(default: load the model and measure this machine)"
    )
    shared.add_own(parser, {"gpus": shared.Option(about, metavar="NxNAME")})


def main(options: argparse.Namespace) -> int:
    """Print the plan on stdout, and the cells that cannot be made on stderr."""
    run_plan = _planned(options, partial(shown, unit="prompts"))
    for why in run_plan.unmakeable:
        note(f"left out: {why}")
    say(page(run_plan, options.backend))
    return 0


def _planned(options: argparse.Namespace, watch: Watch) -> RunPlan:
    from anchoreval.backends import capabilities_of
    from anchoreval.runs.estimate.cost import parse_gpus, shape_of
    from anchoreval.runs.estimate.estimate import limits_of, plan_run
    from anchoreval.runs.estimate.machine import this_machine
    from anchoreval.runs.evaluate import ask

    machine = parse_gpus(options.gpus) if options.gpus else None
    asked = ask(**shared.keywords(options, shared.OF_RUNS), tell=note)
    prompts, given, known = asked.prompts, asked.opening.options, capabilities_of(options.backend)
    with work(watch, 0, "making the first prompt of every task and length"):
        cells = prompts.cells()
    device = "cuda" if options.gpus else "cpu"
    shape = shape_of(prompts.model.folder, given["dtype"], device) if known.loads_checkpoint else None
    limits = limits_of(given, shape)
    if machine is None and shape is not None and known.kernels_of_torch:
        with work(watch, 0, f"measuring this machine with {prompts.model.name}"):
            machine = this_machine(prompts.model.checkpoint, given["dtype"], shape, limits.chunk_tokens)
    with work(watch, sum(cell.asked for cell in cells)) as progress:
        return plan_run(prompts, cells, shape, machine, limits, progress)


def page(plan: RunPlan, backend: str) -> str:
    """Return the plan as text."""
    from anchoreval.backends import BACKENDS

    shape, machine, lines = plan.shape, plan.machine, list[str]()
    if shape is not None:
        size = f"{shape.parameters:,} parameters in {shape.dtype}"
        lines += [f"{size}; {shape.token_bytes:,} bytes a token in the cache", ""]
    cells = [(c.task, str(c.length or "natural"), c.prompts, c.prompt_tokens, c.answer_tokens) for c in plan.cells]
    totals = [sum(getattr(cell, name) for cell in plan.cells) for name in ("prompts", "prompt_tokens", "answer_tokens")]
    cells.append(("all", "", *totals))
    rows = [[name, length, *(f"{count:,}" for count in counts)] for name, length, *counts in cells]
    lines += [*table([("task", "length", "prompts", "prompt tokens", "answer, at most"), *rows]), ""]
    seconds = [arm.seconds for arm in plan.arms if arm.seconds is not None]
    arms = [["arm", "tokens computed", "taken from before", "", "time", "at once", ""]]
    arms += [_arm(machine, arm) for arm in plan.arms]
    arms.append(["all", "", "", "", _time(sum(seconds) if seconds else None)])
    lines += [*table(arms, (0, 6)), ""]
    says = f"{machine.count} x {machine.name}; {machine.says}" if machine else "time: not estimated"
    if not BACKENDS[backend].kernels_of_torch:
        says += f"; computed tokens are those of backend hf, {backend} is not measured"
    return "\n".join([*lines, says])


def _arm(machine: Machine | None, arm: ArmPlan) -> list[str]:
    share = arm.reused_tokens / max(1, arm.reused_tokens + arm.computed_tokens)
    fits = machine is None or machine.memory is None or (arm.peak_bytes or 0) <= machine.memory
    counts = [f"{arm.computed_tokens:,}", f"{arm.reused_tokens:,}", f"{share:.0%}"]
    return [arm.arm, *counts, _time(arm.seconds), _size(arm.peak_bytes), "" if fits else "does not fit one device"]


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
