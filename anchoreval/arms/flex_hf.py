"""Run a whole prompt through a stock transformers model by FlexAttention, in one pass under an attention pattern.

Inside `prefilling` the model's configuration names a kernel and its mask builder, as for kernels.fused: transformers
asks the builder for the mask of each kind of layer, so that sliding-window layers get theirs, and hands it to the
kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from anchoreval.arms.flex import attend, block_mask
from anchoreval.arms.kernels import FUSED, NOT_TAKEN, model_dtype, switched
from anchoreval.arms.patterns import Block
from anchoreval.errors import UnsupportedArm

#: The name under which transformers knows the kernel.
FLEX = "anchoreval_flex"


@dataclass
class _Prompt:
    """The prompt that is being prefilled; `wide` asks for the fused kernel's fp32 instead of the model's dtype."""

    blocks: Sequence[Block]
    pattern: str
    wide: bool
    masks: dict[int | None, BlockMask] = field(default_factory=dict)


_PREFILLING: ContextVar[_Prompt] = ContextVar("_PREFILLING")


@contextlib.contextmanager
def prefilling(model: Any, blocks: Sequence[Block], pattern: str) -> Iterator[None]:
    """Make one pass of one prompt of `blocks` on an empty cache attend by FlexAttention, inside the block.

    If the model's kernel is `fused`, the product is in fp32 here too. Raise UnsupportedArm for models whose kernel
    cannot be switched. The pass raises it for what flex does not compute (attention sinks, dropout, position biases),
    and for any pass but that of the whole prompt.
    """
    token = _PREFILLING.set(_Prompt(blocks, pattern, model.config._attn_implementation == FUSED))
    try:
        with switched(model, FLEX, _kernel, _mask):
            yield
    finally:
        _PREFILLING.reset(token)


def _mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    **rest: Any,
) -> BlockMask:
    """Build one mask of the prompt for each window. transformers calls this function."""
    prompt = _PREFILLING.get()
    if use_vmap or "allow_is_bidirectional_skip" in rest:
        raise UnsupportedArm("realisation: flex computes causal attention only, not hand-written masks")
    tokens = prompt.blocks[-1].stop
    if (int(q_offset), int(kv_offset), q_length, kv_length) != (0, 0, tokens, tokens):
        text = f"{q_length} x {kv_length} from {int(q_offset)} for {tokens} tokens"
        raise UnsupportedArm(f"realisation: flex takes the whole prompt in one pass, not {text}")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UnsupportedArm("realisation: flex takes one prompt without padding")
    window = None if local_size is None else int(local_size)
    if window not in prompt.masks:
        prompt.masks[window] = block_mask(prompt.blocks, prompt.pattern, tokens, window, device)
    return prompt.masks[window]


def _kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [B, Q, H, D] in the model's dtype, and no weights; windows are in the mask."""
    if s_aux is not None:
        raise UnsupportedArm("realisation: flex computes no attention sinks: use rows")
    if dropout or any(rest.get(part) is not None for part in NOT_TAKEN):
        raise UnsupportedArm("realisation: flex takes no dropout, position bias, choice of keys or paged cache")
    dtype = model_dtype(module, value)
    if _PREFILLING.get().wide:
        wide = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
        query, key, value = (t.to(wide) for t in (query, key, value))
    out = attend(query, key, value, attention_mask, scale=scaling, softcap=softcap)
    return out.to(dtype).transpose(1, 2).contiguous(), None
