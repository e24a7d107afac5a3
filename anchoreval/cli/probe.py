"""`anchoreval probe`: measure how RoPE precision and a shift of positions change attention."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say, shown

_ASKED = (
    "shift", "levels", "haystack", "data_dir", "text", "texts", "queries", "dtype", "device", "kernel", "seed",
    "trust_remote_code", "max_length", "random_init", "curve_length", "anchor",
)  # fmt: skip


_OWN = {
    "shift": shared.Option(
        "offsets of all positions. The last is compared with the first at every length, and with those between at "
        "one length, for the curve (default: 0,16, with the curve at 8, 15, 17, 20, 100 and 1000)",
        (0, 16), shared.shifts, "A,..,B",
    ),
    "curve_length": shared.Option(
        "length for the curve over offsets (default: the one of --lengths nearest to 256)",
        kind=shared.length, metavar="N",
    ),
    "levels": shared.Option(
        "RoPE levels; separate levels of explicit sites by blanks", "all", metavar="LEVEL,LEVEL", blanks=True
    ),
    "texts": shared.Option(
        "texts per length; 20,5@4096 means 20, and 5 from 4,096 tokens on (default: 2 up to 512 tokens, 1 above)",
        kind=shared.counts, metavar="N[,N@LENGTH]",
    ),
    "queries": shared.Option("query rows to measure in a longer text", 128, shared.positive, "N"),
    "random_init": shared.Option("measure random weights too, even for a model over 100 million parameters", False),
    "no_copy": shared.Option(
        "do not make the float32 copy of a 16-bit model, and so leave out shared hidden states", False
    ),
}  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.add(parser, "model")
    about = "tokens: 64..8192 (doubling, the default) or 512,4k"
    shared.add(parser, "lengths", default=shared.lengths("64..8192"), about=about, metavar="N..N")
    shared.add(parser, own=_OWN)
    about = "folder for probe.csv, probe.html and probe.jsonl, from which the same command resumes"
    shared.add(parser, "output", default=Path("probe"), about=about)
    shared.add(parser, "text", about="UTF-8 text, or a folder of *.txt (default: the haystack)", heading="")
    shared.add(parser, "haystack", "data_dir")
    shared.add(parser, "seed", "anchor", "max_length", *shared.OF_LOADING, headings=True)


def main(options: argparse.Namespace) -> int:
    """Print the reading on stdout, and the paths of probe.csv and probe.html on stderr."""
    from anchoreval.diagnostics.probe import probe, write_probe
    from anchoreval.diagnostics.probe.page import reading

    arguments = {name: getattr(options, name) for name in _ASKED} | {"copy": not options.no_copy}
    watch = partial(shown, unit="levels on texts", goes_on="nothing is kept of it: give the same command again")
    kept = options.output / "probe.jsonl"
    study = probe(options.model, options.lengths, kept=kept, watch=watch, **arguments)
    csv, html = write_probe(study, options.output)
    say(reading(study))
    note(f"probe: {html}\ncsv: {csv}")
    return 0
