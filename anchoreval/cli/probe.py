"""`anchoreval probe`: measure how RoPE precision and a shift of positions change attention."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.progress import shown

_ASKED = (
    "shift", "levels", "text", "texts", "queries", "dtype", "device", "kernel", "seed", "trust_remote_code",
    "max_length", "random_init", "curve_length", "copy", "anchor",
)  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.model(parser)
    default = shared.lengths("64..8192")
    parser.add_argument(
        "--lengths",
        type=shared.lengths,
        default=default,
        metavar="N..N",
        help="tokens: 64..8192 (doubling, the default) or 512,4k",
    )
    parser.add_argument(
        "--shift",
        type=shared.shifts,
        default=(0, 16),
        metavar="A,..,B",
        help="offsets of all positions. The last is compared with the first at every length, and with those between at "
        "one length, for the curve (default: 0,16, with the curve at 8, 15, 17, 20, 100 and 1000)",
    )
    parser.add_argument(
        "--curve-length",
        type=shared.length,
        metavar="N",
        help="length for the curve over offsets (default: the one of --lengths nearest to 256)",
    )
    parser.add_argument(
        "--levels",
        default="all",
        metavar="LEVEL,LEVEL",
        help="RoPE levels; separate levels of explicit sites by blanks (default: all)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("probe"),
        metavar="DIR",
        help="folder for probe.csv, probe.html and probe.jsonl, from which the same command resumes "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE-or-DIR", help="UTF-8 text, or a folder of *.txt (default: generated prose)"
    )
    parser.add_argument(
        "--texts",
        type=shared.counts,
        metavar="N[,N@LENGTH]",
        help="texts per length; 20,5@4096 means 20, and 5 from 4,096 tokens on (default: 2 up to 512 tokens, 1 above)",
    )
    parser.add_argument(
        "--queries",
        type=shared.positive,
        default=128,
        metavar="N",
        help="query rows to measure in a longer text (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=shared.seed, default=42, help="seed of the generated prose (default: %(default)s)"
    )
    parser.add_argument(
        "--random-init",
        action="store_true",
        help="measure random weights too, even for a model over 100 million parameters",
    )
    parser.add_argument(
        "--no-copy",
        dest="copy",
        action="store_false",
        help="do not make the float32 copy of a 16-bit model, and so leave out shared hidden states",
    )
    parser.add_argument(
        "--max-length", type=shared.length, metavar="N", help="length that the model was trained at, if known"
    )
    shared.anchor(parser)
    shared.loading(parser)
    parser.add_argument(
        "--kernel",
        default="default",
        metavar="KERNEL",
        help="attention kernel to open the model with; the probe itself uses fused (default: sdpa, else eager)",
    )


def main(options: argparse.Namespace) -> int:
    """Print the reading on stdout, and the paths of probe.csv and probe.html on stderr."""
    from anchoreval.diagnostics.probe import probe, write_probe
    from anchoreval.diagnostics.probe.reading import reading

    arguments = {name: getattr(options, name) for name in _ASKED}
    watch = partial(shown, unit="levels on texts", goes_on="nothing is kept of it: give the same command again")
    kept = options.output / "probe.jsonl"
    study = probe(options.model, options.lengths, kept=kept, tell=note, watch=watch, **arguments)
    csv, html = write_probe(study, options.output)
    say(reading(study))
    note(f"probe: {html}\ncsv: {csv}")
    return 0
