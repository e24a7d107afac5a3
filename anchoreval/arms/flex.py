"""Attention patterns by FlexAttention: the block mask of a prompt, and attention that cannot run without one.

The mask is the function `patterns.sees`, pair by pair. It is written from one number per token: the start of the
unbroken stretch of keys that the token sees up to itself. So no array of length x length exists: not for the mask, and
on CUDA not for the scores, where torch compiles a kernel that skips what the mask leaves empty. On the CPU torch's own
unfused form runs: the same function, with scores of length x length, for small inputs.

A compiled kernel is specific to its length, so prompts are filled up on the right to one of a few lengths (`filled`). A
filling token sees nothing and nothing sees it, and blocks of filling cost nothing.

Shape letters: B batch, H query heads, K key/value heads, N tokens, D head dim, Q and L blocks of BLOCK tokens
of queries and keys.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from anchoreval.arms.patterns import Block
from anchoreval.errors import UnsupportedArm

#: Tokens on one side of a block; the default of torch's kernels.
BLOCK = 128
_BLOCKS_AT_ONCE = 16
_FILLING = -1
#: The most kernels that are compiled: lengths x dtypes x windows. One model may need more than torch's default of 8.
_MOST_KERNELS = 512

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_mod(first_N: Tensor, pattern: str, window: int | None = None) -> MaskMod:
    """Return `patterns.sees` as a function of (batch, head, query, key) index tensors; `first_keys` gives `first_N`."""
    anchored = pattern == "anchor"

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first = first_N[query]
        near = (key >= first) & (key <= query)
        anchor = key == 0
        if window is not None:
            near = near & (query - key < window)
            anchor = anchor & (query - first + 1 < window)
        return (near | anchor if anchored else near) & (first != _FILLING)

    return sees


def filled(tokens: int) -> int:
    """Return the length that `tokens` are filled up to: at most eight lengths between two powers of two."""
    step = max(BLOCK, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def first_keys(blocks: Sequence[Block], pattern: str, tokens: int) -> Tensor:
    """Return, per token [N], the start of the keys that it sees without a gap: 0, or the start of its own document.

    Tokens after the last block are generated: part of the query. Those after `tokens` are filling.
    """
    first_N = torch.full((filled(tokens),), _FILLING, dtype=torch.int32)
    first_N[:tokens] = 0
    for block in blocks:
        if pattern != "full" and block.kind != "query":
            first_N[block.start : block.stop] = block.start
    return first_N


def block_mask(
    blocks: Sequence[Block],
    pattern: str,
    tokens: int,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> BlockMask:
    """Return the mask of a prompt of `blocks` and what follows it, `tokens` in all, for every batch row and head.

    Its sides are `filled(tokens)` long. `window` is that of a sliding-window layer, under patterns.WINDOW_RULE. Blocks
    without a visible pair of tokens are left out, and fully visible ones are marked so; torch's own builder would try
    all pairs.
    """
    first_N = first_keys(blocks, pattern, tokens).to(device)
    counts_QL = _seen_pairs(first_N, pattern == "anchor", window)
    full_QL = counts_QL == BLOCK * BLOCK
    partial, full = _ordered((counts_QL > 0) & ~full_QL), _ordered(full_QL)
    rule = mask_mod(first_N, pattern, window)
    sides = len(first_N), len(first_N)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=sides)


def _seen_pairs(first_N: Tensor, anchored: bool, window: int | None) -> Tensor:
    """Return how many pairs of each block are seen [Q, L]. A query sees an interval of keys, and perhaps key 0."""
    tokens, device = len(first_N), first_N.device
    query_N = torch.arange(tokens, dtype=torch.int32, device=device)
    reach = tokens if window is None else window
    low_N = torch.maximum(first_N, query_N - reach + 1)
    apart_N = (low_N > 0) & (query_N - first_N + 1 < reach) & anchored
    low_N, apart_N = low_N.where(first_N != _FILLING, tokens), apart_N & (first_N != _FILLING)
    edge_L = torch.arange(0, tokens, BLOCK, dtype=torch.int32, device=device)
    counts = []
    for start in range(0, tokens, step := BLOCK * _BLOCKS_AT_ONCE):
        low, high = low_N[start : start + step, None], query_N[start : start + step, None] + 1
        inside = (torch.minimum(high, edge_L + BLOCK) - torch.maximum(low, edge_L)).clamp_(min=0)
        inside[:, 0] += apart_N[start : start + step]
        counts.append(inside.reshape(-1, BLOCK, len(edge_L)).sum(1))
    return torch.cat(counts)


def _ordered(chosen_QL: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chosen key blocks per query block as torch wants them: count [1, 1, Q], indices [1, 1, Q, L]."""
    which = chosen_QL.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen_QL.sum(-1, dtype=torch.int32)[None, None], which.to(torch.int32)[None, None].contiguous()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the attention output [B, H, N, D] of query [B, H, N, D], key and value [B, K, N, D] under `mask`.

    All three have one dtype. `softcap` bounds the scores by tanh (Gemma 2). On CUDA torch compiles the kernel, once for
    all lengths; if it cannot, that raises, and nothing else runs instead. Raise UnsupportedArm without a block mask
    (torch would take that for full attention without causality), for mixed dtypes, and for inputs that want gradients
    on a CPU.
    """
    if not isinstance(mask, BlockMask):
        raise UnsupportedArm(f"realisation: flex attention needs a block mask, not {type(mask).__name__}")
    if not query.dtype == key.dtype == value.dtype:
        raise UnsupportedArm(f"realisation: flex takes one dtype, not {query.dtype}, {key.dtype}, {value.dtype}")
    on_cpu = query.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        raise UnsupportedArm("realisation: flex has no gradients on a CPU")
    tokens, sides = query.shape[2], mask.shape[-2:]
    if key.shape[2] != tokens or sides[0] != filled(tokens) or sides[0] != sides[1]:
        raise UnsupportedArm(f"realisation: the block mask is for {sides}, attention for {tokens} x {key.shape[2]}")
    filling = (0, 0, 0, sides[0] - tokens)
    query, key, value = (functional.pad(t, filling) for t in (query, key, value))
    named = {
        "score_mod": None if softcap is None else _capped(softcap),
        "block_mask": mask,
        "scale": scale,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    run = _unfused if on_cpu else compiled
    return run(query, key, value, **named)[:, :, :tokens]


def compiled(*tensors: Tensor, **named: Any) -> Tensor:
    """Run torch's flex_attention as a compiled kernel; raise if dynamo would fall back to the unfused form."""
    with torch._dynamo.config.patch(recompile_limit=_MOST_KERNELS, accumulated_recompile_limit=_MOST_KERNELS):
        return _kernel()(*tensors, **named)


@functools.cache
def _kernel() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _unfused(*tensors: Tensor, **named: Any) -> Tensor:
    with warnings.catch_warnings():  # torch warns that this form is the slow one
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        out: Tensor = flex_attention(*tensors, **named)  # type: ignore[call-overload]
    return out


@functools.cache
def _capped(softcap: float) -> Callable[..., Any]:
    """Return a score function that bounds scores to +-softcap; one object per cap, so that it compiles once."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped
