from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import Any

import pytest
import tiny_models as tiny
import torch
import transformers
from tiny_models import chunked_logits, logits, state

from anchoreval.arms.inspect_hf import inspect_rope, selftest
from anchoreval.arms.kernels import FUSED
from anchoreval.arms.patch_hf import applied
from anchoreval.arms.rope import LEVELS, parse_level
from anchoreval.errors import UnsupportedArm

pytestmark = pytest.mark.half  # nearly all models here are in bf16
BF16 = torch.bfloat16


@pytest.fixture
def llama() -> Any:
    return tiny.build("llama", BF16)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_stock_level_is_detected_and_reproduces_the_stock_model_bit_for_bit(name: str) -> None:
    model = tiny.build(name, BF16)
    logits(model)  # longrope's stock code keeps the long frequencies after its first pass
    before = state(model)
    report, result = inspect_rope(model), selftest(model)
    assert report.has_rope and not report.damaged
    assert report.detected == tiny.STOCK_IN_BF16.get(name, "bf16")
    assert result["ok"] and result["explicit_equals_stock"] and result["restored"], result
    assert state(model) == before
    json.dumps([asdict(report), result])


@pytest.mark.parametrize(
    ("dtype", "name", "level"),
    [
        (torch.float32, "llama", "fp32"),
        (torch.float32, "cohere", "fp32"),
        (torch.float16, "llama", "fp16"),
        (torch.float16, "olmo2", "fp32"),
        (torch.float16, "cohere", "fp16-table"),
    ],
)
def test_detection_follows_the_dtype_of_the_model(dtype: torch.dtype, name: str, level: str) -> None:
    model = tiny.build(name, dtype)
    assert inspect_rope(model).detected == level
    assert selftest(model)["ok"]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_level_changes_the_logits_and_leaves_nothing_behind(name: str) -> None:
    model = tiny.build(name, BF16)
    stock, before = logits(model), state(model)
    for level_name, level in LEVELS.items():
        with applied(model, level) as at:
            under = logits(model)
            if not level.native:
                assert at.as_json()["forwards"] == 1 and at.as_json()["rotations"] >= 1
        same = level_name in ("native", tiny.STOCK_IN_BF16.get(name, "bf16"))
        assert torch.equal(under, stock) == same, level_name
        assert state(model) == before
    assert torch.equal(logits(model), stock)


def test_an_exception_inside_the_block_restores_the_model(llama: Any) -> None:
    stock, before = logits(llama), state(llama)
    with pytest.raises(KeyError, match="inside"), applied(llama, LEVELS["fp32-qk"]):
        logits(llama)
        raise KeyError("inside")
    assert state(llama) == before
    assert torch.equal(logits(llama), stock)


def test_native_with_the_stock_kernel_touches_nothing(llama: Any) -> None:
    before = state(llama)
    with applied(llama, LEVELS["native"]) as at:
        assert state(llama) == before
        at.verify()
    assert at.as_json()["sites"] == {} and at.kernel == "stock"


def test_the_description_says_what_was_applied(llama: Any) -> None:
    with applied(llama, LEVELS["fp32-qk"]) as at:
        logits(llama)
    told = json.loads(json.dumps(at.as_json()))
    assert told["level"] == "fp32-qk" and told["kernel"] == "fused" and told["attention"] == FUSED
    assert told["sites"] == LEVELS["fp32-qk"].sites and told["model_dtype"] == "bf16"
    assert told["rotary"] == {"model.rotary_emb": "default"}
    assert told["rotations"] == 2 and told["repaired"] == [] and told["layers_without_rope"] == []


def test_layers_without_rope_are_named() -> None:
    model = tiny.build("smollm3")
    with applied(model, LEVELS["bf16"]) as at:
        logits(model)
    assert at.as_json()["layers_without_rope"] == ["model.layers.1.self_attn"]


def test_a_rotation_that_bypasses_the_level_is_noticed(llama: Any) -> None:
    attention, words = llama.model.layers[1].self_attn, r"forward of model\.layers\.1\.self_attn was replaced"
    with pytest.raises(UnsupportedArm, match=words), applied(llama, LEVELS["bf16-table"]):
        attention.forward = type(attention).forward.__get__(attention)
        logits(llama)
    assert "forward" not in vars(attention)


