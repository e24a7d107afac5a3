"""Tiny models that vLLM's CPU attention takes, opened in the vLLM backend, and the hf backend as their reference."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checkpoints import SHAPE, prompts, request, save_model
from transformers import LlamaConfig

from anchoreval.backends import Backend, open_backend
from anchoreval.schema import Output, Request

WHY = "VLLM ABSENT: nothing was computed by vLLM (make test-vllm)"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# Measured against the same models in fp64: either backend is off by at most 8e-6 per token, so two are apart by no more
# than 16e-6. A wrong position, a wrong mask or a row of another prompt costs 1e-3 and more.
TOKEN = 2e-5
Both = tuple[Any, Backend]  # vllm and hf


def save_llama(folder: Path, dtype: torch.dtype = torch.float32, **changed: Any) -> Path:
    """A random Llama of two layers with heads of 32 dimensions, the smallest that vLLM computes on a CPU.

    Its weights are small, for larger ones make softmaxes that turn on the order of fp32 sums.
    """
    shape = SHAPE | {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.05}
    return save_model(folder, LlamaConfig(**shape | changed), dtype)


def with_eos(folder: Path, tokens: Sequence[int]) -> Path:
    """The folder, whose generation config now ends answers at these tokens."""
    path = folder / "generation_config.json"
    stated = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(stated | {"eos_token_id": list(tokens)}), "utf-8")
    return folder


def by_name(backend: Backend, requests: Sequence[Request]) -> dict[str, Output]:
    """Sample id -> output."""
    return {output.sample_id: output for output in backend.answer(requests)}


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Any]:
    """The vLLM backend with room for 2,048 positions, closed at the end: one lives in a process at a time."""
    backend = open_backend("vllm", str(folder), **{"max_model_len": 2048} | options)
    try:
        yield backend
    finally:
        backend.close()


def assert_equal(found: dict[str, Output], wanted: dict[str, Output], requests: Sequence[Request]) -> None:
    """Same tokens, texts and endings; log-probabilities within TOKEN for each token of reference or choice."""
    assert found.keys() == wanted.keys() == {asked.sample_id for asked in requests}
    for asked in requests:
        mine, other = found[asked.sample_id], wanted[asked.sample_id]
        said = (mine.token_ids, mine.text, mine.finish, mine.why)
        assert said == (other.token_ids, other.text, other.finish, other.why), asked.sample_id
        assert (mine.reference_logprob is None) == (other.reference_logprob is None)
        if mine.reference_logprob is not None and other.reference_logprob is not None:
            assert abs(mine.reference_logprob - other.reference_logprob) < TOKEN * len(asked.reference_ids)
        for choice, score, reference in zip(asked.choices, mine.choices, other.choices, strict=True):
            assert score.greedy == reference.greedy, asked.sample_id
            assert abs(score.logprob - reference.logprob) <= TOKEN * choice.counted


def drawn(count: int, seed: int) -> tuple[int, ...]:
    """Random tokens that go on behind a prompt."""
    return prompts(1, count + 1, count + 1, seed)[0][1:]


def mixed() -> list[Request]:
    """Prompts of many lengths, with references of none to 40 tokens and budgets of none to 11."""
    lengths = prompts(14, 2, 300)
    return [
        request(f"m{i}", ids, max_new_tokens=i % 12, reference=drawn(3 * i, seed=i) if i else ())
        for i, ids in enumerate(lengths)
    ]
