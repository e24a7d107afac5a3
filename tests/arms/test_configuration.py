"""What a configuration states is read alike from config.json and from the object that transformers makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma3Config, LlamaConfig, PretrainedConfig, Qwen2Config

from anchoreval.arms.configuration import layer_kinds, positions_of, rope_type, rope_types, ropes_of, stated

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 512}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(num_hidden_layers=2, max_position_embeddings=2048),
    "yarn": LlamaConfig(num_hidden_layers=2, max_position_embeddings=2048, rope_parameters=YARN),
    "windows unused": Qwen2Config(num_hidden_layers=3, sliding_window=64, use_sliding_window=False),
    "a text model of several parts": Gemma3Config(text_config={"num_hidden_layers": 6, "max_position_embeddings": 999}),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_file_and_the_object_of_transformers_state_the_same(config: PretrainedConfig) -> None:
    file: dict[str, Any] = config.to_dict()
    assert positions_of(file) == positions_of(config) is not None
    assert rope_types(file) == rope_types(config) and len(ropes_of(file)) == len(ropes_of(config))
    assert layer_kinds(file) == layer_kinds(config)


def test_positions_types_and_layers_are_those_of_the_text_model() -> None:
    parts = CONFIGS["a text model of several parts"].to_dict()
    assert positions_of(parts) == 999 and len(layer_kinds(parts)) == 6
    assert set(layer_kinds(parts)) == {"sliding_attention", "full_attention"}
    assert layer_kinds(CONFIGS["windows unused"].to_dict()) == ["full_attention"] * 3
    assert rope_types(CONFIGS["yarn"].to_dict()) == {"yarn"}


def test_names_of_before_are_read_and_what_is_absent_is_none() -> None:
    older = {"rope_scaling": {"type": "linear", "factor": 2.0}, "text_config": None}
    assert [rope_type(rope) for rope in ropes_of(older)] == ["linear"]
    assert positions_of(older) is stated(older, "n_positions") is None
    assert rope_types({}) == {"default"} and layer_kinds({}) == ["full_attention"]
    assert layer_kinds({"sliding_window": 8, "num_hidden_layers": 2}) == ["sliding_attention"] * 2
