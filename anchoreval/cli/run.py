"""`anchoreval run`: evaluate a model under arms, and write records and a board."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, width
from anchoreval.cli.progress import shown

if TYPE_CHECKING:
    from anchoreval.records.run import Run
    from anchoreval.runs.rebuild import Remake
    from anchoreval.schema import Watch


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.of_runs(parser)


def main(options: argparse.Namespace) -> int:
    """Print tables on stdout, and the paths of records and boards on stderr; return 1 if a sample has no answer.

    Several models have a table each, then the pairs between them as `compare` prints them, and a board over all.
    """
    from anchoreval.reports.board import write_board
    from anchoreval.runs.evaluate import evaluate
    from anchoreval.runs.rebuild import Remake
    from anchoreval.runs.several import models_named

    watch = partial(shown, unit="records", goes_on="the same command goes on where it was")
    asked, models = shared.keywords(options, shared.OF_RUNS), models_named(options.model)
    told = partial(_told, remake=partial(Remake, data_dir=options.data_dir, text=options.text), watch=watch)
    if len(models) == 1:
        return told(evaluate(**asked | {"model": models[0]}, watch=watch, tell=note))
    from anchoreval.reports.board.declared import MANY, write_summary

    runs = evaluate(**asked | {"model": models}, watch=watch, tell=note)
    codes = [told(run) for run in runs]
    pairs(runs)
    if len(runs) > MANY:
        csv, html = write_summary([run.path for run in runs], options.output, tell=note)
    else:
        csv, html = write_board(runs, options.output)
    note(f"board of all: {html}\ncsv: {csv}")
    return max(codes)


def _told(result: Run, remake: Callable[[Run], Remake], watch: Watch) -> int:
    """Print a run and write its board and samples; return 1 if a sample has no answer."""
    from anchoreval.records.run import tell_changed
    from anchoreval.reports.board import run_table, write_board
    from anchoreval.reports.viewer.write import renew
    from anchoreval.runs.resume import nothing_scored, unanswered
    from anchoreval.runs.rounds import words
    from anchoreval.schema import work

    try:
        say("\n".join([run_table(result), *words(result.header)]))
    finally:  # even if stdout is lost
        tell_changed(result, note)
        with work(watch, 0, "making the prompts of the sample pages again"):
            renew(result, remake, note)
        note(f"records: {result.path}")
        csv, html = write_board([result], result.path)
        note(f"board: {html}\ncsv: {csv}")
    if why := nothing_scored(result) or unanswered(result):
        note(f"anchoreval: {why}")
        return 1
    return 0


def pairs(runs: Sequence[Run]) -> None:
    """Print every run minus the first, as `compare` of the two does, then every variant that has several seeds.

    A note says why two runs cannot be compared.
    """
    from anchoreval.errors import RunError
    from anchoreval.reports.compare.contrasts import compare, compare_seeds
    from anchoreval.reports.compare.table import table_of

    for run in runs[1:]:
        try:
            for contrast in compare([runs[0], run]):
                say(f"\n{table_of(contrast, width())}")
        except RunError as error:
            note(f"not compared: {error}")
    for contrast in compare_seeds(runs):
        say(f"\n{table_of(contrast, width())}")
