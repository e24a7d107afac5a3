"""Help for `--backend-args`: the options that each backend may be opened with, besides those of other flags."""

from __future__ import annotations

from collections.abc import Mapping

#: Backend -> option -> what it is for, with the default.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "hf": {
        "rows": "rows that are decoded at a time (32)",
        "unused_weights": "refuse or allow weights that the architecture has no place for (refuse)",
    },
    "vllm": {
        "max_model_len": "positions for a prompt and its answer (the model's)",
        "max_num_batched_tokens": "tokens of a step (2048)",
        "max_num_seqs": "sequences of a step (64)",
        "block_size": "tokens of a block of the cache (16, on a CPU 32)",
        "tensor_parallel_size": "GPUs of one engine (1)",
        "gpu_memory_utilization": "part of a GPU's memory that is taken (0.9)",
        "enforce_eager": "false allows CUDA graphs (true)",
        "batch_invariant": "kernels whose rounding does not depend on the batch, CUDA alone (false)",
        "kv_cache_gb": "gigabytes of the cache (on a CPU 4)",
    },
    "openai": {
        "api": "completions or chat (completions, and chat where a server has nothing else)",
        "concurrency": "requests under way at a time (8)",
        "patience_s": "seconds that a server may be away or refuse for now (600)",
        "timeout_s": "seconds that one answer may take, to its last byte (600)",
        "max_model_len": "positions for a prompt and its answer (what the server says)",
        "seed": "sent with each request (0)",
        "logprobs": "false asks for no log-probabilities, which cost a pass each (true)",
    },
}


def help_of_options() -> str:
    """Return one paragraph with the options of every backend, as argparse prints it."""
    parts = (
        f"of {name}: " + "; ".join(f"{option}: {about}" for option, about in options.items())
        for name, options in OPTIONS.items()
    )
    return ". ".join(parts).replace("%", "%%")
