"""The fused kernel alone: against explicit float64 attention, and never a mask of length x length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import and_masks, causal_mask_function, sliding_window_overlay

from anchoreval.arms import kernels
from anchoreval.arms.kernels import RowMask, fused, row_mask
from anchoreval.errors import UnsupportedArm

MODULE = nn.Linear(1, 1)
UNIT = 2.0**-24


def random_qkv(batch: int, heads: int, kv_heads: int, queries: int, keys: int, d: int = 16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, queries, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def explicit(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, softcap: float | None, sinks: Tensor | None) -> Tensor:
    """Output [B, Q, H, D], one query row at a time in float64; `seen` [B, H, Q, L] are booleans."""
    batch, heads, queries, d = q.shape
    out = torch.zeros(batch, queries, heads, d, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            kv = h * k.shape[1] // heads
            for row in range(queries):
                keys = seen[b, h, row].nonzero()[:, 0]
                scores = k[b, kv, keys].double() @ q[b, h, row].double() / d**0.5
                if softcap is not None:
                    scores = softcap * (scores / softcap).tanh()
                total = scores.exp().sum() + (0 if sinks is None else sinks[h].double().exp())
                out[b, row, h] = (scores.exp() / total) @ v[b, kv, keys].double()
    return out


def tolerance(q: Tensor, k: Tensor, v: Tensor, softcap: float | None) -> float:
    """(D + 2) u sum|q k| / sqrt(D) for a score (twice in the softmax), 4 u softcap, (L + 8) u for sums."""
    d = q.shape[-1]
    size = float(q.abs().sum(-1).max() * k.abs().max()) / d**0.5
    slack = (d + 2) * UNIT * size + 4 * UNIT * (softcap or 0.0)
    return (2 * slack + (k.shape[2] + 8) * UNIT) * float(v.abs().max())


def causal(queries: int, keys: int, window: int | None) -> Tensor:
    query, key = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None, :]
    return (key <= query) & (key > query - (window or keys))


@pytest.mark.parametrize("small_blocks", [False, True])
@pytest.mark.parametrize("extras", ["plain", "softcap", "sinks", "both"])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (5, 12), (1, 12)])
def test_attention_equals_float64(
    queries: int,
    keys: int,
    window: int | None,
    padding: int,
    extras: str,
    small_blocks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if small_blocks:
        monkeypatch.setattr(kernels, "BLOCK_ROWS", 2)
    q, k, v = random_qkv(2, 4, 2, queries, keys)
    softcap = 2.0 if extras in ("softcap", "both") else None
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if extras in ("sinks", "both") else None
    text = torch.ones(2, keys, dtype=torch.bool)
    text[1, :padding] = False
    rule = causal_mask_function
    if window is not None:
        rule = and_masks(sliding_window_overlay(window), rule)
    offset = keys - queries
    mask = row_mask(
        batch_size=2,
        q_length=queries,
        kv_length=keys,
        q_offset=offset,
        mask_function=rule,
        attention_mask=text,
        local_size=window,
    )
    got = fused(MODULE, q, k, v, mask, softcap=softcap, s_aux=sinks)[0]
    seen = (causal(queries, keys, window) & text[:, None, None, :]).expand(2, 4, -1, -1)
    want = explicit(q, k, v, seen, softcap, sinks)
    rows = seen.any(-1).all(1)  # padding that sees nothing may be anything finite
    assert got.isfinite().all()
    assert (got.double() - want)[rows].abs().max() <= tolerance(q, k, v, softcap)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("extras", ["plain", "softcap"])
def test_a_mask_tensor_given_by_the_caller_is_obeyed(additive: bool, extras: str) -> None:
    q, k, v = random_qkv(2, 4, 2, 6, 8)
    generator = torch.Generator().manual_seed(1)
    seen = (torch.rand(2, 1, 6, 8, generator=generator) > 0.4) | torch.eye(6, 8, dtype=torch.bool)
    mask = torch.zeros(2, 1, 6, 8).masked_fill(~seen, torch.finfo(torch.float32).min) if additive else seen
    softcap = 2.0 if extras == "softcap" else None
    got = fused(MODULE, q, k, v, mask, softcap=softcap)[0]
    want = explicit(q, k, v, seen.expand(2, 4, -1, -1), softcap, None)
    assert (got.double() - want).abs().max() <= tolerance(q, k, v, softcap)


def test_a_window_that_has_dropped_old_keys_keeps_its_indices() -> None:
    q, k, v = random_qkv(1, 4, 2, 3, 8)
    rule = and_masks(sliding_window_overlay(6), causal_mask_function)
    # keys 20..27 are held, of which queries 25..27 see the last six each
    mask = row_mask(batch_size=1, q_length=3, kv_length=8, q_offset=25, kv_offset=20, mask_function=rule, local_size=6)
    got = fused(MODULE, q, k, v, mask)[0]
    want = explicit(q, k, v, causal(3, 8, 6).expand(1, 4, -1, -1), None, None)
    assert (got.double() - want).abs().max() <= tolerance(q, k, v, None)


def test_narrow_inputs_are_widened_and_the_output_is_the_models() -> None:
    q, k, v = random_qkv(1, 4, 2, 7, 7)
    v16 = v.bfloat16()
    out, weights = fused(MODULE.bfloat16(), q, k, v16, None)
    MODULE.float()
    assert weights is None and out.dtype is torch.bfloat16 and out.shape == (1, 7, 4, 16)
    want = explicit(q, k, v16, causal(7, 7, None).expand(1, 4, -1, -1), None, None)
    assert ((out.double() - want).abs() <= 2**-8 * want.abs() + 2 * tolerance(q, k, v, None)).all()


def test_autocast_does_not_narrow_the_product() -> None:
    q, k, v = random_qkv(1, 4, 2, 7, 7)
    plain = fused(MODULE, q, k, v, None)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(MODULE, q, k, v, None)[0], plain)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 64])
def test_no_mask_is_longer_than_a_block_of_rows_nor_wider_than_its_window(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    stock = RowMask.rows

    def spy(self: RowMask, *args: Any) -> Any:
        seen, lo, hi = stock(self, *args)
        shapes.append((seen.shape[-2], seen.shape[-1]))
        return seen, lo, hi

    monkeypatch.setattr(RowMask, "rows", spy)
    rule = and_masks(sliding_window_overlay(window or 10**6), causal_mask_function)
    q, k, v = random_qkv(1, 2, 1, 1500, 3000, d=8)
    mask = row_mask(batch_size=1, q_length=1500, kv_length=3000, q_offset=1500, mask_function=rule, local_size=window)
    fused(MODULE, q, k, v, mask, softcap=softcap)
    assert sum(rows for rows, _ in shapes) == 1500
    assert max(rows for rows, _ in shapes) <= kernels.BLOCK_ROWS
    assert max(width for _, width in shapes) <= (3000 if window is None else window + kernels.BLOCK_ROWS)


def test_a_plain_prefill_makes_no_mask_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RowMask, "rows")
    q, k, v = random_qkv(1, 2, 1, 700, 700, d=8)
    text = torch.ones(1, 700, dtype=torch.bool)
    mask = row_mask(batch_size=1, q_length=700, kv_length=700, mask_function=causal_mask_function, attention_mask=text)
    assert fused(MODULE, q, k, v, mask)[0].isfinite().all()


@pytest.mark.parametrize(
    "named", [{"dropout": 0.1}, {"position_bias": torch.zeros(1)}, {"cache": object()}], ids=lambda one: next(iter(one))
)
def test_what_the_kernel_cannot_compute_is_refused(named: dict[str, Any]) -> None:
    q, k, v = random_qkv(1, 2, 1, 4, 4)
    with pytest.raises(UnsupportedArm, match="kernel: fused"):
        fused(MODULE, q, k, v, None, **named)


def test_a_chunk_on_a_cache_without_a_mask_is_refused() -> None:
    q, k, v = random_qkv(1, 2, 1, 4, 9)
    with pytest.raises(UnsupportedArm, match="cannot read a mask"):
        fused(MODULE, q, k, v, None)


def test_a_mask_for_other_lengths_is_refused() -> None:
    q, k, v = random_qkv(1, 2, 1, 4, 9)
    mask = row_mask(batch_size=1, q_length=4, kv_length=8, q_offset=4, mask_function=causal_mask_function)
    with pytest.raises(UnsupportedArm, match="the mask is for 4 x 8"):
        fused(MODULE, q, k, v, mask)


def test_bidirectional_and_hand_written_masks_are_refused() -> None:
    for named in ({"use_vmap": True}, {"allow_is_bidirectional_skip": True}):
        with pytest.raises(UnsupportedArm, match="causal attention only"):
            row_mask(batch_size=1, q_length=4, kv_length=4, mask_function=causal_mask_function, **named)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("rows", [slice(-1, None), slice(-3, None), slice(0, None), slice(2, 6)])
def test_some_rows_of_a_mask_are_those_rows_of_its_attention(rows: slice, window: int | None) -> None:
    def rule(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) if window is None else (k <= q) & (q - k < window)

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(3))
    mask = row_mask(batch_size=1, q_length=9, kv_length=9, mask_function=rule, local_size=window)
    whole = fused(torch.nn.Identity(), q, k, v, mask)[0]
    some = fused(torch.nn.Identity(), q[:, :, rows], k, v, mask[:, :, rows, :])[0]
    assert torch.allclose(some, whole[:, rows], atol=1e-6)
    with pytest.raises(UnsupportedArm, match="cannot take"):
        mask[:, :, torch.tensor([0, 1]), :]
