"""Arms on the Hugging Face backend: installed, reported, refused by field, and removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPE, prompts, request, save_model
from test_hf_answers import logprob_tolerance
from transformers import GPT2Config

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf import backend as hf
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.errors import UnsupportedArm

REQUESTS = [request(str(i), ids, 6, reference=(9, 8, 7)) for i, ids in enumerate(prompts(6, 100, 300))]


def open_hf(folder: Path, **options: Any) -> HfBackend:
    return HfBackend.open(str(folder), **{"chunk_tokens": 64, **options})


def scores(backend: HfBackend, arm: str | None, **fields: str) -> dict[str, tuple[Any, ...]]:
    if arm is None:
        return {o.sample_id: (o.token_ids, o.reference_logprob) for o in backend.answer(REQUESTS)}
    with backend.under(replace(parse_arm(arm), **fields)):
        return scores(backend, None)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
def test_native_and_the_detected_level_give_the_stock_bits_and_others_do_not(llama: Path, dtype: str) -> None:
    backend = open_hf(llama, dtype=dtype)
    stock = scores(backend, None)
    detected = backend.describe()["rope"]["detected"]
    assert detected == {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    assert scores(backend, "native") == stock
    assert scores(backend, detected) == stock
    assert scores(backend, "bf16-angle") != stock
    assert scores(backend, None) == stock


@pytest.mark.half
def test_a_wide_product_needs_the_fused_kernel_and_says_so(llama: Path) -> None:
    backend = open_hf(llama, dtype="bfloat16")
    with pytest.raises(UnsupportedArm, match="kernel"), backend.under(parse_arm("fp32-qk")):
        pass
    with backend.under(replace(parse_arm("fp32-qk"), kernel="fused")) as applied:
        assert (applied["kernel"], applied["rope"]["level"]) == ("fused", "fp32-qk")
        assert len(list(backend.answer(REQUESTS))) == len(REQUESTS)
    with backend.under(replace(parse_arm("bf16"), kernel="auto")) as applied:
        assert applied["kernel"] == "sdpa"


def test_the_fused_kernel_agrees_with_the_stock_one_in_float32(llama: Path) -> None:
    backend = open_hf(llama)
    stock, fused = scores(backend, "native"), scores(backend, "native", kernel="fused")
    for name, (tokens, logprob) in stock.items():
        assert fused[name][0] == tokens
        assert fused[name][1] == pytest.approx(logprob, abs=logprob_tolerance(backend.model, 3))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention", "both"),
        ("dtype", "float16"),
        ("kernel", "flash_attention_2"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_field(llama: Path, field: str, value: str) -> None:
    arm = replace(parse_arm("native"), **{field: value})
    with pytest.raises(UnsupportedArm, match=f"{field} '{value}'"), open_hf(llama).under(arm):
        pass


def test_the_dtype_may_be_named_when_it_is_the_loaded_one(llama: Path) -> None:
    with open_hf(llama).under(replace(parse_arm("bf16"), dtype="float32")) as applied:
        assert applied["dtype"] == "float32"


def test_an_arm_is_removed_after_an_error(llama: Path) -> None:
    backend = open_hf(llama)
    stock = scores(backend, None)
    with pytest.raises(KeyError), backend.under(parse_arm("bf16-angle")):
        raise KeyError
    assert scores(backend, None) == stock


def test_a_failed_self_test_refuses_every_level_but_native(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "selftest", lambda _: {"ok": False, "native_equals_stock": False, "restored": True})
    backend = open_hf(llama)
    with backend.under(parse_arm("native")):
        pass
    with pytest.raises(UnsupportedArm, match="native_equals_stock"), backend.under(parse_arm("bf16")):
        pass


def test_running_out_of_memory_inside_a_layer_does_not_look_like_a_lost_rotation(llama: Path) -> None:
    backend = open_hf(llama)
    stock = scores(backend, "bf16")
    first_mlp = backend.model.model.layers[0].mlp
    forward = first_mlp.forward

    def limited(hidden_BQD: torch.Tensor) -> Any:
        if hidden_BQD.shape[0] > 4:
            raise torch.OutOfMemoryError("injected")
        return forward(hidden_BQD)

    first_mlp.forward = limited
    assert scores(backend, "bf16") == stock


def test_a_model_without_rope_runs_natively_and_in_no_other_arm(tmp_path: Path) -> None:
    shape = {"vocab_size": SHAPE["vocab_size"], "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
    backend = open_hf(save_model(tmp_path, GPT2Config(**shape, bos_token_id=1, eos_token_id=2)))
    assert backend.describe()["rope"]["has_rope"] is False
    assert len(scores(backend, "native")) == len(REQUESTS)
    with pytest.raises(UnsupportedArm, match="rope"), backend.under(parse_arm("fp32")):
        pass
