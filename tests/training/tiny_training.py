"""A random model of 50,000 parameters, a store of 40 texts, and trainings of them that take a second."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from anchoreval.tokenizer import load_tokenizer
from anchoreval.training.loop import How, train
from anchoreval.training.recipes import Hyper, Training
from anchoreval.training.store import Store, pack

TOKENIZER = Path(__file__).parents[2] / "models" / "anchor-tiny"
LENGTH, STEPS = 64, 6
WORDS = ["One", "of", "the", "numbers", "is", "road", "long", "and", "short", "A", "The", "in", "to"]


def write_base(folder: Path, **settings: object) -> Path:
    """A checkpoint that a training starts from."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    config = LlamaConfig(
        vocab_size=load_tokenizer(TOKENIZER).vocab_size,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        **{**shape, **settings},
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    return folder


def write_store(folder: Path, seed: int = 0) -> Store:
    rng = random.Random(seed)
    rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(3, 60))), "source": f"s{at % 2}"} for at in range(40)]
    data = folder.with_name(f"{folder.name}.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pack([str(data)], load_tokenizer(TOKENIZER), folder)


def training(variant: str = "anchor", rope: str = "bf16", **fields: object) -> Training:
    defaults: dict[str, object] = {
        "length": LENGTH,
        "steps": STEPS,
        "batch_tokens": 2 * LENGTH,
        "hyper": Hyper(lr=1e-2),
    }
    return Training(variant, rope, **{**defaults, **fields})  # type: ignore[arg-type]


def run(
    place: Path, asked: Training, output: str = "out", tell: Callable[[str], None] = lambda _: None, save_every: int = 2
) -> Path:
    """Train in `place`, which holds `base` and `store`."""
    how = How(place / output, save_every=save_every, keep=10)
    return train(str(place / "base"), place / "store", asked, how, tell)
