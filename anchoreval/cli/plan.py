"""`anchoreval plan`: estimate prompts, tokens, hours and memory of a run before anything is computed."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from anchoreval.arms.arm import DTYPES
from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown
from anchoreval.reports.table import table
from anchoreval.schema import Watch, work

if TYPE_CHECKING:
    from anchoreval.runs.estimate.cost import Machine
    from anchoreval.runs.estimate.estimate import ArmPlan, RunPlan


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `run` that decide what is computed, and the flags that describe the machine."""
    shared.model(parser)
    parser.add_argument("--tasks", required=True, help="suites, sets, tasks or globs, comma or space separated")
    parser.add_argument("--lengths", type=shared.lengths, metavar="N,N", help="tokens, as for run")
    parser.add_argument(
        "--rope", "--arms", dest="rope", action=shared.Arms, default="native", metavar="ARM,ARM", help="as for run"
    )
    parser.add_argument("--limit", type=shared.positive, metavar="N", help="samples of each task and length")
    parser.add_argument("--document-tokens", type=shared.positive, metavar="N", help="as for run")
    shared.template(parser, None, "as for run")
    shared.anchor(parser)
    parser.add_argument(
        "--gpus",
        metavar="NxNAME",
        help="estimate from data sheets for these GPUs, such as 8xH200, each with a copy of the model "
        "(default: load the model and measure this machine)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of weights and activations, as for run")
    parser.add_argument(
        "--chunk-tokens", type=shared.positive, default=512, help="tokens per prefill chunk (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-tokens", type=shared.positive, default=32768, help="cache budget of a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--max-length", type=shared.length, metavar="N", help="number of positions of the model, as for run"
    )
    shared.sources(parser)
    shared.settings(parser)


def main(options: argparse.Namespace) -> int:
    """Print the plan on stdout, and the cells that cannot be made on stderr."""
    run_plan = _planned(options, partial(shown, unit="prompts"))
    for why in run_plan.unmakeable:
        note(f"left out: {why}")
    say(page(run_plan))
    return 0


def _planned(options: argparse.Namespace, watch: Watch) -> RunPlan:
    from anchoreval.arms.arm import parse_arms
    from anchoreval.backends.hf.batches import Limits
    from anchoreval.model import Model
    from anchoreval.runs.estimate.cost import parse_gpus, shape_of
    from anchoreval.runs.estimate.estimate import plan_run
    from anchoreval.runs.estimate.machine import this_machine
    from anchoreval.runs.prompts import Prompts
    from anchoreval.runs.spec import Spec

    machine = parse_gpus(options.gpus) if options.gpus else None
    model = Model.of(options.model, max_length=options.max_length)
    dtype = options.dtype or model.card.dtype
    run_spec = Spec.of(
        options.tasks,
        settings=shared.chosen_settings(options),
        lengths=options.lengths,
        arms=parse_arms(options.rope, dtype),
        limit=options.limit,
        seed=options.seed,
        template=options.template or model.card.template,
        template_args=shared.template_args(options),
        anchor=options.anchor,
        haystack=options.haystack or model.card.haystack,
        data_dir=options.data_dir,
        text=options.text,
        wordlists=options.wordlists,
        context=not options.no_context,
        document_tokens=options.document_tokens,
    )
    prompts, shape = Prompts(run_spec, model), shape_of(model.folder, dtype)
    cell_set = prompts.cells()
    machine = machine or this_machine(model.checkpoint, dtype, shape, options.chunk_tokens)
    limits = Limits(options.chunk_tokens, options.batch_tokens)
    with work(watch, sum(cell.asked for cell in cell_set)) as progress:
        return plan_run(prompts, cell_set, shape, machine, limits, progress)


def page(plan: RunPlan) -> str:
    """Return the plan as text."""
    shape, machine = plan.shape, plan.machine
    lines = [f"{shape.parameters:,} parameters in {shape.dtype}; {shape.token_bytes:,} bytes a token in the cache", ""]
    cells = [(c.task, str(c.length or "natural"), c.prompts, c.prompt_tokens, c.answer_tokens) for c in plan.cells]
    totals = [sum(getattr(cell, name) for cell in plan.cells) for name in ("prompts", "prompt_tokens", "answer_tokens")]
    cells.append(("all", "", *totals))
    rows = [[name, length, *(f"{count:,}" for count in counts)] for name, length, *counts in cells]
    lines += [*table([("task", "length", "prompts", "prompt tokens", "answer, at most"), *rows]), ""]
    arms = [["arm", "tokens computed", "taken from before", "", "time", "at once", ""]]
    arms += [_arm(machine, arm) for arm in plan.arms]
    arms.append(["all", "", "", "", _time(sum(arm.seconds for arm in plan.arms))])
    lines += [*table(arms, (0, 6)), ""]
    return "\n".join([*lines, f"{machine.count} x {machine.name}; {machine.says}"])


def _arm(machine: Machine, arm: ArmPlan) -> list[str]:
    share = arm.reused_tokens / max(1, arm.reused_tokens + arm.computed_tokens)
    fits = machine.memory is None or arm.peak_bytes <= machine.memory
    counts = [f"{arm.computed_tokens:,}", f"{arm.reused_tokens:,}", f"{share:.0%}"]
    return [arm.arm, *counts, _time(arm.seconds), _size(arm.peak_bytes), "" if fits else "does not fit one device"]


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB" if count < 10 << 30 else f"{count / (1 << 30):,.1f} GiB"
