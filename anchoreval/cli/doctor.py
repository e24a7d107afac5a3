"""`anchoreval doctor`: what a checkpoint's RoPE honestly is, on one page."""

from __future__ import annotations

import argparse
import json

from anchoreval.cli import options as shared
from anchoreval.cli.console import say


def flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    shared.model(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.add_argument(
        "--max-length", type=shared.length, metavar="N", help="the length that it was trained at, where known"
    )
    shared.anchor(parser)
    shared.loading(parser)
    shared.kernel(parser)


def main(options: argparse.Namespace) -> int:
    """The page on stdout, or its facts as JSON."""
    from anchoreval.diagnostics.doctor.page import examine, page

    asked = ("max_length", "dtype", "device", "kernel", "trust_remote_code", "anchor")
    facts = examine(options.model, **{name: getattr(options, name) for name in asked})
    say(json.dumps(facts, indent=1, sort_keys=True) if options.json else page(facts))
    return 0
