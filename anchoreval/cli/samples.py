"""`anchoreval samples`: write prompts as JSON lines, without a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note
from anchoreval.cli.prompts import prompts_of

if TYPE_CHECKING:
    from anchoreval.schema import Sample


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--lengths", type=shared.lengths, required=True, metavar="N,N")
    parser.add_argument("--tokenizer", required=True, metavar="PATH", help="folder or hub id, or a card of models/")
    parser.add_argument("--limit", type=shared.positive, metavar="N")
    shared.template(parser, "base")
    parser.add_argument("--output", type=Path, metavar="FILE.jsonl", required=True)
    shared.sources(parser)
    shared.settings(parser)


def main(options: argparse.Namespace) -> int:
    """Write one JSON line per sample; the file appears once it is complete."""
    from anchoreval.files import write_whole

    prompts = prompts_of(options, options.tasks, options.limit, options.lengths).cells()
    for row in prompts.unmakeable:
        note(f"left out: {row['why']}")
    write_whole(options.output, (_line(sample) for cell in prompts.cells for sample in cell.samples))
    return 0


def _line(sample: Sample) -> str:
    row = {"id": sample.id, "task": sample.task, "length": sample.length, "prompt": sample.prompt}
    row |= {"references": list(sample.references), "facts": dict(sample.facts)}
    return f"{json.dumps(row, ensure_ascii=False)}\n"
