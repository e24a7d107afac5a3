"""`anchoreval show`: print one prompt with its references and facts, rebuilt from its id."""

from __future__ import annotations

import argparse
import json
import re

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.prompts import prompts_of
from anchoreval.errors import AnchorEvalError, LengthError


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("sample", metavar="SUITE/TASK@LENGTH#INDEX")
    shared.add(parser, "tokenizer", required=True, about="folder or hub id, or a card of models/", heading="")
    shared.add(parser, "template", "template_args", "offline", *shared.OF_PROMPTS, headings=True)


def main(options: argparse.Namespace) -> int:
    """Print the prompt on stdout, and its id, references and facts on stderr."""
    match = re.fullmatch(r"(.+)@(\d{1,8})#(\d{1,8})", options.sample)
    if match is None:
        raise AnchorEvalError(f"{options.sample!r} is no sample id: SUITE/TASK@LENGTH#INDEX, e.g. ruler/qa_1@4096#3")
    address, length, index = match.groups()
    prompts = prompts_of(options, address, int(index) + 1)
    task = prompts.spec.tasks[0]
    if task.address not in prompts.spec.single:
        raise AnchorEvalError(f"{address!r} is a set of tasks: name one of them")
    if int(index) >= task.samples:
        raise LengthError(f"{address} has samples 0 to {task.samples - 1}")
    *_, sample = prompts.samples(task, int(length), int(index) + 1)
    say(sample.prompt)
    note(f"\nid: {sample.id}\nreferences: {json.dumps(sample.references)}\nfacts: {json.dumps(dict(sample.facts))}")
    return 0
