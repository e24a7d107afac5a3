"""`anchoreval compare`: print the differences between arms or runs, in numbers and in words."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, width


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser, "one run: compare its arms; several: compare each with the first")
    about = "arm or run to compare with (default: the first arm, or with several runs the same arm)"
    shared.add(parser, own={"baseline": shared.Option(about, metavar="ARM")})
    shared.add(parser, "margin")
    shared.add(
        parser, "output", default=None, about="folder for compare.csv and compare.json (default: write no files)"
    )


def main(options: argparse.Namespace) -> int:
    """Print a table for each arm and its baseline on stdout; with --output, also write compare.csv and compare.json."""
    from anchoreval.reports.compare.contrasts import compare, write_compare
    from anchoreval.reports.compare.table import table_of

    contrasts = compare(options.runs, baseline=options.baseline, margin=options.margin, tell=note)
    say("\n\n".join(table_of(contrast, width()) for contrast in contrasts))
    if options.output is not None:
        csv, body = write_compare(contrasts, options.output)
        note(f"csv: {csv}\njson: {body}")
    return 0
