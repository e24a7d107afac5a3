"""`anchoreval longbench`: the averages of LongBench, the tables of LongBench-E and v2."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import say
from anchoreval.suites.longbench.scoring import DEVIATIONS


def flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    shared.runs(parser)
    parser.add_argument(
        "--deviation",
        choices=DEVIATIONS,
        help="score the answers again by another rule than the cards', and say so: 0 where upstream's recursion dies; "
        "no class name skipped; blank lines of code passed over; fuzzywuzzy with python-Levenshtein (default: none)",
    )


def main(options: argparse.Namespace) -> int:
    """The text for each run on stdout."""
    from anchoreval.reports.averages.longbench import report

    for run in shared.runs_of(options):
        say(report(run, options.deviation))
    return 0
