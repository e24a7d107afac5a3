"""`bench anchor`: prefill under the anchor pattern against full attention over the same tokens, in one process.

The model is a random Llama with a small hidden size, whose cost at this length is mostly attention. Times are CPU
seconds of one thread, so that other work of the machine is not counted.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.schema import Request, Role

_VOCABULARY = 512
_QUERY_TOKENS = 32


@dataclass(frozen=True, slots=True)
class AnchorFigures:
    """CPU seconds of prompts over the same documents; `computed` is the tokens that the second prompt computed."""

    documents: int
    tokens_each: int
    layers: int
    full: float
    anchor: float
    second: float
    computed: int

    @property
    def ratio(self) -> float:
        """How many times faster the anchor prefill is than prefill with full attention."""
        return self.full / self.anchor


def measure_anchor(documents: int = 32, tokens_each: int = 512, layers: int = 4) -> AnchorFigures:
    """Measure the seconds of a prompt under `full`, of it under `anchor`, and of a second query after that."""
    with tempfile.TemporaryDirectory() as folder:
        _save_model(Path(folder), documents * tokens_each + 1024, layers)
        room = 2 * documents * tokens_each + 4096
        backend = HfBackend.open(folder, dtype="float32", device="cpu", batch_tokens=room)
    first, second = (_request(documents, tokens_each, seed) for seed in (1, 2))
    with backend.under(parse_arm("native")):
        full = _seconds(backend, first)
    with backend.under(parse_arm("anchor/native")):
        anchor = _seconds(backend, first)
        before = backend.documents.prefilled_tokens
        again = _seconds(backend, second)
        computed = backend.documents.prefilled_tokens - before + _QUERY_TOKENS
    return AnchorFigures(documents, tokens_each, layers, full, anchor, again, computed)


def report_anchor(documents: int = 32, tokens_each: int = 512, layers: int = 4) -> str:
    """Return the figures as one sentence."""
    figures = measure_anchor(documents, tokens_each, layers)
    what = f"{figures.documents} documents of {figures.tokens_each} tokens, {figures.layers} layers"
    return (
        f"{what}: full {figures.full:.2f} CPU s, anchor {figures.anchor:.2f} CPU s, {figures.ratio:.1f} times faster; "
        f"another query over the same documents {figures.second:.2f} CPU s, {figures.computed} tokens computed"
    )


def _seconds(backend: HfBackend, request: Request) -> float:
    began = time.process_time()
    list(backend.answer([request]))
    return time.process_time() - began


def _request(documents: int, tokens_each: int, seed: int) -> Request:
    """Return a request with the anchor, the same documents for every seed, and a query that depends on the seed."""

    def draw(size: int, of: int) -> list[int]:
        return torch.randint(3, _VOCABULARY, (size,), generator=torch.Generator().manual_seed(of)).tolist()

    ids = (1, *draw(documents * tokens_each, 0), *draw(_QUERY_TOKENS, seed))
    segments = (-1, *(i for i in range(documents) for _ in range(tokens_each)), *[documents] * _QUERY_TOKENS)
    document: Role = "document"
    roles: tuple[Role, ...] = (*[document] * documents, "query")
    return Request(f"bench {seed}", ids, segments, roles, max_new_tokens=1)


def _save_model(folder: Path, positions: int, layers: int) -> None:
    """Save a random Llama in `folder`, with a tokenizer of as many words as its vocabulary has."""
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(_VOCABULARY)}, unk_token="0"))
    words.decoder = decoders.Fuse()
    words.save(str(folder / "tokenizer.json"))
