"""`anchoreval compare`: print the differences between arms or runs, in numbers and in words."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say

WIDTH = 160  # columns of a table when stdout is not a terminal


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="one run: compare its arms; several: compare each with the first",
    )
    parser.add_argument("--baseline", metavar="ARM", help="default: the first arm, or with several runs the same arm")
    parser.add_argument(
        "--margin",
        type=shared.points,
        default=1.0,
        metavar="POINTS",
        help="largest difference that counts as equivalent, in points of 100 (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for compare.csv and compare.json (default: write no files)"
    )


def main(options: argparse.Namespace) -> int:
    """Print a table for each arm and its baseline on stdout; with --output, also write compare.csv and compare.json."""
    from anchoreval.reports.compare.contrasts import compare, write_compare
    from anchoreval.reports.compare.table import table_of

    contrasts = compare(options.runs, baseline=options.baseline, margin=options.margin, tell=note)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    say("\n\n".join(table_of(contrast, width) for contrast in contrasts))
    if options.output is not None:
        csv, body = write_compare(contrasts, options.output)
        note(f"csv: {csv}\njson: {body}")
    return 0
