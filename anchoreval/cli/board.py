"""`anchoreval board`: write board.csv and board.html of runs, or a declared board."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    about = "run folders, or folders of run folders; in the latter, a run that cannot be read is reported and skipped"
    shared.runs(parser, about)
    shared.outside_suites(parser)
    shared.add(parser, "output", default=None, about="folder (default: the folder of the first RUN)")
    about = (
        "write a declared board, NAME.csv and NAME.html, from a YAML file or from a definition of the package: "
        "anchor-tiny, long-context, wang2024-table5"
    )
    averaged = (
        "add rows with the mean over the checkpoints of one training, as papers print it; it is no seed variance, so "
        "it has no interval"
    )
    fresh = (
        "read the records of every run again; a board otherwise reads those that are new or changed, by their SHA-256, "
        "and keeps the columns of the others in ~/.cache/anchoreval/boards (or $XDG_CACHE_HOME), which may be deleted"
    )
    own = {"definition": shared.Option(about, kind=Path, metavar="NAME-or-FILE.yaml")}
    own |= {"average_checkpoints": shared.Option(averaged, False), "fresh": shared.Option(fresh, False)}
    shared.add(parser, own=own)


def main(options: argparse.Namespace) -> int:
    """Write the page and its CSV, and print their paths on stdout."""
    from anchoreval.records.run import find_runs, tell_changed
    from anchoreval.reports.board.declared import MANY, write_leaderboard, write_summary
    from anchoreval.reports.readable import draw, load_runs
    from anchoreval.reports.viewer.write import supply
    from anchoreval.suites.outside import name_suites

    name_suites(options.tasks or "")
    folder, checkpoints, fresh = options.output or options.runs[0], options.average_checkpoints, options.fresh
    workers = os.cpu_count() or 1
    if options.definition:
        supply(find_runs(options.runs), note)
        csv, html = write_leaderboard(options.runs, options.definition, folder, workers, note, checkpoints, fresh)
    elif len(paths := find_runs(options.runs)) > MANY:
        note(f"{len(paths)} runs: one table of all, and a page for each in its own folder")
        csv, html = write_summary(paths, folder, workers, note, checkpoints, fresh)
    else:
        runs = load_runs(options.runs, note)
        for run in runs:
            tell_changed(run, note)
        supply([run.path for run in runs], note)
        csv, html = draw(runs, folder, options.runs, note, checkpoints)
    say(f"{html}\n{csv}")
    return 0
