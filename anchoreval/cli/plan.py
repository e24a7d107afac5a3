"""`anchoreval plan`: estimate prompts, tokens, hours and memory of a run before anything is computed."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown
from anchoreval.schema import Watch, work

if TYPE_CHECKING:
    from anchoreval.runs.estimate.estimate import RunPlan


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
    limits = limits_of(given)
    with work(watch, 0, "making the first prompt of every task and length"):
        cells = prompts.cells()
    shape = shape_of(prompts.model.folder, given["dtype"]) if known.loads_checkpoint else None
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
    lines += [f"{'task':32} {'length':>8} {'prompts':>8} {'prompt tokens':>15} {'answer, at most':>16}"]
    lines += [
        f"{cell.task:32} {cell.length or 'natural':>8} {cell.prompts:>8} {cell.prompt_tokens:>15,} "
        f"{cell.answer_tokens:>16,}"
        for cell in plan.cells
    ]
    totals = [sum(getattr(cell, name) for cell in plan.cells) for name in ("prompts", "prompt_tokens", "answer_tokens")]
    lines += [f"{'all':32} {'':>8} {totals[0]:>8} {totals[1]:>15,} {totals[2]:>16,}", ""]
    lines += [f"{'arm':32} {'tokens computed':>16} {'taken from before':>18} {'time':>10} {'at once':>10}"]
    for arm in plan.arms:
        share = arm.reused_tokens / max(1, arm.reused_tokens + arm.computed_tokens)
        fits = machine is None or machine.memory is None or (arm.peak_bytes or 0) <= machine.memory
        lines.append(
            f"{arm.arm:32} {arm.computed_tokens:>16,} {arm.reused_tokens:>12,} {share:>5.0%} {_time(arm.seconds):>10} "
            f"{_size(arm.peak_bytes):>10}{'' if fits else '  does not fit one device'}"
        )
    seconds = [arm.seconds for arm in plan.arms if arm.seconds is not None]
    lines += [f"{'all':32} {'':>35} {_time(sum(seconds) if seconds else None):>10}", ""]
    says = f"{machine.count} x {machine.name}; {machine.says}" if machine else "time: not estimated"
    if not BACKENDS[backend].kernels_of_torch:
        says += f"; computed tokens are those of backend hf, {backend} is not measured"
    return "\n".join([*lines, says])


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
