"""Tiny random models saved as a user would save them, with a byte-level tokenizer made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from anchoreval.schema import Request

BOS, EOS, FIRST_BYTE = 1, 2, 3
VOCABULARY = FIRST_BYTE + 256


def save_tokenizer(folder: Path) -> Tokenizer:
    """One token per byte, after `<pad>`, `<s>` and `</s>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": BOS, "</s>": EOS, **{c: FIRST_BYTE + i for i, c in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def sharpen(model: Any) -> None:
    """Random models attend almost evenly; larger projections make tokens and order matter."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "query_key_value")):
                weight.mul_(6)


def save_model(folder: Path, config: Any, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of `config` in `folder`, the same for the same config."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    sharpen(model)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


def prompts(count: int, shortest: int, longest: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts that begin with the BOS token."""
    rng = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=rng).tolist()

    lengths = draw(shortest, longest + 1, count)
    return [(BOS, *draw(FIRST_BYTE, VOCABULARY, length - 1)) for length in lengths]


def request(
    name: str,
    ids: tuple[int, ...],
    max_new_tokens: int = 8,
    reference: tuple[int, ...] = (),
    stop: tuple[str, ...] = (),
) -> Request:
    """A request of one document."""
    return Request(name, ids, (-1, *[0] * (len(ids) - 1)), ("document",), max_new_tokens, stop, reference)
