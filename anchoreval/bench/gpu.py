"""`bench gpu`: anchor prefill against full attention, rows against FlexAttention, RoPE and the probe, at 8B shapes.

The figures of a machine are kept as `leaderboards/results/gpu/<device>.json`, for instance

    anchoreval bench gpu --output leaderboards/results/gpu/h100.json

which writes device, versions, command line and every measurement, including those that failed. Add a row with the
printed ratios to the table of leaderboards/README.md. Figures of two machines, or of two versions of torch, are not
compared.

Inputs are random bf16 and made anew for each measurement, so that a failed one does not affect the others. `anchor` is
one layer's attention over a prompt of the anchor, documents of one size, and a query. It is computed by rows, as the
backend does (several documents at a time as causal rows [anchor; document], then the query on all keys), and by
FlexAttention with a block mask.

Shape letters: H query heads, K key/value heads, N tokens, M documents, D head dim.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from anchoreval.arms.flex import attend, block_mask, first_keys
from anchoreval.arms.patterns import Block
from anchoreval.arms.precision import Rotation, Tables
from anchoreval.arms.rope import LEVELS
from anchoreval.diagnostics.probe.record import Heads, compare, query_rows
from anchoreval.errors import ModelError

QUERY_HEADS, KV_HEADS, HEAD, THETA = 32, 8, 128, 5e5
QUERY_TOKENS = 64
SAMPLED_ROWS = 32  # rows whose error is measured
PROBE_ROWS = 128
_ROW_TOKENS = 32_768  # tokens of documents in one call
_PROBE_SHIFT = 16
_HEAD = f"{'what':14}{'tokens':>9}{'documents':>11}{'seconds':>11}{'of full':>9}{'peak MiB':>10}{'max error':>11}"


@dataclass
class Figure:
    """One measurement: median seconds, peak bytes beyond the inputs (CUDA only), largest error; or why it failed.

    `ratio` is of its seconds to those of another at the same length, `ratio_to`.
    """

    name: str
    length: int
    documents: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    failed: str | None = None
    ratio: float | None = None
    ratio_to: str | None = None


@dataclass(frozen=True)
class Inputs:
    """q [1, H, N, D], k and v [1, K, N, D] in bf16."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Bench:
    """The device of the measurements and how often each is repeated."""

    device: torch.device
    repeats: int

    def inputs(self, length: int) -> Inputs:
        """Return random inputs, the same for the same length."""
        draw = torch.Generator(self.device).manual_seed(length)
        shapes = ((1, heads, length, HEAD) for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS))
        named: dict[str, Any] = {"device": self.device, "dtype": torch.bfloat16, "generator": draw}
        return Inputs(*(torch.randn(shape, **named) for shape in shapes))

    def time(self, into: Figure, work: Callable[[], Any]) -> Any:
        """Return the result of `work`; write the seconds of its first run (with compiling) `into` a figure.

        The figure also gets the median seconds of the other runs and their peak memory.
        """
        cuda, before = self.device.type == "cuda", 0
        began = time.perf_counter()
        result = work()
        into.facts["first_seconds"] = now(self.device) - began
        del result
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        spent = []
        for _ in range(self.repeats):
            result = None  # so that the last result is not held while the next is computed
            began = now(self.device)
            result = work()
            spent.append(now(self.device) - began)
        into.seconds = statistics.median(spent)
        if cuda:
            into.peak_bytes = torch.cuda.max_memory_allocated(self.device) - before
        return result


def now(device: torch.device) -> float:
    """Return the time on the clock, in seconds, when the device has done all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def open_bench(device: str, repeats: int) -> Bench:
    """Return the bench on `device`; raise ModelError if this machine does not have it."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not on this machine: use --device cpu, at toy lengths") from error
    return Bench(place, repeats)


