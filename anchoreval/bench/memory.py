"""`bench memory`: the memory of a long prompt beyond weights and KV cache, beside that of full logits.

Linux only: peak memory is the kernel's high-water mark of this process, reset after the model is loaded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM

from anchoreval.backends.hf.backend import HfBackend
from anchoreval.schema import Request

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MIB = 1 << 20
_REFERENCE_TOKENS = 256
_NEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Bytes, except `tokens` and `vocabulary`; `beyond` is the peak without weights, KV cache and libraries."""

    tokens: int
    vocabulary: int
    peak: int
    before: int
    kv_cache: int
    beyond: int
    full_logits: int


def measure_memory(tokens: int = 32_768, vocabulary: int = 32_768, dtype: str = "float32") -> MemoryFigures:
    """Measure one prompt on a random Llama of two layers: prefill, a scored reference, decode."""
    with tempfile.TemporaryDirectory() as folder:
        config = save_llama(Path(folder), tokens, vocabulary)
        backend = HfBackend.open(folder, dtype=dtype, device="cpu")
    list(backend.answer([_request(600, vocabulary)]))  # the libraries' one-time allocations do not count for the prompt
    before, peak = peak_of(lambda: list(backend.answer([_request(tokens - _NEW_TOKENS, vocabulary)])))
    bytes_each = 4 if dtype == "float32" else 2
    columns = tokens + _REFERENCE_TOKENS
    heads = config.num_key_value_heads * config.head_dim
    kv_cache = 2 * config.num_hidden_layers * columns * heads * bytes_each
    return MemoryFigures(
        tokens=tokens,
        vocabulary=vocabulary,
        peak=peak,
        before=before,
        kv_cache=kv_cache,
        beyond=peak - before - kv_cache,
        full_logits=2 * 4 * tokens * vocabulary,  # fp32 logits and their log-softmax
    )


def peak_of(work: Callable[[], object]) -> tuple[int, int]:
    """Return the bytes that this process holds before `work`, and the most that it holds during `work`."""
    _CLEAR.write_text("5", "ascii")
    before = _status("VmRSS")
    work()
    return before, _status("VmHWM")


def report_memory(tokens: int = 32_768, vocabulary: int = 32_768) -> str:
    """Return the figures as one sentence."""
    figures = measure_memory(tokens, vocabulary)
    full = f"full fp32 logits and their log-softmax alone: {figures.full_logits / _MIB:.0f} MiB"
    beyond = f"{figures.beyond / _MIB:.0f} MiB beyond weights and {figures.kv_cache / _MIB:.0f} MiB of KV cache"
    return f"{figures.tokens} tokens, vocabulary {figures.vocabulary}: peak {beyond}; {full}"


def _request(length: int, vocabulary: int) -> Request:
    ids = tuple(torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(0)).tolist())
    reference = ids[:_REFERENCE_TOKENS]
    return Request("memory", ids, (0,) * length, ("document",), _NEW_TOKENS, (), reference)


def save_llama(folder: Path, tokens: int, vocabulary: int) -> LlamaConfig:
    """Save a random Llama of two layers in `folder`, with a tokenizer of `vocabulary` words; return its config."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=tokens,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    words.decoder = decoders.Fuse()
    words.save(str(folder / "tokenizer.json"))
    return config


def _status(key: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in _STATUS.read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no {key}: `bench memory` needs Linux")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(asdict(measure_memory())) + "\n")
