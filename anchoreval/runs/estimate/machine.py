"""Measure the speed of this machine on a model by a few passes, and its memory before a model is loaded."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache

from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.backends.hf.network import extend_rows
from anchoreval.runs.estimate.cost import Machine, Shape
from anchoreval.runs.estimate.dry import Pass

_FEW_TOKENS, _ROWS, _TIMES = 16, 4, 3


def this_machine(model: str, dtype: str, shape: Shape, chunk: int) -> Machine:
    """Load the model and return this machine's speed, from a short prefill, a chunk of prefill and a decoding step."""
    before = library_bytes()
    backend = HfBackend.open(model, dtype=dtype)
    network = StockNetwork(backend.model, next(backend.model.parameters()).device)
    chunk = min(chunk, shape.positions or chunk)
    short, long, step = Pass(1, _FEW_TOKENS, _FEW_TOKENS, 1), Pass(1, chunk, chunk, 1), Pass(_ROWS, 1, chunk, 1)
    times = {pass_: min(_seconds(network, pass_) for _ in range(_TIMES)) for pass_ in (short, long, step)}
    backend.close()
    rate = (shape.operations(long) - shape.operations(short)) / max(times[long] - times[short], 1e-9)
    overhead = max(times[short] - shape.operations(short) / rate, 0.0)
    reading = max(times[step] - overhead, 1e-9)
    source = f"measured here: {rate / 1e9:.1f} billion operations a second, and {overhead * 1e3:.1f} ms for every pass"
    return Machine(
        str(network.device),
        1,
        rate,
        shape.read_bytes(step) / reading,
        overhead=overhead,
        libraries=before if network.device.type == "cpu" else 0,
        says=source,
    )


@torch.inference_mode()
def _seconds(network: StockNetwork, one: Pass) -> float:
    """Return the wall time of a pass with its cache already filled."""
    device, filled = network.device, one.columns - one.queries
    cache = DynamicCache(config=network.model.config)
    ids_BC = torch.zeros(one.rows, one.columns, dtype=torch.long, device=device)
    if filled:
        extend_rows(network, cache, ids_BC[:, :filled], range(filled), 0)
    began = time.perf_counter()
    extend_rows(network, cache, ids_BC[:, filled:], range(filled, one.columns), filled)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def library_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Return the bytes of memory that Python and the libraries hold now; 0 if the system does not tell."""
    if not status.exists():
        return 0
    lines = (line.split() for line in status.read_text("ascii").splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[0] == "VmRSS:"), 0)