def machine(device: torch.device) -> dict[str, Any]:
    """Return device, versions and threads: what figures depend on besides the code."""
    cuda = device.type == "cuda"
    versions: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("torch", "transformers", "triton"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    name = torch.cuda.get_device_name(device) if cuda else platform.machine()
    return {"device": str(device), "device_name": name, "versions": versions, "threads": torch.get_num_threads()}


def report_gpu(
    lengths: Sequence[int], documents: Sequence[int], device: str, repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return all figures and the facts of the machine as JSON; `say` takes each row of the table as it is measured."""
    bench = open_bench(device, repeats)
    sizes = [",".join(map(str, given)) for given in (lengths, documents)]
    flags = f"--lengths {sizes[0]} --documents {sizes[1]} --device {device} --repeats {repeats}"
    facts = {"command": f"anchoreval bench gpu {flags}", **machine(bench.device)}
    say(f"{facts['device_name']}, " + ", ".join(f"{k} {v or 'absent'}" for k, v in facts["versions"].items()))
    say(_HEAD)
    figures: list[Figure] = []
    for figure in measures(bench, lengths, documents):
        figures.append(figure)
        if figure.name != "probe":
            figure.ratio_to = "rope bf16" if figure.name.startswith("rope") else "full"
            other = next((f for f in figures if (f.name, f.length) == (figure.ratio_to, figure.length)), figure)
            figure.ratio = figure.seconds / other.seconds if figure.seconds and other.seconds else None
        start = f"{figure.name:14}{figure.length:>9}{figure.documents or '-':>11}"
        if figure.failed:
            say(f"{start}  failed: {figure.failed}")
            continue
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.3f}"
        peak = "-" if figure.peak_bytes is None else f"{figure.peak_bytes / (1 << 20):.0f}"
        error = "-" if figure.error is None else f"{figure.error:.1e}"
        say(f"{start}{figure.seconds:>11.4g}{ratio:>9}{peak:>10}{error:>11}")
    return facts | {"figures": [asdict(figure) for figure in figures]}


def measures(bench: Bench, lengths: Sequence[int], documents: Sequence[int]) -> Iterator[Figure]:
    """Yield every measurement as soon as it is done; a failed one holds the error, and the next ones go on."""
    for length in lengths:
        yield _guarded(Figure("full", length), partial(_full, bench))
        for count in documents:
            for name in ("anchor rows", "anchor flex"):
                yield _guarded(Figure(name, length, count), partial(_anchor, bench))
        for level in ("bf16", "fp32"):
            yield _guarded(Figure(f"rope {level}", length), partial(_rope, bench, level=level))
        yield _guarded(Figure("probe", length), partial(_probe, bench))


def _guarded(into: Figure, work: Callable[[Figure], None]) -> Figure:
    try:
        with torch.inference_mode():
            work(into)
    except Exception as error:  # out of memory, no triton, no flash kernel: each is a result here
        lines = str(error).strip().splitlines() or [""]
        into.failed = f"{type(error).__name__}: {lines[0][:200]}"
        into.seconds = into.peak_bytes = into.error = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return into


def prompt(length: int, documents: int) -> tuple[Block, ...]:
    """Return the anchor, documents of one size, and a query of QUERY_TOKENS (fewer in toys) plus the remainder."""
    each = (length - 1 - min(QUERY_TOKENS, length // 4)) // documents
    if each < 1:
        raise ValueError(f"{length} tokens are too few for {documents} documents")
    blocks = [Block("document", 1 + i * each, 1 + (i + 1) * each) for i in range(documents)]
    return (Block("anchor", 0, 1), *blocks, Block("query", blocks[-1].stop, length))


def _full(bench: Bench, into: Figure) -> None:
    x = bench.inputs(into.length)
    with _flash(bench.device):
        out = bench.time(into, lambda: _causal(x.q, x.k, x.v))
    into.error = _error(out, x, (Block("query", 0, into.length),), "full")


def _anchor(bench: Bench, into: Figure) -> None:
    x, blocks = bench.inputs(into.length), prompt(into.length, into.documents or 0)
    if into.name == "anchor rows":
        out = bench.time(into, lambda: by_rows(x, blocks))
    else:
        mask = Figure("mask", into.length)
        seen = bench.time(mask, lambda: block_mask(blocks, "anchor", into.length, device=bench.device))
        out = bench.time(into, lambda: attend(x.q, x.k, x.v, seen))
        into.facts |= {"mask_seconds": mask.seconds or 0.0, "empty_blocks_percent": float(seen.sparsity())}
    into.error = _error(out, x, blocks, "anchor")


def by_rows(x: Inputs, blocks: Sequence[Block]) -> Tensor:
    """Return the attention output [1, H, N, D] under `anchor`, with documents as causal rows behind the anchor."""
    documents, query = blocks[1:-1], blocks[-1]
    each, out = len(documents[0]), torch.empty_like(x.q)
    step = max(1, _ROW_TOKENS // (each + 1))
    with _flash(x.q.device):
        for at in range(0, len(documents), step):
            part = documents[at : at + step]
            inside = slice(part[0].start, part[-1].stop)
            rows = []  # [anchor; document], [M, heads, 1 + tokens, D] of q, k and v
            for whole in (x.q, x.k, x.v):
                cut = whole[0, :, inside].reshape(whole.shape[1], len(part), -1, HEAD).transpose(0, 1)
                rows.append(torch.cat([whole[:, :, :1].expand(len(part), -1, -1, -1), cut], 2))
            attended = _causal(*rows)
            out[0, :, inside] = attended[:, :, 1:].transpose(0, 1).flatten(1, 2)
            out[0, :, :1] = attended[0, :, :1]

    # The query on all keys; query heads of one key head are folded into rows, so no key is copied.
    groups = QUERY_HEADS // KV_HEADS
    at_query = torch.arange(query.start, query.stop, device=x.q.device)[:, None]
    seen = (torch.arange(query.stop, device=x.q.device)[None] <= at_query).repeat(groups, 1)
    folded = x.q[:, :, query.start :].reshape(1, KV_HEADS, groups * len(query), HEAD)
    on_all = scaled_dot_product_attention(folded, x.k, x.v, attn_mask=seen)
    out[:, :, query.start :] = on_all.reshape(1, QUERY_HEADS, len(query), HEAD)
    return out


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _flash(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Force the flash kernel on CUDA, which is an error if it cannot run; on a CPU leave the choice to torch."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION]) if device.type == "cuda" else contextlib.nullcontext()


def _error(out: Tensor, x: Inputs, blocks: Sequence[Block], pattern: str) -> float:
    """Return the largest difference of `out` [1, H, N, D] from attention in fp32, on a sample of query rows."""
    length, worst = x.q.shape[2], 0.0
    first = first_keys(blocks, pattern, length)
    for row in query_rows(length, SAMPLED_ROWS).tolist():
        low = int(first[row])
        behind = [0] if pattern == "anchor" and low > 0 else []
        keys = torch.tensor([*behind, *range(low, row + 1)], device=x.q.device)
        k, v = (t[0, :, keys].float() for t in (x.k, x.v))
        q = x.q[0, :, row].float().reshape(KV_HEADS, -1, HEAD)
        want = (q @ k.transpose(1, 2) * HEAD**-0.5).softmax(-1) @ v
        worst = max(worst, float((out[0, :, row].float() - want.reshape(QUERY_HEADS, HEAD)).abs().max()))
    return worst


def _rotation(bench: Bench, length: int, level: str) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the rotation of a stock Llama at a level, of q and k [1, heads, n, D]; its tables are computed too."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    shape = {"hidden_size": QUERY_HEADS * HEAD, "num_attention_heads": QUERY_HEADS, "head_dim": HEAD}
    rope = {"rope_type": "default", "rope_theta": THETA}
    config = LlamaConfig(**shape, max_position_embeddings=length, rope_parameters=rope)
    tables = Tables(LlamaRotaryEmbedding(config).to(bench.device), LEVELS[level], lambda _: None)
    rotation = Rotation(apply_rotary_pos_emb, LEVELS[level])

    def rotate(q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = rotation(q, k, *tables(q, positions[None]))
        return turned

    return rotate


def _rope(bench: Bench, into: Figure, level: str) -> None:
    x, rope = bench.inputs(into.length), _rotation(bench, into.length, level)
    positions = torch.arange(into.length, device=bench.device)
    bench.time(into, lambda: rope(x.q, x.k, positions))


def _probe(bench: Bench, into: Figure) -> None:
    """Time the probe's measures of one layer between bf16 rotations at offset 0 and at `_PROBE_SHIFT`."""
    x, rope = bench.inputs(into.length), _rotation(bench, into.length + _PROBE_SHIFT, "bf16")
    rows = query_rows(into.length, PROBE_ROWS).to(bench.device)
    positions = torch.arange(into.length, device=bench.device)

    def at(shift: int) -> Heads:
        q = rope(x.q[:, :, rows], x.k[:, :, :1], rows + shift)[0]
        k = rope(x.q[:, :, :1].expand(-1, -1, into.length, -1), x.k, positions + shift)[1]
        return Heads(q[0], k[0], rows, HEAD**-0.5)

    one, other = at(0), at(_PROBE_SHIFT)
    difference = bench.time(into, lambda: compare(one, other))
    for name in ("D", "D_logit", "logit_first", "logit_other"):
        into.facts[name] = float(getattr(difference, name).mean())
    into.facts["query_rows"] = float(len(rows))
