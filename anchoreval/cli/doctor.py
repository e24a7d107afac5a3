"""`anchoreval doctor`: inspect a checkpoint on one page: RoPE precision, trained length, which arms it supports."""

from __future__ import annotations

import argparse
import json

from anchoreval.cli import options as shared
from anchoreval.cli.console import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.add(parser, "model")
    shared.add(parser, own={"json": shared.Option("print the facts as JSON", False)})
    shared.add(parser, "anchor", "max_length", *shared.OF_LOADING, headings=True)


def main(options: argparse.Namespace) -> int:
    """Print the page on stdout, or its facts as JSON."""
    from anchoreval.diagnostics.doctor.page import examine, page

    names = ("max_length", "dtype", "device", "kernel", "trust_remote_code", "anchor")
    facts = examine(options.model, **{name: getattr(options, name) for name in names})
    say(json.dumps(facts, indent=1, sort_keys=True) if options.json else page(facts))
    return 0
