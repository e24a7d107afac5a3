"""`anchoreval nll`: measure loss by position on long texts, paired between arms."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown

_ASKED = (
    "model", "text", "lengths", "arms", "output", "buckets", "limit", "dtype", "kernel", "device", "anchor",
    "max_length", "trust_remote_code",
)  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.add(parser, "model", "arms")
    about = "UTF-8 text, or a folder of *.txt; with several texts, intervals treat each text as one unit"
    shared.add(parser, "text", required=True, about=about)
    about = "tokens per window, including the anchor token: 4096 or 4k"
    shared.add(parser, "lengths", required=True, about=about)
    shared.add(parser, "limit", about="windows of each text (default: all)")
    about = (
        "folder for nll.csv, nll.json, nll.svg, texts.csv and the run of nll/text, from which the same command resumes"
    )
    shared.add(parser, "output", default=Path("nll"), about=about)
    about = "use N buckets of equal width (default: doubling widths, 1-63, 64-127, 128-255, ...)"
    shared.add(parser, own={"buckets": shared.Option(about, kind=shared.positive, metavar="N")})
    shared.add(parser, "anchor", "max_length", "chunk_tokens", *shared.OF_LOADING, headings=True)


def main(options: argparse.Namespace) -> int:
    """Print the table on stdout and the paths of the files on stderr."""
    from anchoreval.reports.nll.rows import table_of
    from anchoreval.reports.nll.tables import WRITTEN
    from anchoreval.runs.nll import measure

    arguments = {name: getattr(options, name) for name in _ASKED} | {"chunk_tokens": options.chunk_tokens or 512}
    watch = partial(shown, unit="windows", goes_on="the same command goes on where it was")
    say(table_of(measure(**arguments, watch=watch, tell=note)))
    note("\n".join(f"{what}: {options.output / name}" for what, name in WRITTEN.items()))
    return 0
