"""The `fused` attention kernel: one arithmetic for every arm, and the only one for q and k wider than v.

Scores, softmax and output are computed in fp32 (fp64 if an input is fp64) whatever the inputs' dtypes, and no mask of
length x length ever exists: plain causal rows go through `is_causal`, all others block by block of query rows, each
with only the keys that it can see.

Shape letters: B batch, H query heads, K key/value heads, G = H / K query heads per key head, Q query rows, L
keys, D head dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anchoreval.errors import UnsupportedArm

#: The name under which transformers knows the kernel. Names with sdpa, flash or flex_attention mean other things there.
FUSED = "anchoreval_fused"

#: The most score elements (B x H x rows x keys) of one block: 32 MiB in fp32.
BLOCK_ELEMENTS = 1 << 23
#: The most query rows of one block, so that its mask (rows x keys, as fp32 inside torch) stays small.
BLOCK_ROWS = 256

#: Parts of an attention that these kernels do not compute, and refuse if a model passes them.
NOT_TAKEN = ("position_bias", "cache", "indices", "block_indices")

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RowMask:
    """A causal mask as a rule over (batch, head, query, key) indices, made into booleans some rows at a time.

    `window` is the number of keys, up to and including its own, that a query may see; None for all. `plain` says that
    the rule is causality alone.
    """

    rule: MaskFunction
    batch: int
    queries: int
    keys: int
    first_query: int
    first_key: int
    window: int | None
    plain: bool

    def rows(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, int, int]:
        """Return booleans [B or 1, 1, stop - start, hi - lo] for queries start..stop, and the keys lo..hi in reach."""
        hi = min(self.keys, self.first_query + stop - self.first_key)
        lo = 0 if self.window is None else self.first_query + start - self.window + 1 - self.first_key
        lo = max(0, min(lo, hi - 1))
        batch = torch.arange(self.batch, device=device)[:, None, None, None]
        head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        query = torch.arange(start, stop, device=device)[None, None, :, None] + self.first_query
        key = torch.arange(lo, hi, device=device)[None, None, None, :] + self.first_key
        return self.rule(batch, head, query, key), lo, hi

    def __getitem__(self, at: tuple[Any, ...]) -> RowMask:
        """Return the mask of some query rows, `mask[:, :, -1:, :]`: Gemma 4 (5.23) so cuts it to the rows it keeps."""
        whole, rows = slice(None), at[2] if len(at) == 4 else None
        if not isinstance(rows, slice) or (*at[:2], at[3]) != (whole, whole, whole) or rows.step not in (None, 1):
            raise UnsupportedArm(f"kernel: fused cannot take {at} of its mask")
        start, stop, _ = rows.indices(self.queries)
        ends = self.plain and stop == self.queries
        return replace(self, queries=stop - start, first_query=self.first_query + start, plain=ends)


@dataclass(frozen=True)
class _GivenMask:
    """A mask tensor [B, 1 or H, Q, L] that the caller made: boolean (True is seen) or additive."""

    mask: Tensor
    keys: int
    plain: bool = False

    def rows(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, int, int]:
        return self.mask[..., start:stop, : self.keys].to(device), 0, self.keys


def row_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **rest: Any,
) -> RowMask:
    """Build the mask for `fused`: the rule stays a rule, with the 2-D padding mask [B, L] in it.

    transformers calls this function. Raise UnsupportedArm for bidirectional attention and hand-written mask functions.
    """
    if use_vmap or "allow_is_bidirectional_skip" in rest:
        raise UnsupportedArm("kernel: fused computes causal attention only, not bidirectional or hand-written masks")
    offset, window = int(q_offset), None if local_size is None else int(local_size)
    padded = attention_mask is not None and not bool(attention_mask.all())
    return RowMask(
        rule=_with_padding(mask_function, attention_mask, kv_length + kv_offset) if padded else mask_function,
        batch=batch_size,
        queries=q_length,
        keys=kv_length,
        first_query=offset,
        first_key=int(kv_offset),
        window=window,
        plain=allow_is_causal_skip and not padded and (window is None or offset + q_length <= window),
    )


def _with_padding(rule: MaskFunction, attention_mask: Tensor | None, length: int) -> MaskFunction:
    """Return `rule` and the padding mask as one rule; keys past the mask's end are padding, as in transformers."""
    assert attention_mask is not None
    seen = functional.pad(attention_mask.bool(), (0, max(0, length - attention_mask.shape[-1])))

    def both(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(batch, head, query, key) & seen[batch, key]

    return both


def fused(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | RowMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [B, Q, H, D] in the model's dtype, and no weights.

    query [B, H, Q, D], key and value [B, K, L, D] of any float dtypes; `softcap` bounds the scores by tanh (Gemma 2);
    `s_aux` [H] are sinks, one more logit per head that takes weight and gives no value (gpt-oss). The mask already
    covers position ids and windows in `rest`. Raise UnsupportedArm for dropout and position biases.
    """
    if dropout or any(rest.get(part) is not None for part in NOT_TAKEN):
        raise UnsupportedArm("kernel: fused takes no dropout, position bias, choice of keys or paged cache")
    mask = _as_rows(attention_mask, query, key)
    wide = torch.float32
    for tensor in (query, key, value):
        wide = torch.promote_types(wide, tensor.dtype)
    folded = _fold(query.to(wide), key.to(wide), value.to(wide))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):  # autocast would round q and k after all
        if softcap is None and s_aux is None:
            out = _through_sdpa(folded, mask, scale)
        else:
            out = _explicit(folded, mask, scale, softcap, None if s_aux is None else s_aux.detach().to(wide))
    out_BQHD = out.reshape(query.shape[0], -1, *out.shape[2:]).transpose(1, 2)
    return out_BQHD.to(model_dtype(module, value)).contiguous(), None


def _as_rows(mask: Tensor | RowMask | None, query: Tensor, key: Tensor) -> RowMask | _GivenMask:
    """Return any mask in a form that gives rows. None is square causal, or one query that sees all."""
    rows, keys = query.shape[2], key.shape[2]
    if isinstance(mask, RowMask):
        if (mask.queries, mask.keys) != (rows, keys):
            raise UnsupportedArm(f"kernel: the mask is for {mask.queries} x {mask.keys}, attention for {rows} x {keys}")
        return mask
    if isinstance(mask, Tensor):
        return _GivenMask(mask, keys)
    if mask is not None or rows not in (1, keys):
        raise UnsupportedArm(f"kernel: fused cannot read a mask of type {type(mask).__name__} for {rows} x {keys}")
    return RowMask(lambda b, h, q, k: k <= q, query.shape[0], rows, keys, keys - rows, 0, None, plain=True)


@dataclass(frozen=True)
class _Folded:
    """q [B*K, G, Q, D] and k, v [B*K, 1, L, D]: key heads ride on the batch, so none is copied G times."""

    q: Tensor
    k: Tensor
    v: Tensor
    batch: int

    @property
    def groups(self) -> int:
        return self.q.shape[1]

    def mask(self, rows: Tensor) -> Tensor:
        """Fold a mask [B or 1, 1 or H, rows, keys] like q."""
        if rows.shape[1] > 1:
            every = rows.expand(self.batch, -1, -1, -1)
            return every.reshape(-1, self.groups, *every.shape[2:])
        return rows if rows.shape[0] == 1 else rows.repeat_interleave(self.q.shape[0] // self.batch, 0)

    def blocks(self, most_rows: int) -> Iterator[tuple[int, int]]:
        """Return (start, stop) of blocks of query rows whose scores stay within BLOCK_ELEMENTS."""
        batch, groups, rows, _ = self.q.shape
        step = max(1, min(most_rows, BLOCK_ELEMENTS // (batch * groups * self.k.shape[2])))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _fold(q: Tensor, k: Tensor, v: Tensor) -> _Folded:
    batch, kv_heads = k.shape[:2]
    return _Folded(
        q=q.reshape(batch * kv_heads, -1, *q.shape[2:]),
        k=k.flatten(0, 1).unsqueeze(1),
        v=v.flatten(0, 1).unsqueeze(1),
        batch=batch,
    )


def _through_sdpa(x: _Folded, mask: RowMask | _GivenMask, scale: float) -> Tensor:
    """Return the attention output [B*K, G, Q, D] by torch's kernel: one call for a plain mask, else blocks."""
    rows, keys = x.q.shape[2], x.k.shape[2]
    k, v = (t.expand(-1, x.groups, -1, -1) for t in (x.k, x.v))
    if mask.plain and (rows == keys or rows == 1):
        return functional.scaled_dot_product_attention(x.q, k, v, scale=scale, is_causal=rows > 1)
    out = x.q.new_empty(*x.q.shape[:3], x.v.shape[-1])
    for start, stop in x.blocks(BLOCK_ROWS):
        seen, lo, hi = mask.rows(start, stop, x.q.device)
        seen = x.mask(_some_key(seen) if seen.dtype is torch.bool else seen.to(x.q.dtype))
        block = x.q[:, :, start:stop], k[:, :, lo:hi], v[:, :, lo:hi]
        out[:, :, start:stop] = functional.scaled_dot_product_attention(*block, attn_mask=seen, scale=scale)
    return out


def _explicit(
    x: _Folded, mask: RowMask | _GivenMask, scale: float, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Return the attention output [B*K, G, Q, D] step by step: torch's kernel has neither softcap nor sinks."""
    out = x.q.new_empty(*x.q.shape[:3], x.v.shape[-1])
    for start, stop in x.blocks(BLOCK_ROWS):
        seen, lo, hi = mask.rows(start, stop, x.q.device)
        scores = torch.matmul(x.q[:, :, start:stop] * scale, x.k[:, :, lo:hi].transpose(-1, -2))
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        if seen.dtype is torch.bool:
            scores = scores.masked_fill_(~x.mask(_some_key(seen)), float("-inf"))
        else:
            scores = scores + x.mask(seen.to(scores.dtype))
        out[:, :, start:stop] = torch.matmul(_softmax(scores, sinks, x), x.v[:, :, lo:hi])
    return out


def _softmax(scores: Tensor, sinks: Tensor | None, x: _Folded) -> Tensor:
    """Return the weights [B*K, G, rows, keys]; with sinks [H] they sum to less than one."""
    if sinks is None:
        return scores.softmax(-1)
    sink = sinks.view(-1, x.groups).repeat(x.batch, 1)[:, :, None, None]
    peak = torch.maximum(scores.amax(-1, keepdim=True), sink)
    weights = scores.sub_(peak).exp_()
    return weights.div_(weights.sum(-1, keepdim=True) + (sink - peak).exp())


def _some_key(seen: Tensor) -> Tensor:
    """Return `seen` with rows that see nothing (left padding) seeing everything: softmax over no key would be NaN."""
    return seen | ~seen.any(-1, keepdim=True)


def model_dtype(module: nn.Module, value: Tensor) -> torch.dtype:
    """Return the dtype that the module's output projection takes: that of its weights, unless these have 8 bits.

    It is not that of `value`: the cache stores values in the dtype of the keys, which may be wider.
    """
    return next((p.dtype for p in module.parameters() if p.is_floating_point() and p.itemsize > 1), value.dtype)


def switchable(model: Any) -> bool:
    """Return whether the model takes its attention from transformers' table of kernels."""
    can_switch = getattr(model, "_can_set_attn_implementation", None)
    return can_switch is not None and bool(can_switch())


@contextlib.contextmanager
def switched(model: Any, name: str, kernel: Callable[..., Any], mask: Callable[..., Any]) -> Iterator[None]:
    """Make every configuration of the model name `kernel`, and transformers build masks by `mask`, inside the block.

    The two names that registration adds to transformers' tables stay: other models may be using them. Raise
    UnsupportedArm for a model whose attention is built in.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    if not switchable(model):
        raise UnsupportedArm(f"kernel: {type(model).__name__} has its attention built in; no `{name}`")
    AttentionInterface.register(name, kernel)
    AttentionMaskInterface.register(name, mask)
    owners: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in owners if hasattr(config, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, stock in before:
            config._attn_implementation = stock
