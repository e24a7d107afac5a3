"""What enters the attention kernels: dtype and bits of q and k, parts that a kernel drops, sites that are served."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models as tiny
import torch
from tiny_models import logits
from torch import nn

from anchoreval.arms import patch_hf
from anchoreval.arms.entering import Entered, bits, looked_at, reported, summary
from anchoreval.arms.inspect_hf import _probes
from anchoreval.arms.patch_hf import applied, rotary_modules
from anchoreval.arms.precision import Tables
from anchoreval.arms.rope import LEVELS, parse_level
from anchoreval.errors import UnsupportedArm

BF16 = torch.bfloat16
LATENT = {
    **tiny.SHAPE, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8,
}  # fmt: skip
EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LONG = {**tiny.LONGROPE, "short_mscale": 1.1, "long_mscale": 1.2, "original_max_position_embeddings": 64}
MORE = {
    "deepseek-v3": ("DeepseekV3", {**LATENT, **EXPERTS}),
    "minicpm3": ("MiniCPM3", LATENT),
    "hunyuan": ("HunYuanDenseV1", {**tiny.SHAPE, "head_dim": 16}),
    "nanochat": ("NanoChat", tiny.SHAPE),
    "phimoe": ("Phimoe", {**tiny.SHAPE, **tiny.EXPERTS, "num_local_experts": 4, "sliding_window": None}),
    "phimoe-longrope": (
        "Phimoe",
        {**tiny.SHAPE, **tiny.EXPERTS, "num_local_experts": 4, "sliding_window": None, "rope_parameters": LONG},
    ),
    "vaultgemma": ("VaultGemma", {**tiny.SHAPE, **tiny.LOCAL_GLOBAL, "query_pre_attn_scalar": 16}),
}


@pytest.fixture(autouse=True)
def more_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "ARCHITECTURES", {**tiny.ARCHITECTURES, **MORE})


def at_kernel(name: str, dtype: torch.dtype, level: str) -> dict[str, Any]:
    model = tiny.build(name, dtype)
    with applied(model, parse_level(level)) as state:
        logits(model)
    return state.at_kernel


@pytest.mark.parametrize("level", ["fp64", "fp32-qk"])
@pytest.mark.parametrize("name", ["llama", "deepseek-v3", "minicpm3", "smollm3", "gpt-oss", "phi", "hunyuan"])
def test_wide_products_enter_the_kernel_wide_in_a_16_bit_model(name: str, level: str) -> None:
    """Latent attention too, whose own code joins the parts of k in the dtype of the latents."""
    said = at_kernel(name, BF16, level)
    assert said["modules"] >= 1
    assert said["q"] == said["k"] == {"dtype": "fp32", "bits": "fp32"}


def test_a_latent_key_holds_both_parts_as_they_were_given() -> None:
    """The unrotated part in bits of the model, the rotated part in those of the level; values as the stock code's."""
    attention = tiny.build("deepseek-v3", BF16).model.layers[0].self_attn
    latent, turned = torch.randn(2, 1, 5, 16).to(BF16), torch.randn(2, 1, 5, 8)
    with torch.no_grad():
        k, v = patch_hf._expand_kv(attention, latent, turned)
        stock_k, stock_v = attention.expand_kv(latent, turned)
    assert torch.equal(v, stock_v) and k.dtype is torch.float32 and stock_k.dtype is BF16
    assert torch.equal(k[..., :16], stock_k[..., :16].float())
    assert torch.equal(k[..., 16:], turned.expand(2, 4, 5, 8))


def test_a_key_that_loses_what_its_level_gives_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_hf, "_joins_latent", lambda _: False)
    model = tiny.build("deepseek-v3", BF16)
    words = r"fp32-qk hands q and k on in fp32, and k enters the kernel of model\.layers\.0\.self_attn in bf16"
    with pytest.raises(UnsupportedArm, match=words), applied(model, LEVELS["fp32-qk"]):
        logits(model)
    assert "expand_kv" not in vars(model.model.layers[0].self_attn)


@pytest.mark.parametrize("name", ["deepseek-v3", "hunyuan", "nanochat", "phi"])
def test_a_narrow_product_that_is_not_all_that_enters_is_said_so(name: str) -> None:
    said = at_kernel(name, torch.float32, "bf16")
    assert said["q"]["dtype"] == said["k"]["dtype"] == "fp32"
    assert said["q"]["bits"] == "fp32" and "bf16 before what follows the rotation" in said["note"]


@pytest.mark.parametrize("name", ["llama", "gemma3-local", "glm4", "cohere2"])
def test_a_narrow_product_enters_a_wide_model_with_its_bits(name: str) -> None:
    said = at_kernel(name, torch.float32, "bf16")
    assert said["q"] == said["k"] == {"dtype": "fp32", "bits": "bf16"} and "note" not in said


