"""`bench gpu`: anchor prefill against full attention, rows against FlexAttention, RoPE and the probe, at 8B shapes.

The figures of a machine are kept as `leaderboards/results/gpu/<device>.json`, for instance

    anchoreval bench gpu --output leaderboards/results/gpu/h100.json

which writes device, versions, command line and every measurement, including those that failed. Add a row with the
printed ratios to the table of leaderboards/README.md. Figures of two machines, or of two versions of torch, are not
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchoreval.bench.gpu_measures import Figure

_HEAD = f"{'what':14}{'tokens':>9}{'documents':>11}{'seconds':>11}{'of full':>9}{'peak MiB':>10}{'max error':>11}"


def report_gpu(
    lengths: Sequence[int], documents: Sequence[int], device: str, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return all figures and the facts of the machine as JSON; `say` takes each row of the table as it is measured."""
    from anchoreval.bench.gpu_measures import machine, measures, open_bench

    bench = open_bench(device, repeats)
    sizes = [",".join(map(str, given)) for given in (lengths, documents)]
    flags = f"--lengths {sizes[0]} --documents {sizes[1]} --device {device} --repeats {repeats}"
    facts = {"command": f"anchoreval bench gpu {flags}", **machine(bench.device)}
    say(f"{facts['device_name']}, " + ", ".join(f"{k} {v or 'absent'}" for k, v in facts["versions"].items()))
    say(_HEAD)
    figures: list[Figure] = []
    for figure in measures(bench, lengths, documents):
        figures.append(figure)
        say(_line(figure, figures))
    return facts | {"figures": [_as_json(figure, figures) for figure in figures]}


def _of(figure: Figure, figures: Sequence[Figure]) -> float | None:
    """Return the ratio of seconds to full attention at the same length, or to bf16 rotation for RoPE; None for none."""
    against = "rope bf16" if figure.name.startswith("rope") else "full"
    seconds = next((f.seconds for f in figures if (f.name, f.length) == (against, figure.length)), None)
    return figure.seconds / seconds if figure.seconds and seconds and figure.name != "probe" else None


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
