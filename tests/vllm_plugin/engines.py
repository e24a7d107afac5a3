"""Tiny checkpoints, real vLLM engines in this process, and transformers as their reference."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
)
sys.path.append(str(Path(__file__).parents[1] / "backends"))

import torch
from checkpoints import SHAPE, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from anchoreval.arms.patch_hf import applied
from anchoreval.arms.rope import parse_level

WHY = "VLLM ABSENT: nothing was computed by vLLM (make test-vllm)"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
ROWS = 4096  # max_position_embeddings of the tiny models
TYPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


def checkpoint(folder: Path, kind: str = "llama", rope: str = "default", **more: Any) -> Path:
    """A random model in `folder`; vLLM's CPU kernels take heads of 32 dimensions, not of 16."""
    extra = {"mistral": {"sliding_window": None}, "qwen2": {"hidden_size": 128}}.get(kind, {})
    rope_parameters = {"rope_theta": 10000.0, **TYPES[rope]}
    folder.mkdir(exist_ok=True)
    shape = {**SHAPE, "head_dim": 32, "rope_parameters": rope_parameters, **extra, **more}
    return save_model(folder, CONFIGS[kind](**shape))


@dataclass
class Answer:
    """Log-probabilities of prompt tokens 1 on, the tokens generated, and how many were cached."""

    prompt: Tensor
    generated: tuple[int, ...]
    generated_logprobs: Tensor
    cached: int


class Engine:
    """A vLLM engine in this process."""

    def __init__(self, folder: Path, dtype: str, settings: dict[str, Any] | None = None, **more: Any) -> None:
        from vllm import LLM

        from anchoreval.vllm_plugin import rope

        rope.forget()
        arguments = {"max_model_len": 2048, "enforce_eager": True, "block_size": 32, "max_num_seqs": 8, **more}
        self.llm = LLM(str(folder), dtype=dtype, disable_log_stats=True, **arguments, **(settings or {}))

    def says(self) -> dict[str, Any]:
        return self.llm.collective_rpc("anchoreval_says")[0]

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        plans: Sequence[list[int] | None] | None = None,
        salts: Sequence[str | None] | None = None,
        new: int = 4,
        score: bool = True,
    ) -> list[Answer]:
        """Prompts as one batch; scoring a prompt keeps vLLM from reading its prefix cache."""
        from vllm import SamplingParams

        plans, salts = plans or [None] * len(prompts), salts or [None] * len(prompts)
        inputs = [
            {"prompt_token_ids": list(ids), **({"cache_salt": salt} if salt else {})}
            for ids, salt in zip(prompts, salts, strict=True)
        ]
        sampling = [
            SamplingParams(
                temperature=0,
                max_tokens=new,
                ignore_eos=True,
                logprobs=0,
                prompt_logprobs=0 if score else None,
                extra_args={"anchoreval_plan": plan} if plan else None,
            )
            for plan in plans
        ]
        outputs = self.llm.generate(inputs, sampling, use_tqdm=False)
        return [_answer(output, ids) for output, ids in zip(outputs, prompts, strict=True)]


def _answer(output: Any, ids: Sequence[int]) -> Answer:
    scored = output.prompt_logprobs or [None]
    prompt = torch.tensor([table[token].logprob for table, token in zip(scored[1:], ids[1:], strict=False)])
    made = output.outputs[0]
    chosen = torch.tensor([table[token].logprob for table, token in zip(made.logprobs, made.token_ids, strict=True)])
    return Answer(prompt, tuple(made.token_ids), chosen, output.num_cached_tokens or 0)


@contextmanager
def engine(
    folder: Path, dtype: str = "float32", settings: dict[str, Any] | None = None, **more: Any
) -> Iterator[Engine]:
    """An engine for one `with` block; its memory is free after it."""
    made = Engine(folder, dtype, settings, **more)
    try:
        yield made
    finally:
        del made.llm
        gc.collect()


class Reference:
    """The same checkpoint in transformers, eager attention."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], attn_implementation="eager")

    def logprobs(
        self, ids: Sequence[int], level: str = "native", positions: Sequence[int] | None = None, mask: Any = None
    ) -> Tensor:
        """Log-probabilities of all next tokens [tokens, vocabulary], with explicit positions and 4D mask.

        Causality is written out too: without a mask, transformers takes a jump of the positions for the start of
        another sequence.
        """
        tokens, dtype = len(ids), self.model.dtype
        given = torch.tensor([list(positions) if positions is not None else list(range(tokens))])
        allowed = torch.ones(tokens, tokens).tril().bool() if mask is None else torch.tensor(mask)
        blocked = torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]
        with torch.no_grad(), applied(self.model, parse_level(level)):
            output = self.model(torch.tensor([list(ids)]), position_ids=given, attention_mask=blocked, use_cache=False)
        logits = output.logits[0]
        return logits.float().log_softmax(-1)

    def prompt(self, ids: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
        """Log-probabilities of prompt tokens 1 on."""
        return picked(self.logprobs(ids, *args, **kwargs)[:-1], ids[1:])


def picked(logprobs: Tensor, ids: Sequence[int]) -> Tensor:
    return logprobs.gather(-1, torch.tensor(list(ids))[:, None])[:, 0]
