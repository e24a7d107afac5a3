"""What an engine is asked, and what is refused before any engine is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from anchoreval.arms.rope import parse_level
from anchoreval.errors import AnchorEvalError, ModelError, UnsupportedArm
from anchoreval.vllm_plugin.asked import Asked, read
from anchoreval.vllm_plugin.settings import engine_settings

pytestmark = pytest.mark.filterwarnings("ignore")

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def model(folder: Path, **config: Any) -> Path:
    own = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096, **config}
    (folder / "config.json").write_text(json.dumps(own), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rpoe": "fp32"}, "did you mean rope"),
        ({"rope": "fp33"}, "did you mean fp32"),
        ({"plans": 1}, "true or false"),
        ({"plans": True, "documents": "ancor"}, "did you mean anchor"),
        ({"documents": "anchor"}, '"plans": true'),
        ({"positions": -1}, "number of positions"),
        ("fp32", "is a table"),
    ],
)
def test_a_mistake_in_what_is_asked_is_one_line_with_the_key(given: Any, named: str) -> None:
    with pytest.raises(AnchorEvalError, match=named) as error:
        read({"anchoreval": given})
    assert "\n" not in str(error.value)


def test_what_is_asked_survives_the_configuration() -> None:
    for asked in (Asked(), Asked(parse_level("rope:table=bf16"), True, "intra-doc", 9000)):
        assert read({"anchoreval": asked.as_config()}) == asked
    assert read({}) == read(None) == Asked()


def test_an_arm_without_plans_changes_no_model(tmp_path: Path) -> None:
    settings = engine_settings(model(tmp_path), parse_level("fp32"), False, None)
    assert settings == {
        "additional_config": {"anchoreval": {"rope": "fp32"}},
        "worker_extension_cls": "anchoreval.vllm_plugin.says.Says",
    }


@pytest.mark.parametrize(
    ("config", "level", "plans", "documents", "positions", "named"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "fp32", False, None, 0, "longrope"),
        ({"rope_scaling": {"type": "longrope"}}, "native", True, None, 0, "longrope"),
        (
            {"rope_parameters": {"a": {"rope_type": "default"}, "b": {"rope_type": "ntk"}}},
            "bf16",
            False,
            None,
            0,
            "ntk",
        ),
        ({"architectures": ["GemmaForCausalLM"]}, "fp32", True, None, 0, "GemmaForCausalLM"),
        ({}, "fp32", False, "anchor", 0, "needs plans"),
        ({"sliding_window": 512}, "fp32", True, "anchor", 0, "sliding windows"),
        ({"layer_types": ["sliding_attention"]}, "fp32", True, "anchor", 0, "sliding windows"),
        ({"rope_parameters": YARN}, "native", True, None, 5000, "ends at 4096"),
    ],
)
def test_what_cannot_be_computed_is_refused_naming_the_field(
    tmp_path: Path, config: dict[str, Any], level: str, plans: bool, documents: str | None, positions: int, named: str
) -> None:
    with pytest.raises(UnsupportedArm, match=named):
        engine_settings(model(tmp_path, **config), parse_level(level), plans, documents, positions)


def test_documents_are_refused_on_other_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    monkeypatch.setattr(type(current_platform), "device_name", "cuda")
    with pytest.raises(UnsupportedArm, match="not on cuda"):
        engine_settings(model(tmp_path), parse_level("fp32"), True, "anchor")


def test_plans_need_the_v1_runner_where_v2_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    with pytest.raises(UnsupportedArm, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        engine_settings(model(tmp_path), parse_level("fp32"), True, None)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert engine_settings(model(tmp_path), parse_level("fp32"), True, None)["worker_cls"].endswith("PlanWorker")


def test_vllms_own_table_is_lengthened_where_that_changes_no_row(tmp_path: Path) -> None:
    longer = engine_settings(model(tmp_path), parse_level("native"), True, None, 9000)["hf_overrides"]
    assert longer["max_position_embeddings"] == 9000
    linear = {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    own = engine_settings(model(tmp_path, **linear), parse_level("native"), True, None, 17001)["hf_overrides"]
    assert own["max_position_embeddings"] == 4251


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        engine_settings(tmp_path, parse_level("fp32"), False, None)
