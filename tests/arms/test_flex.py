"""FlexAttention: its mask pair by pair against the definition, its output against float64, and its refusals."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from anchoreval.arms.flex import BLOCK, attend, block_mask, compiled, filled
from anchoreval.arms.patterns import PATTERNS, Block, blocks_of, mask
from anchoreval.errors import UnsupportedArm

ROLES = ("preamble", "document", "document", "document", "query", "answer_prefix")


def prompt(sizes: list[int], anchor: bool = True) -> tuple[Block, ...]:
    segments = [segment for segment, size in enumerate(sizes) for _ in range(size)]
    return blocks_of([-1, *segments] if anchor else segments, ROLES)


def rule(made: BlockMask, tokens: int) -> Tensor:
    return create_mask(made.mask_mod, 1, 1, tokens, tokens, device="cpu")[0, 0]


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_the_rule_is_the_definition_pair_by_pair(pattern: str) -> None:
    chance = random.Random(pattern)
    for _ in range(40):
        sizes = [chance.choice([0, chance.randrange(40)]) for _ in ROLES]
        sizes[chance.randrange(len(ROLES))] += 1
        window = chance.choice([None, 1, 2, 7, 50])
        blocks = prompt(sizes, anchor=chance.random() < 0.8)
        tokens = blocks[-1].stop + chance.randrange(20)
        made = block_mask(blocks, pattern, tokens, window)
        whole = rule(made, filled(tokens))
        assert torch.equal(whole[:tokens, :tokens], torch.tensor(mask(blocks, pattern, tokens, window))), sizes
        assert not whole[tokens:].any() and not whole[:, tokens:].any()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize("window", [None, 100, 300])
@pytest.mark.parametrize("sizes", [[5, 700, 20, 300, 40, 2], [0, 127, 256, 128, 3, 0], [300, 0, 900, 0, 0, 0]])
def test_the_blocks_are_those_that_torch_finds_by_trying_all_pairs(
    sizes: list[int], window: int | None, pattern: str
) -> None:
    blocks = prompt(sizes)
    length = filled(blocks[-1].stop)
    made = block_mask(blocks, pattern, blocks[-1].stop, window)
    tried = create_block_mask(made.mask_mod, 1, 1, length, length, device="cpu", BLOCK_SIZE=BLOCK)
    assert window == 100 or (made.full_kv_num_blocks is not None and made.full_kv_num_blocks.sum() > 0)
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(made, name), getattr(tried, name)), name


def test_prompts_are_filled_up_to_few_lengths() -> None:
    assert [filled(n) for n in (1, 128, 129, 2048, 2049, 4097, 131_072)] == [128, 128, 256, 2048, 2304, 4608, 131_072]
    lengths = {filled(n) for n in range(65_537, 131_073, 7)}
    assert len(lengths) <= 8 and all(n <= filled(n) < 1.125 * n for n in range(2049, 40_000, 101))


def draw(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, heads, tokens, size), (2, kv_heads, tokens, size), (2, kv_heads, tokens, size)]
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def reference(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Attention by the formula, in float64."""
    k, v = (t.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (9, None), (None, 2.0)])
@pytest.mark.parametrize("pattern", ["anchor", "intra-doc"])
def test_attention_is_the_formula_in_float64_and_within_rounding_in_float32(
    pattern: str, window: int | None, softcap: float | None, kv_heads: int
) -> None:
    blocks = prompt([4, 30, 17, 60, 25, 3])
    tokens = blocks[-1].stop
    made = block_mask(blocks, pattern, tokens, window)
    seen = torch.tensor(mask(blocks, pattern, tokens, window))
    q, k, v = draw(tokens, 4, kv_heads, torch.float64)
    want = reference(q, k, v, seen, 0.3, softcap)
    # a score is off by (D + 2) u sum|q k| scale, a weight by twice that and (N + 8) u, as in test_fused_in_models
    sizes = 0.3 * (q.abs() @ k.abs().repeat_interleave(4 // kv_heads, 1).transpose(-1, -2)).max()
    for dtype, unit in ((torch.float64, 2**-53), (torch.float32, 2**-24)):
        slack = (q.shape[-1] + 2) * unit * float(sizes) + 4 * unit * (softcap or 0)
        # torch keeps tanh of a fp32 score in fp32; inputs are rounded to the dtype first: 2 u sum|q k| more
        bound = (2 * (slack + 2 * unit * float(sizes)) + (tokens + 8) * unit) * float(v.abs().max())
        given = (t.to(dtype) for t in (q, k, v))
        made_out = attend(*given, made, scale=0.3, softcap=softcap)
        assert made_out.dtype is dtype and made_out.shape == want.shape
        assert (made_out.double() - want).abs().max() <= bound
    plain = reference(q, k, v, torch.ones(tokens, tokens, dtype=torch.bool).tril(), 0.3, softcap)
    assert (plain - want).abs().max() > 0.1, "the mask changes nothing that this test could tell from rounding"


def test_there_is_no_attention_without_a_block_mask() -> None:
    q, k, v = draw(20, 2, 2, torch.float32)
    for nothing in (None, torch.ones(20, 20, dtype=torch.bool)):
        with pytest.raises(UnsupportedArm, match="needs a block mask") as refused:
            attend(q, k, v, nothing)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
    with pytest.raises(TypeError, match="mask"):
        attend(q, k, v)  # type: ignore[call-arg]


def test_what_the_mask_was_not_made_for_is_refused() -> None:
    made = block_mask(prompt([0, 200, 0, 0, 10, 0]), "anchor", 211)
    q, k, v = draw(100, 2, 2, torch.float32)
    with pytest.raises(UnsupportedArm, match="block mask is for"):
        attend(q, k, v, made)
    q, k, v = draw(211, 2, 2, torch.float32)
    with pytest.raises(UnsupportedArm, match="one dtype"):
        attend(q, k, v.bfloat16(), made)
    with pytest.raises(UnsupportedArm, match="no gradients"):
        attend(q.requires_grad_(), k, v, made)


def test_where_torch_cannot_compile_nothing_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from anchoreval.arms import flex

    def broken(*_: object, **__: object) -> Tensor:
        raise RuntimeError("no triton here")

    monkeypatch.setattr(flex, "_kernel", lambda: broken)
    monkeypatch.setattr(flex, "_unfused", lambda *_, **__: pytest.fail("the unfused form ran"))
    q, k, v = draw(20, 2, 2, torch.float32)
    with pytest.raises(RuntimeError, match="no triton"):
        compiled(q, k, v, block_mask=block_mask(prompt([0, 19, 0, 0, 0, 0]), "anchor", 20))