def test_a_pass_that_an_error_broke_off_does_not_spoil_the_block(llama: Any) -> None:
    expected = logits(llama)
    with applied(llama, LEVELS["bf16"]) as at:
        hook = llama.model.layers[0].mlp.register_forward_pre_hook(_out_of_memory)
        with pytest.raises(KeyError):
            logits(llama)
        hook.remove()
        assert torch.equal(logits(llama), expected)
    assert list(at.rotations.values()) == [2, 1]
    with pytest.raises(UnsupportedArm, match="not served throughout"), applied(llama, LEVELS["bf16"]) as at:
        logits(llama), logits(llama)
        at.rotations["model.layers.1.self_attn"] -= 1
    assert not llama._forward_hooks and not llama._forward_pre_hooks


def _out_of_memory(*_: Any) -> None:
    raise KeyError("out of memory")


def test_tables_that_the_level_did_not_make_are_noticed(llama: Any) -> None:
    with pytest.raises(UnsupportedArm, match="tables"), applied(llama, LEVELS["fp32"]):
        del llama.model.rotary_emb.__dict__["forward"]
        logits(llama)


def test_a_second_level_on_the_same_model_is_refused_and_the_first_stays(llama: Any) -> None:
    with applied(llama, LEVELS["fp32"]):
        expected = logits(llama)
        with pytest.raises(UnsupportedArm, match="already patched"), applied(llama, LEVELS["bf16"]):
            pass
        assert torch.equal(logits(llama), expected)


def test_two_models_of_one_family_hold_two_levels_in_two_threads() -> None:
    levels = ("fp32", "bf16-angle")
    models = {level: tiny.build("llama", BF16) for level in levels}
    alone = {}
    for level in levels:
        with applied(models[level], LEVELS[level]):
            alone[level] = logits(models[level], offset=500)
    together: dict[str, list[bool]] = {level: [] for level in levels}
    barrier = threading.Barrier(2)

    def work(level: str) -> None:
        barrier.wait()
        for _ in range(15):
            with applied(models[level], LEVELS[level]):
                together[level].append(torch.equal(logits(models[level], offset=500), alone[level]))

    threads = [threading.Thread(target=work, args=(level,)) for level in levels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {level: [True] * 15 for level in levels}
    assert not torch.equal(*alone.values())


# --- damaged frequencies ---


def damaged_by_bf16(name: str = "llama") -> Any:
    return tiny.build(name, BF16).to(BF16)


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "llama-dynamic", "phi3-longrope", "gemma3-local", "olmo2"])
def test_a_cast_buffer_is_reported_kept_by_native_and_repaired_by_levels(name: str) -> None:
    sound, model = tiny.build(name, BF16), damaged_by_bf16(name)
    report = inspect_rope(model)
    assert {buffer.dtype for buffer in report.damaged} == {"bfloat16"}
    # half a unit of the eight digits of bf16, at the most
    assert all(2**-20 < buffer.max_relative_error <= 2**-8 for buffer in report.damaged)
    stock = logits(model, offset=40)
    with applied(model, LEVELS["native"]):
        assert torch.equal(logits(model, offset=40), stock)
    state_after_stock = state(model)
    assert not torch.equal(stock, logits(sound, offset=40))
    for level in ("fp32", "bf16", "bf16-angle"):
        with applied(model, LEVELS[level]) as at, applied(sound, LEVELS[level]):
            assert torch.equal(logits(model, offset=40), logits(sound, offset=40)), level
        assert {buffer.name for buffer in at.repaired} == {buffer.name for buffer in inspect_rope(model).damaged}
        assert state(model) == state_after_stock


def test_damage_hidden_in_an_fp32_buffer_is_found() -> None:
    model = tiny.build("llama").half().float()
    (first, second) = inspect_rope(model).damaged
    assert first.dtype == second.dtype == "float32"
    # fp16 has eleven digits, and steps of 2**-24 below 2**-14; the slowest frequency is 1e4 ** -(14 / 16)
    assert 2**-20 < first.max_relative_error <= max(2**-11, 2**-25 / 1e4 ** -(14 / 16))


@pytest.mark.parametrize(("rounded", "name"), [(BF16, "llama"), (torch.float16, "olmo2"), (BF16, "cohere")])
def test_the_level_of_a_damaged_model_is_detected_with_its_damage(rounded: torch.dtype, name: str) -> None:
    model = tiny.build(name).to(rounded)
    report = inspect_rope(model)
    assert report.detected is not None
    site = parse_level(report.detected).inv_freq
    assert site == {BF16: "bf16", torch.float16: "fp16"}[rounded]
    assert selftest(model)["ok"]


def test_a_model_loaded_in_bf16_is_not_damaged() -> None:
    config = transformers.LlamaConfig(**tiny.SHAPE)
    assert not inspect_rope(transformers.AutoModelForCausalLM.from_config(config, dtype=BF16)).damaged


