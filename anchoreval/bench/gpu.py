"""`bench gpu`: anchor prefill against full attention, rows against FlexAttention, RoPE and the probe, at 8B shapes.

The figures of a machine are kept as `leaderboards/results/gpu/<device>.json`, for instance

    anchoreval bench gpu --output leaderboards/results/gpu/h100.json

which writes device, versions, command line and every measurement, those that failed among them; add a row to
the table of leaderboards/README.md, with the ratios that were printed. Figures of two machines, or of two
versions of torch, are not compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.cli import options as kinds

if TYPE_CHECKING:
    from anchoreval.bench.gpu_measures import Figure

_HEAD = f"{'what':14}{'tokens':>9}{'documents':>11}{'seconds':>11}{'of full':>9}{'peak MiB':>10}{'max error':>11}"


def flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench gpu`."""
    parser.add_argument(
        "--lengths", type=kinds.lengths, default=[65536, 131072], metavar="N,N", help="tokens (default: 64k,128k)"
    )
    parser.add_argument(
        "--documents", type=_counts, default=[16, 32], metavar="M,M", help="documents of a prompt (default: 16,32)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu at toy lengths (default: %(default)s)")
    parser.add_argument("--repeats", type=kinds.positive, default=5, help="timed runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="writes the figures there too")


def _counts(text: str) -> list[int]:
    return [kinds.positive(part.strip()) for part in text.split(",")]


def main(options: argparse.Namespace, say: Callable[[str], None], note: Callable[[str], None]) -> int:
    """The table on stdout as it is measured; 1 where a measurement failed."""
    from anchoreval.bench.gpu_measures import machine, measures, open_bench
    from anchoreval.files import write_whole

    bench = open_bench(options.device, options.repeats)
    facts = {"command": _command(options), **machine(bench.device)}
    say(f"{facts['device_name']}, " + ", ".join(f"{k} {v or 'absent'}" for k, v in facts["versions"].items()))
    say(_HEAD)
    figures: list[Figure] = []
    for figure in measures(bench, options.lengths, options.documents):
        figures.append(figure)
        say(_line(figure, figures))
    if options.output is not None:
        made = facts | {"figures": [_as_json(figure, figures) for figure in figures]}
        write_whole(options.output, [json.dumps(made, indent=1) + "\n"])
        note(f"figures: {options.output}")
    failed = [figure for figure in figures if figure.failed]
    if failed:
        note(f"{len(failed)} of {len(figures)} measurements failed")
    return 1 if failed else 0


def _command(options: argparse.Namespace) -> str:
    lengths, documents = (",".join(map(str, given)) for given in (options.lengths, options.documents))
    asked = f"--lengths {lengths} --documents {documents} --device {options.device} --repeats {options.repeats}"
    return f"anchoreval bench gpu {asked}"


def _of(figure: Figure, figures: Sequence[Figure]) -> float | None:
    """Seconds over those of what it is compared with, at its length: full attention, or bf16 rotation for RoPE."""
    against = "rope bf16" if figure.name.startswith("rope") else "full"
    found = next((f.seconds for f in figures if (f.name, f.length) == (against, figure.length)), None)
    return figure.seconds / found if figure.seconds and found and figure.name != "probe" else None


def _as_json(figure: Figure, figures: Sequence[Figure]) -> dict[str, Any]:
    against = "rope bf16" if figure.name.startswith("rope") else "full"
    return figure.as_json() | {"ratio": _of(figure, figures), "ratio_to": None if figure.name == "probe" else against}


def _line(figure: Figure, figures: Sequence[Figure]) -> str:
    start = f"{figure.name:14}{figure.length:>9}{figure.documents or '-':>11}"
    if figure.failed:
        return f"{start}  failed: {figure.failed}"
    ratio = _of(figure, figures)
    peak = "-" if figure.peak_bytes is None else f"{figure.peak_bytes / (1 << 20):.0f}"
    error = "-" if figure.error is None else f"{figure.error:.1e}"
    shown = "-" if ratio is None else f"{ratio:.3f}"
    return f"{start}{figure.seconds:>11.4g}{shown:>9}{peak:>10}{error:>11}"
