"""`anchoreval general`: print all of lm-eval's metrics of general tasks, and whether an arm lost accuracy."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    shared.add(parser, "margin")


def main(options: argparse.Namespace) -> int:
    """Print the report of each run on stdout."""
    from anchoreval.reports.averages.general import report

    for run in shared.runs_of(options):
        say(report(run, options.margin))
    return 0
