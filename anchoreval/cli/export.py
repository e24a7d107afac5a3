"""`anchoreval export`: write runs as lm-eval's files, CSV or Parquet."""

from __future__ import annotations

import argparse

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.errors import UnknownName


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.runs(parser)
    shared.add_own(parser, {"format": shared.Option("lm-eval, csv or parquet", metavar="FORMAT", required=True)})
    shared.add(parser, "output", default=None, required=True, about="folder for the files")


def main(options: argparse.Namespace) -> int:
    """Print the path of every table or results file on stdout, and a line for each unfinished run on stderr."""
    from anchoreval.records.run import find_runs, load_run, tell_changed
    from anchoreval.reports.export.lm_eval import unpaired
    from anchoreval.reports.export.tables import FORMATS, export, need

    if options.format not in FORMATS:
        raise UnknownName("--format", options.format, FORMATS)
    if options.format != "lm-eval":
        need(*(("pandas",) if options.format == "csv" else ("pandas", "pyarrow")))
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
