"""`anchoreval bench`: measure speed and memory on this machine, one kind of figure at a time."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say

#: Kinds that return their figures as text: the module in bench/ (only that one is imported), its function, and the
#: flags that the function takes.
_REPORTS = {
    "memory": ("memory", "report_memory", "length"),
    "board": ("board", "report_board", "runs", "records"),
    "sequential": ("until", "report_sequential"),
    "anchor": ("anchor", "report_anchor"),
    "lm-eval": ("lm_eval", "report_lm_eval", "length", "questions", "memory_length"),
    "engines": ("engines", "report_engines", "length", "prompts", "questions"),
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each kind of benchmark, with its flags."""
    from anchoreval.bench.prefill import SHAPES

    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    samples = kinds.add_parser("samples", help="measure CPU seconds and peak memory of making prompts")
    samples.add_argument("--tasks", default="ruler")
    samples.add_argument("--lengths", type=shared.lengths, default=[4096], metavar="N,N")
    samples.add_argument("--tokenizer", required=True, metavar="PATH")
    samples.add_argument("--limit", type=shared.positive, default=500, metavar="N")
    shared.sources(samples)
    memory = kinds.add_parser(
        "memory", help="measure the peak memory that one long prompt takes beyond weights and cache"
    )
    memory.add_argument("--length", type=shared.length, default=32768)
    board = kinds.add_parser("board", help="measure seconds and peak memory of a declared board over generated runs")
    board.add_argument(
        "--runs", type=shared.positive, default=1000, metavar="N", help="generated runs (default: %(default)s)"
    )
    board.add_argument(
        "--records", type=shared.positive, default=1000, metavar="N", help="records of each run (default: %(default)s)"
    )
    kinds.add_parser("sequential", help="simulate run --until: count false verdicts and samples used")
    kinds.add_parser("anchor", help="compare CPU seconds of prefill under the anchor pattern and under full attention")
    _beside_lm_eval(kinds)
    text = "measure tokens per second and peak memory of backend hf on a model that fills the GPU: full, anchor"
    prefill = kinds.add_parser("prefill", help=text)
    default = shared.lengths("32k,64k,128k")
    prefill.add_argument("--lengths", type=shared.lengths, default=default, metavar="N,N", help="default: 32k,64k,128k")
    prefill.add_argument("--documents", type=shared.positive, default=32, metavar="N", help="default: %(default)s")
    prefill.add_argument("--shape", choices=SHAPES, default="70b", help="default: %(default)s")
    prefill.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu (default: %(default)s)")
    prefill.add_argument("--chunk-tokens", type=shared.positive, default=2048, metavar="N", help="default: %(default)s")
    prefill.add_argument("--output", type=Path, metavar="FILE.json", help="also write the figures to this file")
    text = "time anchor prefill (rows, FlexAttention), full prefill, RoPE and the probe at Llama-3-8B shapes"
    gpu = kinds.add_parser("gpu", help=text)
    default, text = [65536, 131072], "tokens (default: 64k,128k)"
    gpu.add_argument("--lengths", type=shared.lengths, default=default, metavar="N,N", help=text)
    text = "documents per prompt (default: 16,32)"
    gpu.add_argument("--documents", type=_counts, default=[16, 32], metavar="M,M", help=text)
    gpu.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu at toy lengths (default: %(default)s)")
    gpu.add_argument("--repeats", type=shared.positive, default=5, help="timed runs (default: %(default)s)")
    gpu.add_argument("--output", type=Path, metavar="FILE.json", help="also write the figures to this file")


def _beside_lm_eval(kinds: Any) -> None:
    """Add the two kinds that run the same prompts through our models and through lm-eval's."""
    parser = kinds.add_parser("lm-eval", help="compare time and memory of our model in lm-eval with its hf model")
    text = "tokens of the context that all questions share (default: %(default)s)"
    parser.add_argument("--length", type=shared.length, default=13_000, metavar="N", help=text)
    parser.add_argument("--questions", type=shared.positive, default=8, metavar="N", help="default: %(default)s")
    text = "tokens of the prompt for peak memory (default: %(default)s)"
    parser.add_argument("--memory-length", type=shared.length, default=32_768, metavar="N", help=text)
    text = "compare CPU seconds of our models in lm-eval with its hf and vllm models, on the same prompts"
    parser = kinds.add_parser("engines", help=text)
    parser.add_argument("--length", type=shared.length, default=4_096, metavar="N", help="default: %(default)s")
    parser.add_argument("--prompts", type=shared.positive, default=8, metavar="N", help="default: %(default)s")
    text = "questions on each shared context (default: %(default)s)"
    parser.add_argument("--questions", type=shared.positive, default=8, metavar="N", help=text)


def _counts(text: str) -> list[int]:
    return [shared.positive(part.strip()) for part in text.split(",")]


def main(options: argparse.Namespace) -> int:
    """Print the figures of a kind on stdout; return 1 if a measurement on a device failed."""
    if options.kind in ("gpu", "prefill"):
        return _on_device(options)
    if options.kind == "samples":
        _samples(options)
        return 0
    module, report, *flag_names = _REPORTS[options.kind]
    figures = getattr(import_module(f"anchoreval.bench.{module}"), report)
    say(figures(*(getattr(options, name) for name in flag_names)))
    return 0


def _samples(options: argparse.Namespace) -> None:
    from anchoreval.bench.samples import bench_samples
    from anchoreval.cards import select_tasks
    from anchoreval.cli.prompts import haystack_of
    from anchoreval.model import tokenizer_of
    from anchoreval.texts.sources import Sources

    tokenizer, haystack = tokenizer_of(options.tokenizer), haystack_of(options)
    sources = Sources(options.data_dir, haystack, options.wordlists, context=not options.no_context, text=options.text)
    bench_samples(select_tasks(options.tasks)[0], options.lengths, options.limit, tokenizer, sources, sys.stdout)


def _on_device(options: argparse.Namespace) -> int:
    """Print a row as each figure is measured, and write all figures to the file of --output."""
    from anchoreval.bench.gpu import report_gpu
    from anchoreval.bench.prefill import report_prefill
    from anchoreval.files import write_whole

    sizes, device = (options.lengths, options.documents), options.device
    if options.kind == "gpu":
        facts = report_gpu(*sizes, device, options.repeats, say)
    else:
        facts = report_prefill(*sizes, options.shape, device, options.chunk_tokens, say)
    if options.output is not None:
        write_whole(options.output, [json.dumps(facts, indent=1) + "\n"])
        note(f"figures: {options.output}")
    failed = sum(bool(figure["failed"]) for figure in facts["figures"])
    if failed:
        note(f"{failed} of {len(facts['figures'])} measurements failed")
    return 1 if failed else 0
