"""`bench memory`: the memory of a long prompt beyond weights and KV cache, beside that of full logits.

Linux only: peak memory is the kernel's high-water mark of this process, reset after the model is loaded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
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


def measure_memory(tokens: int = 32_768, vocabulary: int = 32_768) -> dict[str, int]:
    """Measure one prompt on a random Llama of two layers in float32: prefill, a scored reference, decode.

    All are bytes, except `tokens` and `vocabulary`; `beyond` is the peak without weights, KV cache and libraries.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = save_llama(Path(folder), tokens, vocabulary)
        backend = HfBackend.open(folder, dtype="float32", device="cpu")

    def answer(length: int) -> None:
        draw = torch.Generator().manual_seed(0)
        ids = tuple(torch.randint(3, vocabulary, (length,), generator=draw).tolist())
        reference = ids[:_REFERENCE_TOKENS]
        list(backend.answer([Request("memory", ids, (0,) * length, ("document",), _NEW_TOKENS, (), reference)]))

    answer(600)  # the libraries' one-time allocations do not count for the prompt
    before, peak = peak_of(lambda: answer(tokens - _NEW_TOKENS))
    width = config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    kv_cache = 2 * 4 * width * (tokens + _REFERENCE_TOKENS)
    figures = {"tokens": tokens, "vocabulary": vocabulary, "peak": peak, "before": before, "kv_cache": kv_cache}
    # of full logits: in fp32, with their log-softmax
    return figures | {"beyond": peak - before - kv_cache, "full_logits": 2 * 4 * tokens * vocabulary}


def peak_of(work: Callable[[], object]) -> tuple[int, int]:
    """Return the bytes that this process holds before `work`, and the most that it holds during `work`."""
    _CLEAR.write_text("5", "ascii")
    before = _status("VmRSS")
    work()
    return before, _status("VmHWM")


def report_memory(tokens: int = 32_768, vocabulary: int = 32_768) -> str:
    """Return the figures as one sentence."""
    figures = measure_memory(tokens, vocabulary)
    beyond, kv_cache, full = (round(figures[name] / _MIB) for name in ("beyond", "kv_cache", "full_logits"))
    return (
        f"{tokens} tokens, vocabulary {vocabulary}: peak {beyond} MiB beyond weights and {kv_cache} MiB of KV cache; "
        f"full fp32 logits and their log-softmax alone: {full} MiB"
    )


def save_llama(folder: Path, tokens: int, vocabulary: int, **sizes: int) -> LlamaConfig:
    """Save a random Llama in `folder`, of two small layers or of these sizes, with a tokenizer of `vocabulary` words.

    Return its config.
    """
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = sizes or small | {"num_hidden_layers": 2, "head_dim": 32, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=tokens, eos_token_id=None, **more)
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
    sys.stdout.write(json.dumps(measure_memory()) + "\n")
