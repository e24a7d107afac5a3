"""What things cost their developers: `make bench-NAME ARGS="..."`, or `PYTHONPATH=tests python -m bench NAME ...`.

What a user measures on a machine of theirs is `anchoreval bench`.
"""

from __future__ import annotations

import argparse
import sys

from bench.scale import PARTS as SCALE_PARTS

from anchoreval.cli import options as shared
from anchoreval.cli.options import Option


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    kinds = top.add_subparsers(dest="kind", required=True, metavar="NAME")
    samples = kinds.add_parser("samples", help="CPU seconds and peak memory of making prompts")
    shared.add(samples, "tasks", required=False, default="ruler")
    shared.add(samples, "lengths", default=[4096])
    shared.add(samples, "limit", default=500)
    shared.add(samples, "tokenizer", required=True)
    shared.add(samples, "data_dir", "text", "no_context", "wordlists")
    shared.add(samples, "haystack", default="published")
    board = kinds.add_parser("board", help="seconds and peak memory of a declared board over generated runs")
    shared.add(board, own={
        "runs": Option("generated runs", 1000, shared.positive, "N"),
        "records": Option("records of each run", 1000, shared.positive, "N"),
    })  # fmt: skip
    scale = kinds.add_parser("scale", help="what the tool itself costs as records, runs and prompts grow")
    shared.add(scale, own={
        "parts": Option("records, runs, driver, engines", SCALE_PARTS, lambda text: text.split(","), "PART,PART"),
        "samples": Option("records: samples of a cell at each size, 52 records each", (20, 40, 80), numbers, "N,N,N"),
        "length": Option("records: tokens of a prompt", 1024, shared.length, "N"),
        "runs": Option("runs: run folders at each size", (20, 50, 100), numbers, "N,N,N"),
        "lengths": Option("driver: tokens of a prompt", (8192, 32768, 131072), shared.lengths, "N,N,N"),
        "prompts": Option("driver: prompts of a task, 52 records each", 8, shared.positive, "N"),
        "engine_lengths": Option("engines: tokens of a prompt", (2048, 4096, 8192), shared.lengths, "N,N,N"),
    })  # fmt: skip
    kinds.add_parser("sequential", help="false verdicts and samples used by run --until, simulated")
    beside = kinds.add_parser("lm-eval", help="time and memory of our model in lm-eval beside its hf model")
    shared.add(beside, own={
        "length": Option("tokens of the context that all questions share", 13_000, shared.length, "N"),
        "questions": Option("questions on it", 8, shared.positive, "N"),
        "memory_length": Option("tokens of the prompt for peak memory", 32_768, shared.length, "N"),
    })  # fmt: skip
    return top


def numbers(text: str) -> list[int]:
    """Return the numbers of a list with commas."""
    return [shared.positive(each) for each in text.split(",")]


def main() -> None:
    options = parser().parse_args()
    if options.kind == "board":
        from bench.board import report_board

        text = report_board(options.runs, options.records)
    elif options.kind == "sequential":
        from bench.sequential import report_sequential

        text = report_sequential()
    elif options.kind == "scale":
        from bench.scale import report_scale

        names = ("parts", "samples", "length", "runs", "lengths", "prompts", "engine_lengths")
        for line in report_scale(*(getattr(options, name) for name in names)):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        return
    elif options.kind == "lm-eval":
        from bench.lm_eval_beside import report_lm_eval

        text = report_lm_eval(options.length, options.questions, options.memory_length)
    else:
        measure_samples(options)
        return
    sys.stdout.write(f"{text}\n")


def measure_samples(options: argparse.Namespace) -> None:
    from bench.samples import bench_samples

    from anchoreval.cards import select_tasks
    from anchoreval.model import tokenizer_of
    from anchoreval.texts.sources import Sources

    context = not options.no_context
    sources = Sources(options.data_dir, options.haystack, options.wordlists, context=context, text=options.text)
    bench_samples(
        select_tasks(options.tasks)[0], options.lengths, options.limit, tokenizer_of(options.tokenizer), sources
    )


if __name__ == "__main__":
    main()
