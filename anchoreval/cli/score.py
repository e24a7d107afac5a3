"""`anchoreval score`: score the records of runs again."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    shared.outside_suites(parser)


def main(options: argparse.Namespace) -> int:
    """Print the table of each run on stdout; return 1 if a score on disk is not the one that its output earns."""
    from anchoreval.records.rescore import rescored, scorers_of
    from anchoreval.reports.board import run_table
    from anchoreval.suites.outside import name_suites

    name_suites(options.tasks or "")
    differing = 0
    for run in shared.runs_of(options):
        scorers_of(run.header)  # raises, before work begins, for a suite from outside that was not named
        with shown(len(run.records)) as progress:
            progress.at(str(run.path))
            for record, value in rescored(run, progress):
                differing += 1
                note(f"{run.path}: {record.sample_id} {record.arm}: on disk {record.score}, scored again {value}")
        say(run_table(run))
    note(f"{differing} scores differ")
    return 1 if differing else 0
