"""`anchoreval longbench`: print the averages of LongBench and the tables of LongBench-E and v2."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import say
from anchoreval.errors import UnknownName


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    about = (
        "score the answers again by a rule that deviates from the cards', and report it: recursion-zeros (score 0 "
        "where upstream's recursion fails), whole-classes (skip no class name), text-lines (pass over blank lines of "
        "code), levenshtein (use fuzzywuzzy with python-Levenshtein) (default: no deviation)"
    )
    shared.add(parser, own={"deviation": shared.Option(about, metavar="RULE")})


def main(options: argparse.Namespace) -> int:
    """Print the report of each run on stdout."""
    from anchoreval.reports.averages.longbench import report
    from anchoreval.suites.longbench.scoring import DEVIATIONS

    if options.deviation not in (None, *DEVIATIONS):
        raise UnknownName("--deviation", options.deviation, DEVIATIONS)

    for run in shared.runs_of(options):
        say(report(run, options.deviation))
    return 0
