"""`anchoreval export`: write runs in the formats of other tools."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.errors import UnknownName


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    about = "lm-eval, every-eval-ever, model-index (of the Hub), csv or parquet"
    shared.add(parser, own={"format": shared.Option(about, metavar="FORMAT", required=True)})
    shared.add(parser, "output", default=None, required=True, about="folder for the files")


def main(options: argparse.Namespace) -> int:
    """Print the path of every table or results file on stdout, and a line for each unfinished run on stderr."""
    from anchoreval.records.run import find_runs, load_run, tell_changed
    from anchoreval.reports.export.lm_eval import unpaired
    from anchoreval.reports.export.tables import FORMATS, PACKAGES, export, need

    if options.format not in FORMATS:
        raise UnknownName("--format", options.format, FORMATS)
    need(*PACKAGES.get(options.format, ()))
    runs = [load_run(path) for path in find_runs(options.runs)]
    for path in export(runs, options.format, options.output):
        say(str(path))
    for run in runs:
        tell_changed(run, note)
        if not run.header.get("finished"):
            note(f"{run.path}: not finished: {len(run.records)} records so far")
    if count := unpaired(runs):
        note(f"{count} texts hold unpaired surrogates, which UTF-8 cannot: they are spelled out, as in ⟨U+D800⟩")
    return 0