def test_what_enters_is_reported_and_not_changed() -> None:
    model, found = tiny.build("qwen3", BF16), dict[str, Entered]()
    stock, before = logits(model), tiny.state(model)
    with reported(model, lambda path, kernel, _, q, k, rest: found.__setitem__(f"{path} {kernel}", Entered.of(q, k))):
        assert torch.equal(logits(model), stock)
    assert tiny.state(model) == before
    assert list(found) == [f"model.layers.{layer}.self_attn sdpa" for layer in range(2)]
    assert summary(found) == {
        "modules": 2, "q": {"dtype": "bf16", "bits": "bf16"}, "k": {"dtype": "bf16", "bits": "bf16"},
    }  # fmt: skip


def test_bits_are_those_of_the_narrowest_format_that_holds_every_value() -> None:
    third = torch.tensor([1 / 3])
    assert bits(third.to(BF16).float()) == "bf16" == bits(torch.zeros(3, dtype=torch.float64))
    assert bits(third.half().double()) == "fp16"
    assert bits(third) == "fp32" == bits(third.double())
    assert bits(torch.tensor([1 / 3], dtype=torch.float64)) == "fp64"


@pytest.mark.parametrize(
    ("name", "kernel", "parts"),
    [
        ("gemma2", "sdpa", ["soft cap of the attention scores"]),
        ("vaultgemma", "sdpa", ["soft cap of the attention scores"]),
        ("gemma2", "eager", None),
        ("gpt-oss", "eager", None),
        ("llama", "sdpa", None),
        ("gemma3-local", "sdpa", None),
    ],
)
def test_what_a_kernel_leaves_out_of_the_attention_is_found(name: str, kernel: str, parts: list[str] | None) -> None:
    model = tiny.build(name)
    if kernel == "sdpa" and not model._supports_sdpa:  # Gemma 2 has none any more in transformers 5.23
        pytest.skip(f"this release of transformers has no sdpa for {name}")
    model.set_attn_implementation(kernel)
    assert looked_at(model, lambda: logits(model))[0].get(kernel) == parts


@pytest.mark.parametrize("name", [*tiny.ARCHITECTURES, *MORE])
def test_each_site_moves_the_rotation_of_every_type(name: str) -> None:
    """By far less than a rotation and by far more than fp32 rounds; PhiMoE computes its frequencies in each pass."""
    probes = list(_probes(tiny.build(name)))
    assert probes
    for probe in probes:
        plain = probe(parse_level("rope:table=fp64,rotate=fp64,angle=fp64,product=fp64"))
        for sites in ("inv_freq=bf16", "angle=bf16", "table=bf16", "rotate=bf16", "product=bf16"):
            moved = float((probe(parse_level(f"rope:{sites}")) - plain).abs().max())
            assert 1e-4 < moved < 3, (sites, moved)
        assert float((probe(LEVELS["fp32"]) - plain).abs().max()) < 1e-4


def test_frequencies_that_are_computed_in_each_pass_are_the_fp32_ones_at_every_level() -> None:
    model = tiny.build("phimoe")
    ((path, rotary),) = rotary_modules(model).items()
    inv_freq = rotary.inv_freq
    positions = torch.arange(3000, 3064)[None]
    cos, _ = Tables(rotary, LEVELS["fp64"], lambda _: None)(torch.empty(1, 0), positions)
    angle = positions[..., None].double() * inv_freq.double()
    assert float((cos - torch.cat((angle, angle), -1).cos()).abs().max()) < 1e-12, path
    cos, _ = Tables(rotary, parse_level("rope:inv_freq=bf16,angle=fp64,table=fp64"), lambda _: None)(
        torch.empty(1, 0), positions
    )
    angle = positions[..., None].double() * inv_freq.to(BF16).double()
    assert float((cos - torch.cat((angle, angle), -1).cos()).abs().max()) < 1e-12


def test_a_rotary_module_that_cannot_be_made_anew_is_not_checked_and_levels_run() -> None:
    class Rotary(nn.Module):
        """As InternLM 2 has it: made from numbers."""

        def __init__(self, dim: int) -> None:
            super().__init__()
            frequencies = 1.0 / (1e4 ** (torch.arange(0, dim, 2).float() / dim))
            self.register_buffer("inv_freq", frequencies, persistent=False)

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            angles = position_ids[..., None].float() * self.inv_freq
            both = torch.cat((angles, angles), -1)
            return both.cos().to(x.dtype), both.sin().to(x.dtype)

    model = tiny.build("llama")
    stock = {}
    for name in ("fp32", "bf16"):
        with applied(model, LEVELS[name]):
            stock[name] = logits(model)
    model.model.rotary_emb = Rotary(16)
    for name, expected in stock.items():
        with applied(model, LEVELS[name]) as state:
            assert torch.equal(logits(model), expected)
        assert list(state.as_json()["unchecked"]) == ["model.rotary_emb"]
    model.model.rotary_emb.to(BF16)
    with (
        pytest.raises(UnsupportedArm, match=r"torch\.bfloat16, and it cannot be made anew"),
        applied(model, LEVELS["fp32"]),
    ):
        pass
