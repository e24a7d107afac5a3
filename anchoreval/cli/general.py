"""`anchoreval general`: all of lm-eval's metrics of general tasks, and what was lost."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import say


def flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    shared.runs(parser)
    parser.add_argument(
        "--margin",
        type=shared.points,
        default=1.0,
        metavar="POINTS",
        help="nothing was lost where a difference is surely within this, in points of 100 (default: %(default)s)",
    )


def main(options: argparse.Namespace) -> int:
    """The text for each run on stdout."""
    from anchoreval.reports.averages.general import report

    for run in shared.runs_of(options):
        say(report(run, options.margin))
    return 0
