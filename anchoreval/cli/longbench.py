"""`anchoreval longbench`: print the averages of LongBench and the tables of LongBench-E and v2."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import say
from anchoreval.suites.longbench.scoring import DEVIATIONS


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    parser.add_argument(
        "--deviation",
        choices=DEVIATIONS,
        help="score the answers again by a rule that deviates from the cards', and report it: score 0 where upstream's "
        "recursion fails; skip no class name; pass over blank lines of code; use fuzzywuzzy with python-Levenshtein "
        "(default: no deviation)",
    )


def main(options: argparse.Namespace) -> int:
    """Print the report of each run on stdout."""
    from anchoreval.reports.averages.longbench import report

    for run in shared.runs_of(options):
        say(report(run, options.deviation))
    return 0
