"""`anchoreval doctor`: inspect a checkpoint on one page: RoPE precision, trained length, which arms it supports."""

from __future__ import annotations

import argparse
import json

from anchoreval.cli import options as shared
from anchoreval.cli.console import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.model(parser)
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument(
        "--max-length", type=shared.length, metavar="N", help="length that the model was trained at, if known"
    )
    shared.anchor(parser)
    shared.loading(parser)
    shared.kernel(parser)


def main(options: argparse.Namespace) -> int:
    """Print the page on stdout, or its facts as JSON."""
    from anchoreval.diagnostics.doctor.page import examine, page

    names = ("max_length", "dtype", "device", "kernel", "trust_remote_code", "anchor")
    facts = examine(options.model, **{name: getattr(options, name) for name in names})
    say(json.dumps(facts, indent=1, sort_keys=True) if options.json else page(facts))
    return 0
