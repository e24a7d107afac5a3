"""`anchoreval bench`: measure speed and memory on this machine, one kind of figure at a time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.options import Option

_LENGTHS = Option("tokens", shared.lengths("32k,64k,128k"), shared.lengths, "N,N", blanks=True)
_LENGTH = Option("tokens", kind=shared.length, metavar="N")
_COUNT = Option("", kind=shared.positive, metavar="N")
_DEVICE = Option("cuda, cuda:1, or cpu at toy sizes", "cuda")
_FILE = Option("also write the figures to this file", kind=Path, metavar="FILE.json")


def _counts(text: str) -> list[int]:
    return [shared.positive(part.strip()) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind measures, `module:function` below bench/, and its options, in the order of the function's.

    A kind on a `device` prints a row as each figure is measured, and returns all figures for the file of --output.
    """

    about: str
    report: str
    options: dict[str, Option]
    device: bool = False


KINDS = {
    "prefill": Kind(
        "measure tokens per second and peak memory of backend hf on a model that fills the GPU: full, anchor",
        "prefill:report_prefill",
        {
            "lengths": replace(_LENGTHS, about="tokens (default: 32k,64k,128k)"),
            "documents": replace(_COUNT, about="documents", default=32),
            "shape": Option("layers of Llama-3, or of a toy", "70b", choices=("70b", "8b", "1b", "toy")),
            "device": _DEVICE,
            "chunk_tokens": replace(_COUNT, about="prefill chunk", default=2048),
        },
        device=True,
    ),
    "engines": Kind(
        "compare backend hf with transformers, and with lm-eval's hf, vllm and our vllm in it, on equal prompts",
        "engines:report_engines",
        {
            "lengths": replace(_LENGTHS, about="tokens of a prompt (default: 4k)", default=[4_096]),
            "jobs": Option(
                "jobs (default: score,questions,generate)", ["score", "questions", "generate"], _names, "JOB,JOB"
            ),
            "pairs": replace(_COUNT, about="times that the engines take turns", default=5),
            "together": replace(_COUNT, about="questions on a context, and prompts that are generated", default=8),
            "new_tokens": replace(_COUNT, about="tokens of a generated answer", default=16),
            "shape": Option(
                "random weights of this shape, with positions for every length (default: the weights of anchor-tiny)",
                choices=("anchor-tiny", "1b", "8b"),
            ),
            "device": replace(_DEVICE, about="cpu (CPU seconds), cuda (seconds)", default="cpu"),
        },
        device=True,
    ),
    "memory": Kind(
        "measure the peak memory that one long prompt takes beyond weights and cache",
        "memory:report_memory",
        {"length": replace(_LENGTH, default=32_768)},
    ),
    "gpu": Kind(
        "time anchor prefill (rows, FlexAttention), full prefill, RoPE and the probe at Llama-3-8B shapes",
        "gpu:report_gpu",
        {
            "lengths": replace(_LENGTHS, about="tokens (default: 64k,128k)", default=[65536, 131072]),
            "documents": Option("documents per prompt (default: 16,32)", [16, 32], _counts, "M,M"),
            "device": _DEVICE,
            "repeats": replace(_COUNT, about="timed runs", default=5),
        },
        device=True,
    ),
    "train-attention": Kind(
        "time attention and a layer forward and backward under training masks, against the fastest full attention here",
        "training:report_training",
        {
            "shapes": Option(
                "llama-2-7b, llama-3-8b (default: both)", ["llama-2-7b", "llama-3-8b"], _names, "NAME,NAME"
            ),
            "lengths": replace(_LENGTHS, about="tokens (default: 8k,32k,64k,128k; 4k,8k on a CPU)", default=None),
            "mix": Option(
                "documents of models/recipes/mixes.yaml: slimpajama, upsampled, long", "slimpajama", metavar="NAME"
            ),
            "data": Option("a store of `data pack`, instead of a mix", kind=Path, metavar="STORE"),
            "windows": replace(_COUNT, about="windows that are timed", default=8),
            "slices": replace(_COUNT, about="time one of N slices of heads and MLP (default: 1; 8 on a CPU)"),
            "no_layer": Option("leave out the whole layer", False),
            "rate": replace(_COUNT, about="TFLOP/s of all devices, for days per billion tokens", default=1000),
            "device": replace(_DEVICE, about="cuda, cuda:1, or cpu"),
            "repeats": replace(_COUNT, about="timed runs", default=5),
        },
        device=True,
    ),
    "anchor": Kind(
        "compare CPU seconds of prefill under the anchor pattern and under full attention", "prefill:report_anchor", {}
    ),
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each kind of benchmark, with its flags."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, kind in KINDS.items():
        file = {"output": _FILE} if kind.device else {}
        shared.add(kinds.add_parser(name, help=kind.about, description=kind.about), own=kind.options | file)


def main(options: argparse.Namespace) -> int:
    """Print the figures of a kind on stdout; return 1 if a measurement on a device failed."""
    kind = KINDS[options.kind]
    module, _, name = kind.report.partition(":")
    report: Callable[..., Any] = getattr(import_module(f"anchoreval.bench.{module}"), name)
    given = [getattr(options, option) for option in kind.options]
    if not kind.device:
        say(report(*given))
        return 0
    facts = report(*given, say)
    if options.output is not None:
        from anchoreval.files import write_whole

        write_whole(options.output, [json.dumps(facts, indent=1) + "\n"])
        note(f"figures: {options.output}")
    failed = sum(bool(figure["failed"]) for figure in facts["figures"])
    if failed:
        note(f"{failed} of {len(facts['figures'])} measurements failed")
    return 1 if failed else 0
