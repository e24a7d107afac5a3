"""`anchoreval run`: evaluate a model under arms, and write records and a board."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown, width

if TYPE_CHECKING:
    from anchoreval.records.run import Run


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command, which takes several models."""
    about = "card of models/, folder or hub id; with several (commas, globs), each is compared with the first"
    shared.add(parser, "model", about=about, metavar="MODEL,MODEL")
    shared.add(parser, *(name for name in shared.OF_RUNS if name != "model"), headings=True)


def main(options: argparse.Namespace) -> int:
    """Print tables on stdout, and the paths of records and boards on stderr; return 1 if a sample has no answer.

    Several models have a table each, then the pairs between them as `compare` prints them, and a board over all.
    """
    from anchoreval.records.run import Run, tell_changed
    from anchoreval.reports.board import run_table, write_board
    from anchoreval.reports.viewer.write import renew
    from anchoreval.runs.evaluate import evaluate
    from anchoreval.runs.rebuild import Remake
    from anchoreval.runs.resume import nothing_scored, unanswered
    from anchoreval.runs.rounds import words
    from anchoreval.runs.several import models_named
    from anchoreval.schema import work

    watch = partial(shown, unit="records", goes_on="the same command goes on where it was")
    asked, models = {name: getattr(options, name) for name in shared.OF_RUNS}, models_named(options.model)
    result = evaluate(**asked | {"model": models if len(models) > 1 else models[0]}, watch=watch, tell=note)
    runs, code = [result] if isinstance(result, Run) else result, 0
    for run in runs:
        try:
            say("\n".join([run_table(run), *words(run.header)]))
        finally:  # even if stdout is lost
            tell_changed(run, note)
            with work(watch, 0, "making the prompts of the sample pages again"):
                renew(run, partial(Remake, data_dir=options.data_dir, text=options.text), note)
            note(f"records: {run.path}")
            csv, html = write_board([run], run.path)
            note(f"board: {html}\ncsv: {csv}")
        if why := nothing_scored(run) or unanswered(run):
            note(f"anchoreval: {why}")
            code = 1
    if len(models) > 1:
        from anchoreval.reports.board.declared import MANY, write_summary

        pairs(runs)
        if len(runs) > MANY:
            csv, html = write_summary([run.path for run in runs], options.output, tell=note)
        else:
            csv, html = write_board(runs, options.output)
        note(f"board of all: {html}\ncsv: {csv}")
    return code


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
