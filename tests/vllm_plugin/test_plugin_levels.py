"""Whole models at a RoPE level in vLLM, against transformers at the same level of the hf backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from checkpoints import prompts
from engines import TYPES, Engine, Reference, checkpoint, engine

from anchoreval.arms.rope import parse_level
from anchoreval.errors import UnsupportedArm
from anchoreval.vllm_plugin.settings import engine_settings

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPT = prompts(1, 700, 700)[0]
WITHOUT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from engines import engine
answers = {}
if __name__ == "__main__":
    from checkpoints import prompts
    from vllm.model_executor.custom_op import op_registry_oot
    assert not op_registry_oot
    for dtype in ("float32", "bfloat16"):
        with engine(sys.argv[2], dtype) as vllm:
            answers[dtype] = vllm.answers(prompts(1, 700, 700))[0].prompt.tolist()
    print("ANSWERS" + json.dumps(answers))
"""


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean())


@pytest.fixture(scope="module")
def native(llama: Path) -> dict[str, torch.Tensor]:
    """Prompt log-probabilities of the stock engine, the plugin loaded and nothing asked of it."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        with engine(llama, dtype) as vllm:
            found[dtype] = vllm.answers([PROMPT])[0].prompt
    return found


def test_an_engine_that_is_asked_nothing_gives_the_bits_of_one_without_the_plugin(
    llama: Path, native: dict[str, torch.Tensor]
) -> None:
    environment = {**os.environ, "VLLM_PLUGINS": ""}
    command = [sys.executable, "-c", WITHOUT, str(Path(__file__).parent), str(llama)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS"))
    for dtype, answers in json.loads(line.removeprefix("ANSWERS")).items():
        assert torch.equal(torch.tensor(answers), native[dtype]), dtype


@pytest.mark.parametrize("level", ["fp64", "fp32", "bf16-table", "bf16", "bf16-angle", "fp16"])
def test_an_fp32_model_at_a_level_is_transformers_at_that_level(
    llama: Path, native: dict[str, torch.Tensor], level: str
) -> None:
    reference = Reference(llama)
    floor = apart(native["float32"], reference.prompt(PROMPT))
    with engine(llama, "float32", engine_settings(llama, parse_level(level), False, None)) as vllm:
        got, said = vllm.answers([PROMPT])[0].prompt, vllm.says()
    differences = {
        other: apart(got, reference.prompt(PROMPT, other))
        for other in ("fp64", "fp32", "bf16-table", "bf16", "bf16-angle", "fp16")
    }
    # `floor` is what the engines differ by in stock code (1e-5: the order of fp32 sums); a narrow product turns
    # such a difference into a whole unit of bf16 where it crosses a rounding, measured up to 4 times the floor.
    # The narrow levels are at least 0.02 away from each other
    assert differences[level] <= 10 * floor < 0.001
    assert min(differences, key=differences.__getitem__) == level
    assert said["detected"] == level


def test_a_bf16_model_at_a_level_differs_from_transformers_as_the_stock_engines_do(
    llama: Path, native: dict[str, torch.Tensor]
) -> None:
    reference = Reference(llama, "bfloat16")
    floor = apart(native["bfloat16"], reference.prompt(PROMPT, "bf16-table"))
    for level in ("fp32", "bf16", "bf16-angle"):
        with engine(llama, "bfloat16", engine_settings(llama, parse_level(level), False, None)) as vllm:
            got, said = vllm.answers([PROMPT])[0].prompt, vllm.says()
        # in bf16 the order of sums alone moves these by 0.19; the positive control is five times as far away
        assert apart(got, reference.prompt(PROMPT, level)) <= 2 * floor
        assert said["detected"] == level
    assert apart(got, reference.prompt(PROMPT, "fp32")) > 3 * floor


def test_stock_vllm_in_bf16_has_the_bits_of_the_level_bf16_table(llama: Path, native: dict[str, torch.Tensor]) -> None:
    with engine(llama, "bfloat16", engine_settings(llama, parse_level("bf16-table"), False, None)) as vllm:
        assert torch.equal(vllm.answers([PROMPT])[0].prompt, native["bfloat16"])


@pytest.mark.parametrize(("dtype", "level"), [("bfloat16", "bf16-table"), ("float32", "fp32")])
def test_the_level_of_stock_code_is_detected(llama: Path, dtype: str, level: str) -> None:
    with engine(llama, dtype, engine_settings(llama, parse_level("native"), False, None)) as vllm:
        said = vllm.says()
    assert (said["asked"], said["detected"]) == ({"rope": "native"}, level)
    assert said["rotary"][0]["class"] == "RotaryEmbedding"
    assert said["rotary"][0]["rows"] == 4096
    assert said["rotary"][0]["dispatch"] == "forward_cpu"


def test_the_level_of_vllms_native_rotation_is_detected(llama: Path) -> None:
    more = {"compilation_config": {"custom_ops": ["all", "-rotary_embedding"]}}
    with engine(llama, "bfloat16", engine_settings(llama, parse_level("native"), False, None), **more) as vllm:
        assert vllm.says()["detected"] == "bf16"


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "default"])
def test_scaled_rope_is_transformers_scaled_rope(tmp_path: Path, kind: str) -> None:
    folder = checkpoint(tmp_path, rope=kind)
    with engine(folder, "float32", engine_settings(folder, parse_level("fp32"), False, None)) as vllm:
        got = vllm.answers([PROMPT])[0].prompt
    # vLLM and transformers may round a scaled frequency differently in its last bit (6e-8 of it), which moves
    # an angle of up to 700 by 4e-5, as much as the stock engines' fp32 sums move the result
    assert apart(got, Reference(folder).prompt(PROMPT, "fp32")) < 2e-4
    assert apart(got, Reference(folder).prompt(PROMPT, "bf16-table")) > 0.01


def test_longrope_is_refused_when_the_engine_starts(tmp_path: Path) -> None:
    factors = [1.0] * 16
    longrope = {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 4096,
    }
    folder = checkpoint(tmp_path, "llama", rope_parameters={"rope_theta": 10000.0, **longrope})
    with pytest.raises(UnsupportedArm, match="longrope"):
        Engine(folder, "float32", {"additional_config": {"anchoreval": {"rope": "fp32"}}})


def test_a_level_survives_compilation(llama: Path) -> None:
    """With enforce_eager=False vLLM turns custom operators off and compiles forward_native."""
    settings = engine_settings(llama, parse_level("bf16-table"), False, None)
    with engine(llama, "float32", settings, enforce_eager=False) as vllm:
        got, said = vllm.answers([PROMPT])[0].prompt, vllm.says()
    reference = Reference(llama)
    # the compiler contracts and reorders fp32 operations: no more than 10 times what the stock engines differ by
    assert apart(got, reference.prompt(PROMPT, "bf16-table")) < 2e-4
    assert apart(got, reference.prompt(PROMPT, "fp32")) > 0.01
    assert said["detected"] == "bf16-table"
