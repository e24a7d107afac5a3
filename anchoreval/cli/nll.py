"""`anchoreval nll`: measure loss by position on long texts, paired between arms."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.model(parser)
    parser.add_argument(
        "--text",
        required=True,
        type=Path,
        metavar="FILE-or-DIR",
        help="UTF-8 text, or a folder of *.txt; with several texts, intervals treat each text as one unit",
    )
    parser.add_argument(
        "--lengths",
        required=True,
        type=shared.lengths,
        metavar="N,N",
        help="tokens per window, including the anchor token: 4096 or 4k",
    )
    parser.add_argument(
        "--arms",
        default="native",
        metavar="ARM,ARM",
        help="arms such as bf16,fp32,bf16+shift:4096; the first is the baseline (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("nll"),
        metavar="DIR",
        help="folder for nll.csv, nll.json, nll.svg, texts.csv and the run of nll/text, from which the same command "
        "resumes (default: %(default)s)",
    )
    parser.add_argument(
        "--buckets",
        type=shared.positive,
        metavar="N",
        help="use N buckets of equal width (default: doubling widths, 1-63, 64-127, 128-255, ...)",
    )
    parser.add_argument("--limit", type=shared.positive, metavar="N", help="windows of each text (default: all)")
    shared.anchor(parser)
    shared.engine(parser.add_argument_group("engine"))


def main(options: argparse.Namespace) -> int:
    """Print the table on stdout and the paths of the files on stderr."""
    from anchoreval.reports.nll.rows import table_of
    from anchoreval.reports.nll.tables import WRITTEN
    from anchoreval.runs.nll import measure

    arguments = {name: value for name, value in vars(options).items() if name != "command"}
    watch = partial(shown, unit="windows", goes_on="the same command goes on where it was")
    say(table_of(measure(**arguments, watch=watch, tell=note)))
    note("\n".join(f"{what}: {options.output / name}" for what, name in WRITTEN.items()))
    return 0
