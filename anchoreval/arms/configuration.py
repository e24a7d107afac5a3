"""What a model's configuration states of positions, RoPE and layers: the one reader of these facts.

A configuration is the object in config.json, or one of transformers; of a model of several parts the text model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stated(config: Any, name: str) -> Any:
    """Return a value of the text model's configuration, None where it states none."""
    if isinstance(config, Mapping):
        text = config.get("text_config") or {}
        return text[name] if name in text else config.get(name)
    return getattr(config.get_text_config(decoder=True), name, None)


def positions_of(config: Any) -> int | None:
    """Return the positions that a configuration states, None where it states none."""
    positions = stated(config, "max_position_embeddings")
    return positions if isinstance(positions, int) else None


def ropes_of(config: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of every rotary embedding: one group, or one per layer type."""
    given = stated(config, "rope_parameters") or stated(config, "rope_scaling") or {}
    return [value for value in given.values() if isinstance(value, Mapping)] or [given]


def rope_type(rope: Mapping[str, Any]) -> str:
    """Return the type of a rotary embedding (`default`, `yarn`, ...), by its name of today or of before."""
    return str(rope.get("rope_type") or rope.get("type") or "default")


def rope_types(config: Any) -> set[str]:
    """Return the types of all rotary embeddings."""
    return {rope_type(rope) for rope in ropes_of(config)}


def layer_kinds(config: Any) -> list[str]:
    """Return what each layer attends to: `full_attention`, `sliding_attention`, or what else the layers are called."""
    windowed = stated(config, "sliding_window") and stated(config, "use_sliding_window") is not False
    kinds = stated(config, "layer_types") or []
    alike = ["sliding_attention" if windowed else "full_attention"] * (stated(config, "num_hidden_layers") or 1)
    return [str(kind) for kind in kinds] or alike
