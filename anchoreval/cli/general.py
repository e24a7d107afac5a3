"""`anchoreval general`: all of lm-eval's metrics of general tasks, and what was lost."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say


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
    from anchoreval.records.folder import find_runs, load_run, tell_changed
    from anchoreval.reports.averages.general import report

    for path in find_runs(options.runs):
        run = load_run(path)
        tell_changed(run, note)
        say(report(run, options.margin))
    return 0
