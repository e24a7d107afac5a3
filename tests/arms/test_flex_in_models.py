"""FlexAttention in whole models of many architectures: one pass against a written-out mask in float64."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models as tiny
import torch
from torch import Tensor

from anchoreval.arms.flex_hf import FLEX, prefilling
from anchoreval.arms.patch_hf import applied
from anchoreval.arms.patterns import blocks_of, mask
from anchoreval.arms.rope import LEVELS
from anchoreval.errors import UnsupportedArm

SIZES = (2, 13, 20, 3, 6)
SEGMENTS = (-1, *(i for i, size in enumerate(SIZES) for _ in range(size)))
BLOCKS = blocks_of(SEGMENTS, ("preamble", "document", "document", "document", "query"))
TOKENS = len(SEGMENTS)
EVERY = torch.ones(1, TOKENS, dtype=torch.bool)
# grouped heads in all but phi and gpt-neox; windows, softcap, layers without RoPE, parallel blocks
MODELS = ["llama", "mistral-window", "qwen3", "gemma2", "gemma3-local", "gemma3-global", "phi", "phi3", "olmo2"]
MODELS += ["olmo3", "cohere2", "gpt-neox", "smollm3", "granite"]


@torch.no_grad()
def run(model: Any, given: Any) -> Tensor:
    ids, at = tiny.token_ids(TOKENS), torch.arange(TOKENS)[None]
    return model(ids, attention_mask=given, position_ids=at, use_cache=False).logits[0].double()


def flex(model: Any, pattern: str) -> Tensor:
    with prefilling(model, BLOCKS, pattern):
        return run(model, EVERY)


def dense(model: Any, pattern: str) -> Tensor:
    """The mask written out pair by pair, additive, for the explicit kernel."""
    model.set_attn_implementation("eager")

    def seen(window: int | None) -> Tensor:
        shown = torch.tensor(mask(BLOCKS, pattern, TOKENS, window))[None, None]
        return torch.zeros(shown.shape, dtype=model.dtype).masked_fill(~shown, torch.finfo(model.dtype).min)

    layers = set(getattr(model.config, "layer_types", None) or ())
    window = getattr(model.config, "sliding_window", None)
    if len(layers) == 2:
        return run(model, {"full_attention": seen(None), "sliding_attention": seen(window)})
    return run(model, seen(None if layers == {"full_attention"} else window))


@pytest.mark.parametrize("pattern", ["anchor", "intra-doc"])
@pytest.mark.parametrize("name", MODELS)
def test_one_pass_of_flex_is_the_written_out_mask(name: str, pattern: str) -> None:
    narrow, wide = tiny.build(name), tiny.build(name).double()
    made, flexed, exact = flex(wide, pattern), flex(narrow, pattern), dense(wide, pattern)
    scale = exact.abs().max()
    # norms and angles are computed in fp32 by the models' own code, whatever the dtype
    assert (made - exact).abs().max() <= 1e-6 * scale
    # a model in fp32 is as far from float64 by flex as by the explicit kernel, up to the order of sums
    rounding = (dense(narrow, pattern) - exact).abs().max()
    assert (flexed - exact).abs().max() <= 4 * rounding + 2**-22 * scale
    assert (dense(wide, "full") - exact).abs().max() > 1e-3 * scale, "the mask changes nothing"


@pytest.mark.half
def test_under_the_fused_kernel_the_product_is_wide_and_the_level_is_served() -> None:
    from anchoreval.arms import flex_hf

    model, dtypes = tiny.build("llama", torch.bfloat16), []
    stock = flex_hf.attend
    for kernel, want in (("stock", torch.bfloat16), ("fused", torch.float32)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flex_hf, "attend", lambda q, *a, **k: (dtypes.append(q.dtype), stock(q, *a, **k))[1])
            level = LEVELS["bf16" if kernel == "stock" else "fp32-qk"]
            with applied(model, level, kernel) as state:  # type: ignore[arg-type]
                before = model.config._attn_implementation
                assert flex(model, "anchor").isfinite().all()
                assert model.config._attn_implementation == before != FLEX
            assert dtypes[-1] is want and state.rotations.total() == 2


def test_sinks_are_refused_by_name_and_the_kernel_is_put_back() -> None:
    model = tiny.build("gpt-oss")
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedArm, match="attention sinks: use rows"):
        flex(model, "anchor")
    assert model.config._attn_implementation == before


@torch.no_grad()
def test_anything_but_one_whole_prompt_is_refused() -> None:
    model = tiny.build("llama")
    ids = tiny.token_ids(TOKENS)
    with prefilling(model, BLOCKS, "anchor"):
        with pytest.raises(UnsupportedArm, match="in one pass, not 20 x 20"):
            model(ids[:, :20], attention_mask=EVERY[:, :20])
        with pytest.raises(UnsupportedArm, match="without padding"):
            model(ids, attention_mask=torch.arange(TOKENS)[None] > 2)
        with pytest.raises(UnsupportedArm, match="needs a block mask"):
            model(ids, attention_mask=EVERY[None, None].expand(1, 1, TOKENS, TOKENS))
