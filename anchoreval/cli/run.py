"""`anchoreval run`: evaluate a model under arms, and write records and a board."""

from __future__ import annotations

import argparse
from functools import partial

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.add(parser, *shared.OF_RUNS, headings=True)


def main(options: argparse.Namespace) -> int:
    """Print the table on stdout, and the paths of records and board on stderr; return 1 if a sample has no answer."""
    from anchoreval.records.run import tell_changed
    from anchoreval.reports.board import run_table, write_board
    from anchoreval.reports.viewer.beside import renew
    from anchoreval.runs.evaluate import evaluate
    from anchoreval.runs.resume import nothing_scored, unanswered
    from anchoreval.runs.rounds import words

    watch = partial(shown, unit="records", goes_on="the same command goes on where it was")
    result = evaluate(**shared.keywords(options, shared.OF_RUNS), watch=watch, tell=note)
    try:
        say("\n".join([run_table(result), *words(result.header)]))
    finally:  # even if stdout is lost
        tell_changed(result, note)
        renew(result, note)
        note(f"records: {result.path}")
        csv, html = write_board([result], result.path)
        note(f"board: {html}\ncsv: {csv}")
    if why := nothing_scored(result) or unanswered(result):
        note(f"anchoreval: {why}")
        return 1
    return 0
