"""The settings that a vLLM engine is started with, apart from the arm. Imports no vLLM.

Settings that change bits are part of a run's identity; those that only cost memory are not. Compilation by Inductor is
off in every engine: its fused kernels skip roundings that a RoPE level consists of.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from anchoreval.arms.configuration import positions_of, rope_types
from anchoreval.backends.hf.load import DTYPES
from anchoreval.backends.vllm.batches import Batching
from anchoreval.errors import ModelError
from anchoreval.model.checkpoint import Checkpoint
from anchoreval.schema import Json

_KV_CACHE_ENV = "VLLM_CPU_KVCACHE_SPACE"
_CPU_KV_CACHE_GB = 4.0
_CPU_BLOCK_TOKENS, _GPU_BLOCK_TOKENS = 32, 16  # vLLM's kernels want multiples of 32 on a CPU
#: RoPE types whose tables follow from `max_model_len`: one more position would make another model.
_BY_LENGTH = {"dynamic", "longrope", "su"}


@dataclass(frozen=True, slots=True)
class Settings:
    """`window` is the number of positions that prompts may take; the other names are vLLM's, except `kv_cache_gb`."""

    dtype: str
    window: int
    batching: Batching
    block_size: int
    tensor_parallel_size: int
    enforce_eager: bool
    batch_invariant: bool
    gpu_memory_utilization: float
    kv_cache_gb: float | None
    trust_remote_code: bool
    grows: bool  # whether the tables follow from max_model_len

    @property
    def max_model_len(self) -> int:
        """One more than the window, for the last new token, which vLLM counts and never feeds back."""
        return self.window if self.grows else self.window + 1

    def identity(self) -> dict[str, Json]:
        """Return the settings that change what is computed; the number of GPUs changes last bits only."""
        identity = {
            "max_num_batched_tokens": self.batching.max_num_batched_tokens,
            "max_num_seqs": self.batching.max_num_seqs,
            "block_size": self.block_size,
            "enforce_eager": self.enforce_eager,
            "batch_invariant": self.batch_invariant,
        }
        return identity | ({"max_model_len": self.max_model_len} if self.grows else {})

    def engine(self, folder: Path, batching: Batching) -> dict[str, Any]:
        """Return keyword arguments of vLLM's `EngineArgs`."""
        memory = None if self.kv_cache_gb is None else int(self.kv_cache_gb * 2**30)
        return {
            "model": str(folder),
            "skip_tokenizer_init": True,  # prompts are token ids, and texts are made by this package
            "trust_remote_code": self.trust_remote_code,
            "load_format": "safetensors",
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": batching.max_num_batched_tokens,
            "max_num_seqs": batching.max_num_seqs,
            "block_size": self.block_size,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": memory,
            "enforce_eager": self.enforce_eager,
            "compilation_config": {"mode": 0},
            "enable_prefix_caching": True,
            "async_scheduling": False,
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
        }


def settings_of(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    on_cpu: bool,
    max_model_len: int | None,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    block_size: int | None,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    enforce_eager: bool | None,
    batch_invariant: bool,
    kv_cache_gb: float | None,
    trust_remote_code: bool,
) -> Settings:
    """Return the settings with defaults filled in; raise ModelError for settings that cannot work."""
    if batch_invariant and on_cpu:
        raise ModelError("batch_invariant=true needs CUDA: vLLM's batch invariant kernels are written in Triton")
    if min(max_num_batched_tokens, max_num_seqs, 1 if block_size is None else block_size, tensor_parallel_size) < 1:
        raise ModelError("max_num_batched_tokens, max_num_seqs, block_size and tensor_parallel_size are 1 or more")
    if max_num_batched_tokens < max_num_seqs:
        raise ModelError(f"max_num_batched_tokens={max_num_batched_tokens} is less than max_num_seqs={max_num_seqs}")
    config = json.loads((checkpoint.folder / "config.json").read_text("utf-8"))
    return Settings(
        dtype=_dtype(dtype, config, checkpoint),
        window=_window(max_model_len, config),
        batching=Batching(max_num_batched_tokens, max_num_seqs),
        block_size=block_size or (_CPU_BLOCK_TOKENS if on_cpu else _GPU_BLOCK_TOKENS),
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=True if enforce_eager is None else enforce_eager,
        batch_invariant=batch_invariant,
        gpu_memory_utilization=gpu_memory_utilization,
        kv_cache_gb=_kv_cache(kv_cache_gb, on_cpu),
        trust_remote_code=trust_remote_code,
        grows=bool(rope_types(config) & _BY_LENGTH),
    )


def _dtype(asked: str, config: dict[str, Any], checkpoint: Checkpoint) -> str:
    """Return the number format in which transformers loads the checkpoint; vLLM's own `auto` halves float32."""
    if asked != "auto":
        if asked not in DTYPES:
            raise ModelError(f"unknown dtype {asked!r}: one of auto, {', '.join(DTYPES)}")
        return asked
    text = config.get("text_config") or {}
    stated = next((kind for kind in (config.get("dtype"), config.get("torch_dtype"), text.get("dtype")) if kind), None)
    if stated is not None:
        return str(stated).removeprefix("torch.")
    name = next(name for name in sorted(checkpoint.sha256) if name.endswith(".safetensors"))
    with safe_open(checkpoint.folder / name, "pt") as file:
        kinds = (file.get_slice(key).get_dtype() for key in file.keys())  # noqa: SIM118 - no mapping
        names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
        return next((names[kind] for kind in kinds if kind in names), "float32")


def _window(asked: int | None, config: dict[str, Any]) -> int:
    positions = asked or positions_of(config)
    if positions is None or positions < 1:
        raise ModelError("the checkpoint states no max_position_embeddings: give max_model_len (--max-length)")
    return positions


def _kv_cache(asked: float | None, on_cpu: bool) -> float | None:
    """Return the gibibytes of the cache of keys and values; None leaves the choice to vLLM or to its variable."""
    if not os.environ.get(_KV_CACHE_ENV) or not on_cpu:
        return asked if asked is not None or not on_cpu else _CPU_KV_CACHE_GB
    if asked is not None:
        raise ModelError(f"kv_cache_gb and {_KV_CACHE_ENV} are both set: give one of them")
    return None
