"""vLLM general plugin: RoPE levels, per-request position plans and document masks in a stock vLLM.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). What an engine then computes
depends on its `additional_config["anchoreval"]` alone (vllm_plugin/asked.py); without that key vLLM is untouched.
"""

from __future__ import annotations

_registered = False


def register() -> None:
    """Offer the rotary classes, the models that take position plans, and the CPU backend of document masks."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm import ModelRegistry
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from anchoreval.vllm_plugin import rope
    from anchoreval.vllm_plugin.settings import PLANNED

    rope.register()
    for name in PLANNED.values():
        ModelRegistry.register_model(name, f"anchoreval.vllm_plugin.models:{name}")
    register_backend(AttentionBackendEnum.CPU_ATTN, "anchoreval.vllm_plugin.masks.DocumentsBackend")
