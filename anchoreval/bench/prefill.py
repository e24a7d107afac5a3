"""`bench prefill` and `bench anchor`: prefill of the hf backend, under the anchor pattern against full attention.

`bench prefill` measures tokens a second and peak memory on a model that fills a GPU.

The layers are those of Llama-3-70B, as many as fit the device's memory beside the cache of the longest prompt, with
random weights that are made on the device. Nothing is saved. On a CPU use the toy shape, `--shape toy`.

    anchoreval bench prefill --lengths 32k,64k,128k --output leaderboards/results/gpu/prefill-h200.json

`bench anchor` measures CPU seconds of one thread, so that other work of the machine is not counted, on a random Llama
with a small hidden size, whose cost at this length is mostly attention.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.bench.gpu import machine, now, open_bench
from anchoreval.bench.memory import save_llama
from anchoreval.cards import find_model
from anchoreval.model.checkpoint import Checkpoint
from anchoreval.schema import Request, Role

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
    place = open_bench(device, 1).device
    memory = torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else None
    layers = layers_that_fit(shape, max(lengths), memory)
    facts = machine(place) | {"shape": shape, "layers": layers, "chunk_tokens": chunk_tokens}
    say(f"{facts['device_name']}; {layers} layers of Llama-3-{shape}, bfloat16, random weights\n{_HEAD}")
    backend = open_random(shape, layers, max(lengths), place, chunk_tokens)
    figures: list[Prefill] = []
    for figure in measures(backend, lengths, documents, SHAPES[shape][4]):
        figures.append(figure)
        start = f"{figure.pattern:10}{figure.tokens:>9}{figure.documents:>11}"
        if figure.failed or not figure.seconds:
            say(f"{start}  failed: {figure.failed}")
            continue
        full = next((f.seconds for f in figures if f.pattern == "full" and f.tokens == figure.tokens), None)
        ratio = "-" if full is None else f"{figure.seconds / full:.3f}"
        peak = "-" if figure.peak_bytes is None else f"{figure.peak_bytes / _MIB:,.0f}"
        say(f"{start}{figure.seconds:>10.3f}{figure.tokens / figure.seconds:>11,.0f}{ratio:>9}{peak:>11}")
    flags = f"--lengths {','.join(map(str, lengths))} --documents {documents} --shape {shape}"
    facts["command"] = f"anchoreval bench prefill {flags} --chunk-tokens {chunk_tokens}"
    return facts | {"figures": [asdict(figure) for figure in figures]}


def layers_that_fit(shape: str, tokens: int, memory: int | None) -> int:
    """Return how many layers of a shape fit `memory` bytes with a cache of `tokens` tokens; all if it is None."""
    hidden, inner, heads, kv_heads, vocabulary, most = SHAPES[shape]
    if memory is None:
        return most
    kept = hidden // heads * kv_heads
    layer = hidden * (2 * hidden + 2 * kept + 3 * inner) * _BYTES + 2 * kept * tokens * _BYTES
    return max(1, min(most, int(_SHARE * memory - 2 * vocabulary * hidden * _BYTES) // layer))


def random_llama(shape: str, layers: int, tokens: int, device: Any, dtype: Any) -> Any:
    """Return random weights of a shape, made on the device, with so many positions and no end token."""
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
    model = random_llama(shape, layers, tokens + 1024, device, torch.bfloat16)
    checkpoint = Checkpoint(Path(find_model("anchor-tiny")[1].checkpoint), {"random weights": f"{shape} {layers}"})
    return HfBackend(checkpoint, StockNetwork(model, device), Limits(chunk_tokens, tokens + 1024, 1))


def measures(backend: HfBackend, lengths: Sequence[int], documents: int, vocabulary: int) -> Iterator[Prefill]:
    """Yield one figure per length and pattern; no prompt shares anything with earlier lengths."""
    arms = {"full": parse_arm("native"), "anchor": parse_arm("anchor/native")}
    for arm in arms.values():  # warm up what the libraries do once
        with backend.under(arm):
            list(backend.answer([request(1024, 2, vocabulary, 0)]))
    device = backend.model.device
    cuda = device.type == "cuda"
    for seed, tokens in enumerate(lengths, 1):
        for pattern, arm in arms.items():
            asked = request(tokens, documents, vocabulary, seed)
            with backend.under(arm):
                if cuda:
                    torch.cuda.reset_peak_memory_stats()
                began = now(device)
                (output,) = backend.answer([asked])
                seconds = now(device) - began
                peak = torch.cuda.max_memory_allocated() if cuda else None
                yield Prefill(pattern, len(asked.token_ids), documents, seconds, peak, output.why)
                backend.documents.clear()


def request(tokens: int, documents: int, vocabulary: int, seed: int, query: int = _QUERY_TOKENS) -> Request:
    """Return a prompt of random tokens: the anchor, documents of one size, a query; one token is generated."""
    each = (tokens - 1 - query) // documents
    draw = torch.Generator().manual_seed(seed)
    ids = (1, *torch.randint(3, vocabulary, (each * documents + query,), generator=draw).tolist())
    segments = (-1, *(i for i in range(documents) for _ in range(each)), *[documents] * query)
    role: Role = "document"
    return Request(f"bench {seed}", ids, segments, (*[role] * documents, "query"), max_new_tokens=1)


def report_anchor(documents: int = 32, tokens_each: int = 512, layers: int = 4) -> str:
    """Return the CPU seconds of a prompt under `full`, of it under `anchor`, and of a second query after that."""
    vocabulary, query = 512, 32
    tokens = documents * tokens_each
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    with tempfile.TemporaryDirectory() as folder:
        save_llama(Path(folder), tokens + 1024, vocabulary, num_hidden_layers=layers, **sizes)
        backend = HfBackend.open(folder, dtype="float32", device="cpu", batch_tokens=2 * tokens + 4096)
    first, other = (request(1 + tokens + query, documents, vocabulary, seed, query) for seed in (1, 2))
    second = replace(first, token_ids=(*first.token_ids[:-query], *other.token_ids[-query:]))
    seconds, computed = [], 0
    for arm, prompts in (("native", [first]), ("anchor/native", [first, second])):
        with backend.under(parse_arm(arm)):
            for asked in prompts:
                before = backend.documents.prefilled_tokens
                began = time.process_time()
                list(backend.answer([asked]))
                seconds.append(time.process_time() - began)
                computed = backend.documents.prefilled_tokens - before + query
    full, anchor, again = seconds
    return (
        f"{documents} documents of {tokens_each} tokens, {layers} layers: full {full:.2f} CPU s, "
        f"anchor {anchor:.2f} CPU s, {full / anchor:.1f} times faster; "
        f"another query over the same documents {again:.2f} CPU s, {computed} tokens computed"
    )
