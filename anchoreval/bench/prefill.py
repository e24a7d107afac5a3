"""`bench prefill`: the hf backend's tokens a second and peak memory, full against anchor, on a model that fills a GPU.

The layers are those of Llama-3-70B, as many as fit the device's memory beside the cache of the longest prompt, with
random weights that are made on the device. Nothing is saved. On a CPU use the toy shape, `--shape toy`.

    anchoreval bench prefill --lengths 32k,64k,128k --output leaderboards/results/gpu/prefill-h200.json
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchoreval.backends.hf.backend import HfBackend
    from anchoreval.schema import Request

#: (hidden, intermediate, query heads, key/value heads, vocabulary, layers at the most) of Llama-3-70B, -8B and -1B, of
#: anchor-tiny, and a toy
SHAPES = {
    "70b": (8192, 28672, 64, 8, 128_256, 80),
    "8b": (4096, 14336, 32, 8, 128_256, 32),
    "1b": (2048, 8192, 32, 8, 128_256, 16),
    "anchor-tiny": (256, 512, 4, 4, 4096, 4),
    "toy": (256, 512, 8, 4, 512, 2),
}
_SHARE = 0.85  # of the device's memory, for weights and cache; the rest is for the activations of a pass
_QUERY_TOKENS = 64
_BYTES = 2  # of bfloat16
_MIB = 1 << 20
_HEAD = f"{'pattern':10}{'tokens':>9}{'documents':>11}{'seconds':>10}{'tokens/s':>11}{'of full':>9}{'peak MiB':>11}"


@dataclass(frozen=True, slots=True)
class Prefill:
    """One prompt: seconds and the device's peak bytes (None on a CPU), or the reason of its failure."""

    pattern: str
    tokens: int
    documents: int
    seconds: float | None = None
    peak_bytes: int | None = None
    failed: str | None = None


def report_prefill(
    lengths: Sequence[int], documents: int, shape: str, device: str, chunk_tokens: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return all figures and the facts of the machine as JSON; `say` takes each row of the table as it is measured."""
    from anchoreval.bench.gpu_measures import machine, open_bench

    place = open_bench(device, 1).device
    layers = layers_that_fit(shape, max(lengths), memory_of(place))
    facts = machine(place) | {"shape": shape, "layers": layers, "chunk_tokens": chunk_tokens}
    say(f"{facts['device_name']}; {layers} layers of Llama-3-{shape}, bfloat16, random weights\n{_HEAD}")
    backend = open_random(shape, layers, max(lengths), place, chunk_tokens)
    figures: list[Prefill] = []
    for figure in measures(backend, lengths, documents, SHAPES[shape][4]):
        figures.append(figure)
        say(line(figure, figures))
    flags = f"--lengths {','.join(map(str, lengths))} --documents {documents} --shape {shape}"
    facts["command"] = f"anchoreval bench prefill {flags} --chunk-tokens {chunk_tokens}"
    return facts | {"figures": [dataclasses.asdict(figure) for figure in figures]}


def layers_that_fit(shape: str, tokens: int, memory: int | None) -> int:
    """Return how many layers of a shape fit `memory` bytes with a cache of `tokens` tokens; all if it is None."""
    hidden, inner, heads, kv_heads, vocabulary, most = SHAPES[shape]
    if memory is None:
        return most
    kept = hidden // heads * kv_heads
    layer = hidden * (2 * hidden + 2 * kept + 3 * inner) * _BYTES + 2 * kept * tokens * _BYTES
    return max(1, min(most, int(_SHARE * memory - 2 * vocabulary * hidden * _BYTES) // layer))


def memory_of(device: Any) -> int | None:
    """Return the memory of the device in bytes, or None on a CPU."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def random_llama(shape: str, layers: int, tokens: int, device: Any, dtype: Any) -> Any:
    """Return random weights of a shape, made on the device, with so many positions and no end token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner, heads, kv_heads, vocabulary, _ = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        attn_implementation="sdpa",
        eos_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def open_random(shape: str, layers: int, tokens: int, device: Any, chunk_tokens: int) -> HfBackend:
    """Open the backend over random weights made on the device, with the tokenizer of the embedded model."""
    import torch

    from anchoreval.backends.hf.backend import HfBackend
    from anchoreval.backends.hf.batches import Limits
    from anchoreval.backends.hf.load import StockNetwork
    from anchoreval.cards import find_model
    from anchoreval.model.checkpoint import Checkpoint

    model = random_llama(shape, layers, tokens + 1024, device, torch.bfloat16)
    checkpoint = Checkpoint(Path(find_model("anchor-tiny")[1].checkpoint), {"random weights": f"{shape} {layers}"})
    return HfBackend(checkpoint, StockNetwork(model, device), Limits(chunk_tokens, tokens + 1024, 1))


def measures(backend: HfBackend, lengths: Sequence[int], documents: int, vocabulary: int) -> Iterator[Prefill]:
    """Yield one figure per length and pattern; no prompt shares anything with earlier lengths."""
    from anchoreval.arms.arm import parse_arm

    for pattern in ("full", "anchor"):  # warm up what the libraries do once
        with backend.under(parse_arm("native" if pattern == "full" else f"{pattern}/native")):
            list(backend.answer([request(1024, 2, vocabulary, 0)]))
    for seed, tokens in enumerate(lengths, 1):
        for pattern in ("full", "anchor"):
            arm = parse_arm("native" if pattern == "full" else f"{pattern}/native")
            with backend.under(arm):
                yield _measured(backend, pattern, request(tokens, documents, vocabulary, seed))
                backend.documents.clear()


def _measured(backend: HfBackend, pattern: str, asked: Request) -> Prefill:
    import torch

    cuda = torch.cuda.is_available() and backend.model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    (output,) = backend.answer([asked])
    if cuda:
        torch.cuda.synchronize()
    seconds, documents = time.perf_counter() - began, len(asked.roles) - 1
    peak = torch.cuda.max_memory_allocated() if cuda else None
    return Prefill(pattern, len(asked.token_ids), documents, seconds, peak, output.why)


def request(tokens: int, documents: int, vocabulary: int, seed: int) -> Request:
    """Return a prompt of random tokens: the anchor, documents of one size, a query; one token is generated."""
    import torch

    from anchoreval.schema import Request, Role

    each = (tokens - 1 - _QUERY_TOKENS) // documents
    count = each * documents + _QUERY_TOKENS
    draw = torch.Generator().manual_seed(seed)
    ids = (1, *torch.randint(3, vocabulary, (count,), generator=draw).tolist())
    segments = (-1, *(i for i in range(documents) for _ in range(each)), *[documents] * _QUERY_TOKENS)
    role: Role = "document"
    return Request(f"bench {seed}", ids, segments, (*[role] * documents, "query"), max_new_tokens=1)


def line(figure: Prefill, figures: Sequence[Prefill]) -> str:
    """Return a row of the table, with the ratio of seconds to full attention at the same length."""
    start = f"{figure.pattern:10}{figure.tokens:>9}{figure.documents:>11}"
    if figure.failed or not figure.seconds:
        return f"{start}  failed: {figure.failed}"
    full = next((f.seconds for f in figures if f.pattern == "full" and f.tokens == figure.tokens), None)
    ratio = "-" if full is None else f"{figure.seconds / full:.3f}"
    peak = "-" if figure.peak_bytes is None else f"{figure.peak_bytes / _MIB:,.0f}"
    return f"{start}{figure.seconds:>10.3f}{figure.tokens / figure.seconds:>11,.0f}{ratio:>9}{peak:>11}"
