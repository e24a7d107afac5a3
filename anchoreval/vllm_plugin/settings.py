"""Settings that make vLLM compute an arm: keyword arguments of `vllm.LLM` and `EngineArgs`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from anchoreval.arms.configuration import positions_of, rope_type, ropes_of
from anchoreval.arms.rope import RopeLevel
from anchoreval.errors import ModelError, UnsupportedArm
from anchoreval.vllm_plugin.asked import KEY, PLAN_WORKER, Asked

SAYS = "anchoreval.vllm_plugin.says.Says"
ADMISSION = "anchoreval.vllm_plugin.admission:FittingPlan"
#: Architecture to the class of models.py that adds plans to it.
PLANNED = {
    "LlamaForCausalLM": "AnchorLlamaForCausalLM",
    "MistralForCausalLM": "AnchorMistralForCausalLM",
    "Qwen2ForCausalLM": "AnchorQwen2ForCausalLM",
    "Qwen3ForCausalLM": "AnchorQwen3ForCausalLM",
}
_SCALINGS = ("default", "llama3", "yarn", "linear", "dynamic")


def engine_settings(
    folder: Path, level: RopeLevel, plans: bool, documents: str | None, positions: int = 0
) -> dict[str, Any]:
    """Return keyword arguments that make vLLM compute `level`, take plans, and mask their documents by a pattern.

    `positions` is one more than the highest position that any plan reaches, including generated tokens; 0 is what the
    model's own context holds. If it is more, give `max_model_len` too. Call rope.forget() before each engine of one
    process. Raise UnsupportedArm, with the field, for what cannot be computed.
    """
    config = _config(folder)
    _refuse_scaling(config, level, plans)
    asked = Asked(level, plans, documents, positions)
    settings: dict[str, Any] = {"additional_config": {KEY: asked.as_config()}, "worker_extension_cls": SAYS}
    if documents is not None:
        _refuse_documents(config, documents, plans)
    if plans:
        _refuse_runner()
        settings["worker_cls"] = PLAN_WORKER
        settings["logits_processors"] = [f"{ADMISSION}_{max(_rows(config), positions)}"]
        settings["hf_overrides"] = {"architectures": [_planned(config)], "mrope_section": [1, 0, 0]}
    if level.native and positions > _rows(config):
        settings.setdefault("hf_overrides", {}).update(_longer_table(config, positions))
    return settings


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read: {error}") from error
    return dict(config)


def _refuse_scaling(config: dict[str, Any], level: RopeLevel, plans: bool) -> None:
    for rope in ropes_of(config):
        kind = rope_type(rope)
        served = kind in _SCALINGS and not (kind == "dynamic" and "factor" not in rope) and "mrope_section" not in rope
        if not served and not level.native:
            raise UnsupportedArm(f"rope: {level} is not computed for RoPE of type {kind} in vLLM; only `native` runs")
        if not served and plans:
            raise UnsupportedArm(f"positions: plans are not offered for RoPE of type {kind} in vLLM")


def _planned(config: dict[str, Any]) -> str:
    names = config.get("architectures") or ["(none)"]
    if names[0] not in PLANNED:
        known = ", ".join(PLANNED)
        raise UnsupportedArm(f"positions: {names[0]} takes no position plans in vLLM; these do: {known}")
    return PLANNED[names[0]]


def _refuse_documents(config: dict[str, Any], documents: str, plans: bool) -> None:
    from vllm.platforms import current_platform

    if not plans:
        raise UnsupportedArm(f"attention: {documents} needs plans, which name the documents")
    if not current_platform.is_cpu():
        name = current_platform.device_name
        raise UnsupportedArm(
            f"attention: {documents} runs in vLLM on a CPU, as a test of the arithmetic; not on {name}"
        )
    windowed = config.get("sliding_window") is not None and config.get("use_sliding_window", True)
    if windowed or "sliding_attention" in (config.get("layer_types") or []):
        raise UnsupportedArm(f"attention: {documents} is not computed with sliding windows in vLLM")


def _refuse_runner() -> None:
    """Raise UnsupportedArm if vLLM prefers its V2 model runner (with Triton): plans live in the V1 runner."""
    from vllm import envs
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() and envs.VLLM_USE_V2_MODEL_RUNNER is not False:
        raise UnsupportedArm("positions: plans need vLLM's V1 model runner; set VLLM_USE_V2_MODEL_RUNNER=0")


def _rows(config: dict[str, Any]) -> int:
    """Return the rows of vLLM's own table: the model's positions, times the factor if scaling lengthens it."""
    own = positions_of(config) or 0
    for rope in ropes_of(config):
        if rope_type(rope) == "yarn":
            return int(rope.get("original_max_position_embeddings", own) * rope["factor"])
        if rope_type(rope) == "linear":
            return int(own * rope["factor"])
    return own


def _longer_table(config: dict[str, Any], positions: int) -> dict[str, Any]:
    """Return the overrides that lengthen vLLM's own table without changing its rows."""
    kinds = {rope_type(rope): rope for rope in ropes_of(config)}
    if kinds.keys() <= {"default", "llama3"}:
        return {"max_position_embeddings": positions}
    if kinds.keys() == {"linear"}:
        return {"max_position_embeddings": math.ceil(positions / kinds["linear"]["factor"])}
    raise UnsupportedArm(
        f"positions: vLLM's own table of type {'+'.join(kinds)} ends at {_rows(config)}, and {positions} positions are "
        f"needed; name a RoPE level, or a smaller shift"
    )
