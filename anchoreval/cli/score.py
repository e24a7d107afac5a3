"""`anchoreval score`: the records of runs scored again."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say


def flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    shared.runs(parser)


def main(options: argparse.Namespace) -> int:
    """The table of each run on stdout; 1 when a score on disk is not the one that its output earns."""
    from anchoreval.records.folder import find_runs, load_run, tell_changed
    from anchoreval.records.rescore import rescored
    from anchoreval.reports.board import run_table

    differing = 0
    for path in find_runs(options.runs):
        result = load_run(path)
        tell_changed(result, note)
        for record, value in rescored(result):
            differing += 1
            note(f"{path}: {record.sample_id} {record.arm}: on disk {record.score}, scored again {value}")
        say(run_table(result))
    note(f"{differing} scores differ")
    return 1 if differing else 0
