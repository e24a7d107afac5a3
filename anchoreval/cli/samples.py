"""`anchoreval samples`: write prompts as JSON lines, without a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, shown
from anchoreval.cli.prompts import prompts_of

if TYPE_CHECKING:
    from anchoreval.runs.prompts import Cells
    from anchoreval.schema import Json, Progress


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.add(parser, "tasks", "template", "template_args", "limit")
    shared.add(parser, "lengths", required=True)
    shared.add(parser, "tokenizer", required=True, about="folder or hub id, or a card of models/", heading="")
    shared.add(parser, "output", required=True, default=None, metavar="FILE.jsonl", about="file to write")
    shared.add(parser, "offline", *shared.OF_PROMPTS, headings=True)


def main(options: argparse.Namespace) -> int:
    """Write one JSON line per sample; the file appears once it is complete."""
    from anchoreval.files import write_json_lines

    prompts = prompts_of(options, options.tasks, options.limit, options.lengths).cells()
    for row in prompts.unmakeable:
        note(f"left out: {row['why']}")
    with shown(sum(cell.asked for cell in prompts), "prompts") as progress:
        write_json_lines(options.output, _rows(prompts, progress))
    return 0


def _rows(cells: Cells, progress: Progress) -> Iterator[dict[str, Json]]:
    for cell in cells:
        progress.at(f"{cell.task.address} at {cell.length:,}")
        for sample in cell.samples:
            row = {"id": sample.id, "task": sample.task, "length": sample.length, "prompt": sample.prompt}
            yield row | {"references": list(sample.references), "facts": dict(sample.facts)}
            progress(1)