def test_double_precision_is_no_damage() -> None:
    assert not inspect_rope(tiny.build("llama").double()).damaged


# --- frequencies that depend on length ---


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-longrope"])
@pytest.mark.parametrize("lengths", [[40, 40], [70, 20], [30, 34, 1, 1, 40]])
def test_length_dependent_frequencies_follow_the_stock_code_through_chunked_prefill(
    name: str, lengths: list[int]
) -> None:
    model, twin = tiny.build(name, BF16), tiny.build(name, BF16)
    with applied(model, LEVELS["bf16"]):
        for run in (lengths, [10], lengths):  # grown, back in the original range, grown again
            assert torch.equal(chunked_logits(model, run), chunked_logits(twin, run))


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-longrope"])
def test_length_dependent_frequencies_are_those_of_the_paper_on_both_sides_of_the_switch(
    name: str, kernel_calls: list[Any], unrotated: Any
) -> None:
    model = tiny.build(name, torch.float64)
    entering = unrotated(model)
    exact = parse_level("rope:angle=fp64,table=fp64,rotate=fp64,product=fp64")
    with applied(model, exact, "fused"):
        for run in ([50, 14], [10], [64, 3]):
            entering.clear(), kernel_calls.clear()
            chunked_logits(model, run)
            start = 0
            for (q, _), call in zip(entering[::2], kernel_calls[::2], strict=True):
                positions = torch.arange(start, start + q.shape[2])
                start += q.shape[2]
                inv_freq, scaling = tiny.frequencies(model, 0, start)
                want = tiny.rotated(q, positions.double()[:, None] * inv_freq, scaling, interleaved=False)
                # fp32 frequencies are at most 16 u off in relative terms, so is the angle; turning keeps that
                bound = 16 * 2**-24 * start * q.norm(dim=-1).max() * scaling + 1e-12
                assert (call["q"] - want).abs().max() <= bound


def test_frequencies_grown_before_the_block_are_found_in_it_and_left_as_they_were() -> None:
    model, twin = tiny.build("llama-dynamic", BF16), tiny.build("llama-dynamic", BF16)
    logits(model, 100), logits(twin, 100)
    assert not inspect_rope(model).damaged
    before = state(model)
    with applied(model, LEVELS["bf16"]):
        # between the original and the grown length the stock code keeps the grown frequencies
        assert torch.equal(logits(model, 80), logits(twin, 80))
        logits(model, 200)
    assert state(model) == before


# --- refusals ---


def test_a_model_without_rope_runs_native_only() -> None:
    config = transformers.GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    report = inspect_rope(model)
    assert not report.has_rope and report.detected is None
    for name, level in LEVELS.items():
        if name != "native":
            with (
                pytest.raises(UnsupportedArm, match="rope: no RoPE found in GPT2LMHeadModel"),
                applied(model, level),
            ):
                pass
    assert selftest(model)["ok"]


def test_a_model_with_complex_tables_runs_native_only() -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 64}
    config = transformers.Llama4TextConfig(**{**tiny.SHAPE, "head_dim": 16, **experts})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert inspect_rope(model).has_rope and inspect_rope(model).detected is None
    before = state(model)
    words = r"no \(cos, sin\) pair; only `native` runs"
    with pytest.raises(UnsupportedArm, match=words), applied(model, LEVELS["bf16"]):
        logits(model)
    assert state(model) == before
    assert selftest(model)["ok"] is False


def test_kernels_from_the_hub_are_refused(llama: Any) -> None:
    llama._use_kernels = True
    assert inspect_rope(llama).uses_kernels
    with pytest.raises(UnsupportedArm, match="use_kernels"), applied(llama, LEVELS["bf16"]):
        pass


def test_wide_q_and_k_are_refused_on_the_stock_kernel(llama: Any) -> None:
    words = "kernel: fp32-qk on a bf16 model"
    with pytest.raises(UnsupportedArm, match=words), applied(llama, LEVELS["fp32-qk"], "stock"):
        pass


def test_the_fused_kernel_is_refused_where_attention_is_built_in() -> None:
    config = transformers.GPTJConfig(vocab_size=128, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=64)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedArm, match="kernel: GPTJ"), applied(model, LEVELS["native"], "fused"):
        pass


def test_a_module_under_device_hooks_is_refused(llama: Any) -> None:
    llama.model.rotary_emb.forward = llama.model.rotary_emb.forward
    with pytest.raises(UnsupportedArm, match="already patched"), applied(llama, LEVELS["bf16"]):
        pass
